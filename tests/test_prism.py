"""What is particular to Prism: the equations, the dictionary, the banks, lambda, the angles, the config's refusals."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from families import (
    CASES,
    COMMON,
    TOLERANCE,
    Case,
    assert_near,
    logits_error,
    loss_of,
    random_ids,
)
from torch._dynamo.testing import CompileCounterWithBackend

from modeling_prism import PrismConfig, PrismForCausalLM, PrismForSequenceClassification, PrismModel, reference
from modeling_prism.modeling_prism import PrismAttention, PrismRotaryEmbedding


PRISM_CASES = [case for case in CASES if case.id.startswith("prism-")]
DEFAULT = Case("prism", "default")
UNEVEN = Case("prism", "uneven")


# The equations


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward on CPU (torch 2.13)")
@pytest.mark.parametrize("case", PRISM_CASES)
def test_flex_attention_gradients_equal_eager(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    model, ids = case.model(attn_implementation="eager").cuda(), random_ids(2, 11).cuda()
    loss_of(model(ids).logits.cpu()).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("flex_attention")
    loss_of(model(ids).logits.cpu()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)


def test_one_attention_equals_the_reference_at_any_positions():
    model = UNEVEN.model()
    config, attention = model.config, model.model.layers[1].self_attn
    z, positions = torch.randn(7, 32), [5, 6, 7, 20, 21, 40, 63]
    rotary = model.model.rotary_emb(z, torch.tensor([positions]))
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    actual = attention(z[None], position_embeddings=rotary, attention_mask=mask)[0][0]
    expected = reference.prism_attention(z, dict(attention.named_parameters()), config, positions)
    assert_near(actual, expected)


def rotated_values(h, theta, position_ids, *_):
    rotated = torch.stack([reference.rope(h[t], position_ids[t], theta) for t in range(len(h))])
    a = causal_map(h, theta, position_ids)
    return a @ rotated


def causal_map(h, theta, position_ids, *_):
    rotated = torch.stack([reference.rope(h[t], position_ids[t], theta) for t in range(len(h))])
    scores = rotated @ rotated.T / h.shape[1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf).softmax(-1)


def subtracted_maps(z, weights, config, position_ids):
    """DiffLlama's reading: the map of a noise head is subtracted from that of its signal head, values are shared."""
    dictionary, num_heads = weights["dictionary.weight"], config.num_attention_heads
    thetas, num_signal_heads = (config.signal_rope_theta, config.noise_rope_theta), config.num_signal_heads
    h = (z @ dictionary.T).view(len(z), num_heads, -1)
    y = torch.zeros_like(h)
    for i in range(num_signal_heads):
        j = num_signal_heads + i
        signal, noise = (causal_map(h[:, k], theta, position_ids) for k, theta in zip((i, j), thetas))
        y[:, i] = (signal - config.noise_coefficient * noise) @ h[:, i]
    return y.flatten(1) @ dictionary / (num_heads * config.dictionary_expansion) ** 0.5


def non_causal(h, theta, position_ids, *_):
    rotated = torch.stack([reference.rope(h[t], position_ids[t], theta) for t in range(len(h))])
    return (rotated @ rotated.T / h.shape[1] ** 0.5).softmax(-1) @ h


def unscaled_output(*arguments, correct=reference.prism_attention):
    return correct(*arguments) * 2**0.5


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("prism_head", rotated_values),
        ("prism_head", non_causal),
        ("prism_attention", subtracted_maps),
        ("prism_attention", unscaled_output),
    ],
)
def test_negative_control_a_wrong_reference_does_not_match(monkeypatch, name, wrong):
    model = DEFAULT.model()
    assert logits_error(model) < TOLERANCE
    monkeypatch.setattr(reference, name, wrong)
    assert logits_error(model) > 100 * TOLERANCE


STEPPED = Case("prism", "stepped")


@pytest.mark.parametrize(
    "change",
    [{"rotary_values": False}, {"output_step": 1.0}, {"noise_coefficient": 1.0}, {"key_shift": False}]
    + [{"query_gain": False}, {"output_gain": False}],
    ids=lambda change: next(iter(change)),
)
def test_negative_control_a_reference_without_one_option_does_not_match(change):
    model, ids = STEPPED.model(), random_ids(2, 11)
    with torch.no_grad():
        logits = model(ids).logits
        assert (logits - reference.prism_logits(model, STEPPED.config(), ids)).abs().max() < TOLERANCE
        other = reference.prism_logits(model, STEPPED.config(**change), ids)
    assert (logits - other).abs().max() > 100 * TOLERANCE


def test_negative_control_the_vectorised_map_is_the_head_apart_from_the_mistake(monkeypatch):
    """So that the controls above differ from the reference by their mistake alone."""
    monkeypatch.setattr(reference, "prism_head", lambda h, *rest: causal_map(h, *rest) @ h)
    assert logits_error(DEFAULT.model()) < TOLERANCE


# Parameters and initialisation


@pytest.mark.parametrize("case", PRISM_CASES)
def test_parameter_names_and_shapes(case):
    model, config = case.model(), case.config()
    heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
    expected = {"model.embed_tokens.weight": (99, 32), "model.norm.weight": (32,), "lm_head.weight": (99, 32)}
    if config.learned_position_embeddings:
        expected["model.embed_positions.weight"] = (64, 32)
    for layer in range(2):
        expected |= {
            f"model.layers.{layer}.input_layernorm.weight": (32,),
            f"model.layers.{layer}.self_attn.dictionary.weight": (width, 32),
            f"model.layers.{layer}.post_attention_layernorm.weight": (32,),
            f"model.layers.{layer}.mlp.up_proj.weight": (37, 32),
            f"model.layers.{layer}.mlp.down_proj.weight": (32, 37),
        }
        if case.variant == "stepped":
            for name in ("query", "output"):
                expected[f"model.layers.{layer}.self_attn.{name}_gain_bias"] = (2, heads, config.head_dim // 2)
            expected[f"model.layers.{layer}.self_attn.key_shift_bias"] = (heads,)
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == expected
    assert (heads, config.head_dim) == {"uneven": (6, 16), "expansion_1": (8, 8)}.get(case.variant, (8, 16))


@pytest.mark.parametrize("head_class", [PrismModel, PrismForCausalLM, PrismForSequenceClassification])
def test_initialisation(head_class):
    config = PrismConfig(
        **{**COMMON, "initializer_range": 0.02, "hidden_size": 96, "intermediate_size": 511, "num_hidden_layers": 3},
        learned_position_embeddings=True,
    )
    model = head_class(config)
    base = getattr(model, "model", model)
    for layer in base.layers:
        U = layer.self_attn.dictionary.weight
        torch.testing.assert_close(U.T @ U, torch.eye(96), atol=1e-5, rtol=0)
        assert abs(layer.mlp.down_proj.weight.std() / (0.02 / math.sqrt(6)) - 1) < 0.03
        assert abs(layer.mlp.up_proj.weight.std() / 0.02 - 1) < 0.03
        assert layer.input_layernorm.weight.eq(1).all() and layer.input_layernorm.bias is None
    assert abs(base.embed_tokens.weight[3:].std() / 0.02 - 1) < 0.05
    assert abs(base.embed_positions.weight.std() / 0.02 - 1) < 0.05
    assert not torch.equal(base.layers[0].self_attn.dictionary.weight, base.layers[1].self_attn.dictionary.weight)


def test_initialisation_in_bf16_is_orthonormal_to_bf16():
    config = DEFAULT.config()
    U = PrismForCausalLM._from_config(config, dtype=torch.bfloat16).model.layers[0].self_attn.dictionary.weight
    assert U.dtype == torch.bfloat16
    torch.testing.assert_close(U.float().T @ U.float(), torch.eye(32), atol=1e-2, rtol=0)


def test_a_missing_dictionary_is_initialised_and_a_saved_one_is_kept(tmp_path):
    model = DEFAULT.model()
    with torch.no_grad():
        model.model.layers[0].self_attn.dictionary.weight.mul_(1.7)
    state = model.state_dict()
    missing = "model.layers.1.self_attn.dictionary.weight"
    model.save_pretrained(tmp_path, state_dict={name: weight for name, weight in state.items() if name != missing})
    loaded, info = PrismForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {missing}
    kept = "model.layers.0.self_attn.dictionary.weight"
    assert torch.equal(loaded.state_dict()[kept], state[kept])
    U = loaded.state_dict()[missing]
    torch.testing.assert_close(U.T @ U, torch.eye(32), atol=1e-5, rtol=0)


# Dropout


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_dropout_of_one_removes_every_branch(attn_implementation):
    z, positions = torch.randn(2, 7, 32), torch.arange(7)[None]

    def run(layer, rotary):
        return layer(z, position_embeddings=rotary(z, positions))

    model = DEFAULT.model(hidden_dropout=1.0, attn_implementation=attn_implementation).train()
    assert torch.equal(run(model.model.layers[0], model.model.rotary_emb), z)
    states = model(random_ids(2, 7), output_hidden_states=True).hidden_states
    assert all(state.eq(0).all() for state in states)
    assert not torch.equal(run(model.eval().model.layers[0], model.model.rotary_emb), z)

    model = DEFAULT.model(attention_dropout=1.0, attn_implementation=attn_implementation).train()
    assert run(model.model.layers[0].self_attn, model.model.rotary_emb)[0].eq(0).all()
    assert not torch.equal(run(model.model.layers[0], model.model.rotary_emb), z)


# Lambda and the banks


def gains(model):
    return [module.head_gain for module in model.modules() if isinstance(module, PrismAttention)]


def test_set_noise_coefficient_reaches_every_layer_and_the_config():
    model = UNEVEN.model()
    model.set_noise_coefficient(0.07)
    assert model.config.noise_coefficient == 0.07
    assert model.model.config.noise_coefficient == 0.07
    assert len(gains(model)) == 2
    for gain in gains(model):
        assert gain.tolist() == pytest.approx([1, 1, 1, 1, -0.07, -0.07])
    assert logits_error(model) < TOLERANCE


def test_head_gain_is_not_saved_and_follows_the_dtype():
    model = DEFAULT.model()
    assert not any("head_gain" in name for name in model.state_dict())
    model.to(torch.bfloat16)
    assert all(gain.dtype == torch.bfloat16 for gain in gains(model))
    model.to(torch.float64)
    model.set_noise_coefficient(0.25)
    assert all(gain.dtype == torch.float64 and gain[-1] == -0.25 for gain in gains(model))
    assert all(gain[0] == 1 for gain in gains(model))


def test_head_gain_is_filled_on_load_in_half_precision(tmp_path):
    DEFAULT.model(noise_coefficient=0.3125).save_pretrained(tmp_path)
    for gain in gains(PrismForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert gain.tolist() == [1.0] * 4 + [-0.3125] * 4


@pytest.mark.compile
def test_set_noise_coefficient_does_not_recompile():
    model, ids = DEFAULT.model(), random_ids(2, 11)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    seen = []
    with torch.no_grad():
        for value in (0.4, 0.01, 0.055, 0.1):
            model.set_noise_coefficient(value)
            seen.append(compiled(ids).logits)
            assert_near(seen[-1], model(ids).logits)
        assert counter.frame_count == 1
        assert (seen[0] - seen[1]).abs().max() > 100 * TOLERANCE
        # The counter does count: another dtype has to be compiled.
        compiled(inputs_embeds=torch.randn(2, 11, 32))
    assert counter.frame_count > 1


def test_assigning_the_noise_coefficient_takes_effect(tmp_path):
    model, ids = DEFAULT.model(), random_ids(2, 11)
    before = model(ids).logits
    twin = copy.deepcopy(model)
    model.config.noise_coefficient = 0.9
    assert all(gain[-1] == torch.tensor(-0.9) for gain in gains(model))
    assert logits_error(model) < TOLERANCE
    assert torch.equal(twin(ids).logits, before)
    model.save_pretrained(tmp_path)
    assert_near(PrismForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_lambda_zero_is_the_signal_heads_alone():
    model = UNEVEN.model()
    attention, z = model.model.layers[0].self_attn, torch.randn(1, 9, 32)
    rotary = model.model.rotary_emb(z, torch.arange(9)[None])

    def run():
        with torch.no_grad():
            return attention(z, position_embeddings=rotary)[0]

    with_noise = run()
    model.set_noise_coefficient(0.0)
    signal = run()
    assert (with_noise - signal).abs().max() > 100 * TOLERANCE
    with torch.no_grad():
        # With the rows of the noise heads gone, nothing changes.
        attention.dictionary.weight[4 * 16 :] = 0
    assert_near(run(), signal)
    with torch.no_grad():
        attention.dictionary.weight[:16] = 0
    assert (run() - signal).abs().max() > 100 * TOLERANCE


# Angles


def exact_angles(config, position):
    banks = [(config.signal_rope_theta, config.num_signal_heads)]
    banks += [(config.noise_rope_theta, config.num_attention_heads - config.num_signal_heads)]
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    return position * torch.cat([(theta**-exponents).expand(heads, -1) for theta, heads in banks])


def bf16_models(tmp_path):
    model = UNEVEN.model(max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    yield PrismForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    yield model.bfloat16()


def test_angles_are_fp32_whatever_the_weights(tmp_path):
    for model in bf16_models(tmp_path):
        assert model.dtype == torch.bfloat16
        positions = torch.tensor([[510, 511]])
        cos, sin = model.model.rotary_emb(torch.empty(0, dtype=torch.float32), positions)
        assert cos.dtype == sin.dtype == torch.float32
        for index, position in enumerate((510, 511)):
            angles = exact_angles(model.config, position)
            torch.testing.assert_close(cos[0, :, index].double(), angles.cos(), atol=2e-4, rtol=0)
            torch.testing.assert_close(sin[0, :, index].double(), angles.sin(), atol=2e-4, rtol=0)

        # In the dtype that the layers get, only the rounding of the result is left.
        cos, sin = model.model.rotary_emb(torch.empty(0, dtype=torch.bfloat16), positions)
        assert cos.dtype == torch.bfloat16
        assert (cos[0, :, 0] - cos[0, :, 1]).abs().amax(-1).min() > 0.1, "positions 510 and 511 collapse"
        assert (cos[0, :, 1].double() - exact_angles(model.config, 511).cos()).abs().max() < 2**-8
        assert (sin[0, :, 1].double() - exact_angles(model.config, 511).sin()).abs().max() < 2**-8


def test_angles_in_bf16_would_fail_the_test_above():
    config = UNEVEN.config()
    angles = exact_angles(config, 1).bfloat16() * torch.tensor(511, dtype=torch.bfloat16)
    assert (angles.double().cos() - exact_angles(config, 511).cos()).abs().max() > 2**-8


def test_autocast_leaves_the_angles_in_fp32():
    rotary, positions = PrismRotaryEmbedding(UNEVEN.config()), torch.tensor([[511]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, _ = rotary(torch.empty(0), positions)
    torch.testing.assert_close(cos[0, :, 0].double(), exact_angles(UNEVEN.config(), 511).cos(), atol=2e-4, rtol=0)


# Refusals


@pytest.mark.parametrize(
    "override, name",
    [
        ({"num_signal_heads": 2}, "`head_dim`"),
        ({"hidden_size": 64}, "`head_dim`"),
        ({"noise_coefficient": -2.0}, "noise"),
    ],
)
def test_the_model_refuses_what_an_override_of_a_saved_config_broke(tmp_path, override, name):
    DEFAULT.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name):
        PrismForCausalLM(PrismConfig.from_pretrained(tmp_path, **override))
    consistent = PrismConfig.from_pretrained(tmp_path, num_signal_heads=2, head_dim=32)
    assert PrismForCausalLM(consistent).model.layers[0].self_attn.dictionary.weight.shape == (8 * 32, 32)


def test_a_derived_head_dim_may_be_given_and_survives_saving(tmp_path):
    config = UNEVEN.config(head_dim=16)
    config.save_pretrained(tmp_path)
    assert PrismConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    default = PrismConfig()
    assert (default.head_dim, default.num_signal_heads) == (128, 8)
    bases = default.signal_rope_theta, default.noise_rope_theta
    assert bases == pytest.approx((31415.93, 3183.10), abs=0.01)


def test_a_sequence_beyond_the_learned_positions_is_refused():
    model = Case("prism", "learned_positions").model()
    assert model(random_ids(1, 64)).logits.shape == (1, 64, 99)
    with pytest.raises(ValueError, match="`max_position_embeddings`=64"):
        model(random_ids(1, 65))
    with pytest.raises(ValueError, match="`max_position_embeddings`=64"):
        model(random_ids(1, 2), position_ids=torch.tensor([[63, 64]]))
    # Rotary positions alone have no last one.
    assert DEFAULT.model()(random_ids(1, 65)).logits.isfinite().all()


def test_offloaded_layers_compute_the_same(tmp_path):
    # Both uses of the dictionary must go through its module: hooks bring its weight in for the time of a call alone.
    model = DEFAULT.model()
    model.save_pretrained(tmp_path / "model")
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    offloaded = PrismForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**device_map, "lm_head": "cpu"}, offload_folder=tmp_path / "offload"
    )
    assert offloaded.model.layers[0].self_attn.dictionary.weight.is_meta
    input_ids = random_ids(2, 11)
    with torch.no_grad():
        assert_near(offloaded(input_ids).logits, model(input_ids).logits)


TENSOR_PARALLEL = """
import sys
import torch
import modeling_prism
from transformers import AutoModelForCausalLM

input_ids = torch.arange(20).view(2, 10)
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1])
split = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto")
assert split.model.layers[0].mlp.up_proj.weight.to_local().shape == (19, 32)
torch.testing.assert_close(split(input_ids).logits, whole(input_ids).logits, atol=1e-5, rtol=0)
"""


@pytest.mark.process
def test_tensor_parallel_plan(tmp_path):
    config = PrismConfig(**{**COMMON, "intermediate_size": 38, "vocab_size": 98}, num_attention_heads=4)
    PrismForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(TENSOR_PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
