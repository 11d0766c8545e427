"""What is particular to Spherical: the sphere, the bound, the start, the running mean and its state, refusals."""

import math

import pytest
import torch
from families import (
    CASES,
    COMMON,
    TOLERANCE,
    VISIBLE,
    Case,
    assert_near,
    head_parameter,
    left_pad,
    logits_error,
    loss_of,
    random_ids,
)
from safetensors.torch import load_file, save_file
from test_generation import generate, generation_model, greedy, plain_loop, prompts
from transformers import DynamicCache, StaticCache

from modeling_prism import SphericalConfig, SphericalForCausalLM, SphericalModel, reference
from modeling_prism.modeling_spherical import project
from modeling_prism.state_spherical import running_sum


SPHERICAL_CASES = [case for case in CASES if case.id.startswith("spherical-")]
SPHERE_CASES = [case for case in SPHERICAL_CASES if case.values[0].config().residual_norm == "sphere"]
UNIFORM_CASES = [case for case in SPHERICAL_CASES if "uniform" in case.id]
DEFAULT, UNIFORM = Case("spherical", "default"), Case("spherical", "uniform")
SIZES = {**COMMON, "num_attention_heads": 4}
CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=24),
}


# The equations


def with_radius_sqrt_d(x):
    return x / x.pow(2).mean(-1, keepdim=True).sqrt()


def with_an_epsilon_under_the_root(x):
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-2).sqrt()


@pytest.mark.parametrize("wrong", [with_radius_sqrt_d, with_an_epsilon_under_the_root, torch.Tensor.sin])
def test_negative_control_a_wrong_projection_does_not_match(monkeypatch, wrong):
    monkeypatch.setattr(reference, "sphere", wrong)
    assert logits_error(DEFAULT.model()) > VISIBLE


# The sphere and the bound


def lengths_of_the_residual_stream(model, ids=None):
    ids = random_ids(2, 40) if ids is None else ids
    lengths = [states.norm(dim=-1) for states in model(ids, output_hidden_states=True).hidden_states]
    # After attention too.
    for layer in model.model.layers:
        layer.attention_norm.register_forward_hook(lambda module, args, output: lengths.append(output.norm(dim=-1)))
    model(ids)
    assert len(lengths) == 2 * model.config.num_hidden_layers + 1
    return torch.stack(lengths)


@pytest.mark.parametrize("case", SPHERE_CASES)
def test_every_residual_vector_has_length_1(case):
    model = case.model(num_hidden_layers=5)
    assert (lengths_of_the_residual_stream(model) - 1).abs().max() < 1e-6
    # However far from the sphere the additions lead.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1e4)
    assert (lengths_of_the_residual_stream(model) - 1).abs().max() < 1e-6


def test_negative_control_the_baselines_leave_the_sphere():
    for variant in ("layer_norm", "rms_norm"):
        # A bounded head would project the last state.
        model = Case("spherical", variant).model(bounded_unembedding=False)
        assert (lengths_of_the_residual_stream(model) - 1).abs().min() > 0.1


@pytest.mark.parametrize("residual_norm", ["layer_norm", "rms_norm"])
def test_without_gains_the_baselines_are_a_sphere_of_radius_sqrt_d(residual_norm):
    options = {"residual_norm": residual_norm, "norm_affine": False, "bounded_unembedding": False}
    model = DEFAULT.model(**options, layer_norm_eps=1e-9)
    assert not any("norm" in name for name, _ in model.named_parameters())
    assert_near(lengths_of_the_residual_stream(model) / math.sqrt(32), torch.ones(5, 2, 40), msg=residual_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e-9, 1e-4, 0.009, 0.011, 1.0])
def test_a_short_vector_has_a_bounded_image_and_gradient(length, dtype):
    x = (length * torch.nn.functional.normalize(torch.randn(5, 32, dtype=dtype), dim=-1)).requires_grad_()
    image = project(x)
    # On the sphere down to a length of 0.01, and linear below.
    expected = torch.full((5,), min(length / 0.01, 1.0), dtype=dtype)
    torch.testing.assert_close(image.norm(dim=-1), expected)
    for direction in range(32):
        (gradient,) = torch.autograd.grad(image[:, direction].sum(), x, retain_graph=True)
        assert gradient.norm(dim=-1).max() <= 100 * (1 + 1e-5)


def test_a_model_whose_residual_stream_vanishes_trains():
    model = DEFAULT.model()
    for shift in (0.0, 1e-12, 1e-7):
        embeds = shift - model.model.embed_positions.weight[:5].detach()[None]
        loss_of(model(inputs_embeds=embeds.requires_grad_()).logits).backward()
        assert embeds.grad.isfinite().all() and 1 < embeds.grad.abs().max() < 1e6


@pytest.mark.parametrize("tau", [0.5, 10, 37.0])
@pytest.mark.parametrize("residual_norm", ["sphere", "layer_norm", "rms_norm"])
def test_logits_are_bounded_by_the_scale_and_proportional_to_it(residual_norm, tau):
    model = DEFAULT.model(residual_norm=residual_norm, tie_word_embeddings=False, logit_scale=tau)
    ids = random_ids(4, 40)
    with torch.no_grad():
        # Rows that stand where the residual vectors do: the bound is reached.
        model.lm_head.rows[:40] = 1e3 * model.model(ids[:1]).last_hidden_state[0]
        logits = model(ids).logits
        assert logits.abs().max() <= tau * (1 + 1e-6)
        assert logits.max() > 0.999 * tau
        # The length of a row makes no difference, and none is learned.
        model.lm_head.rows.mul_(torch.rand(99, 1) + 0.1)
        assert_near(model(ids).logits / tau, logits / tau)
    loss_of(model(ids).logits).backward()
    along = (model.lm_head.rows.grad * model.lm_head.rows).sum(-1)
    assert model.lm_head.rows.grad.abs().max() > VISIBLE / 100 and along.abs().max() < TOLERANCE
    other = DEFAULT.model(residual_norm=residual_norm, tie_word_embeddings=False, logit_scale=2 * tau)
    assert_near(
        other(ids).logits / tau,
        2 * DEFAULT.model(residual_norm=residual_norm, tie_word_embeddings=False, logit_scale=tau)(ids).logits / tau,
    )


def test_negative_control_without_the_bound_logits_grow_with_the_rows():
    model, ids = Case("spherical", "unbounded").model(tie_word_embeddings=False), random_ids(2, 11)
    before = model(ids).logits
    with torch.no_grad():
        model.lm_head.weight.mul_(1e3)
    assert_near(model(ids).logits / 1e3, before)
    assert model(ids).logits.abs().max() > model.config.logit_scale


@pytest.mark.parametrize("new_size", [120, 80])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_resized_head_is_still_bounded(new_size, tied, tmp_path):
    model, ids = DEFAULT.model(tie_word_embeddings=tied), random_ids(2, 11).clamp(max=70)
    expected = model(ids).logits
    model.resize_token_embeddings(new_size)
    with torch.no_grad():
        model.lm_head.rows[-1] *= 1e3
    logits = model(ids).logits
    assert logits.shape[-1] == model.lm_head.rows.shape[0] == new_size
    assert logits.abs().max() <= 10 * (1 + 1e-6)
    kept = min(new_size, 99) - 1
    assert_near(logits[..., :kept], expected[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(SphericalForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)


def test_the_unembedding_is_untied_by_default_and_found_by_name(tmp_path):
    model = SphericalForCausalLM(SphericalConfig(**SIZES))
    assert model.lm_head.rows is not model.model.embed_tokens.weight
    assert model.get_output_embeddings() is model.lm_head
    names = {name for name, _ in model.named_parameters()}
    attention = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    mlp = {f"mlp.{name}_proj.{kind}" for name in ("up", "down") for kind in ("weight", "bias")}
    assert names == {
        "model.embed_tokens.weight",
        "model.embed_positions.weight",
        "lm_head.rows",
        *(f"model.layers.{layer}.{name}" for layer in (0, 1) for name in attention | mlp),
    }
    baseline = SphericalForCausalLM(SphericalConfig(**SIZES, residual_norm="layer_norm", bounded_unembedding=False))
    norms = {"embedding_norm", *(f"layers.{layer}.{name}_norm" for layer in (0, 1) for name in ("attention", "mlp"))}
    assert {name for name, _ in baseline.named_parameters()} - names == {
        "lm_head.weight",
        *(f"model.{name}.{kind}" for name in norms for kind in ("weight", "bias")),
    }


def test_bf16_norms_are_computed_in_fp32():
    states = torch.randn(4, 4096).bfloat16()
    projected = DEFAULT.model().model.embedding_norm(states)
    assert projected.dtype == torch.bfloat16
    assert torch.equal(projected, (states.float() / states.float().norm(dim=-1, keepdim=True)).bfloat16())
    # fp16 would overflow at 65,504.
    assert DEFAULT.model().model.embedding_norm(torch.full((1, 4096), 300.0).half()).isfinite().all()


# The head, read by other code


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("case", SPHERICAL_CASES)
def test_hidden_times_weight_times_scale_is_the_model(case, tied):
    """As TRL computes losses: forward and backward."""
    model, ids = case.model(tie_word_embeddings=tied), random_ids(2, 11)
    gradients = []
    for outside in (False, True):
        model.zero_grad()
        logits = model(ids).logits
        if outside:
            head = model.get_output_embeddings()
            hidden = model.get_decoder()(ids).last_hidden_state
            assert_near(hidden @ head.weight.T * model.config.logit_scale, logits)
            assert head.bias is None
            logits = hidden @ head.weight.T * model.config.logit_scale
        loss_of(logits).backward()
        gradients.append(head_parameter(model).grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_tools_for_linear_layers_leave_the_bounded_head_alone():
    bounded, linear = DEFAULT.model(), Case("spherical", "unbounded").model()
    for model, found in ((bounded, False), (linear, True)):
        assert isinstance(model.lm_head, torch.nn.Linear) == found
    quantised = torch.ao.quantization.quantize_dynamic(bounded, {torch.nn.Linear}, inplace=False)
    assert type(quantised.lm_head) is type(bounded.lm_head)
    ids = random_ids(2, 11)
    difference = (quantised(ids).logits - bounded(ids).logits).abs().max()
    assert quantised(ids).logits.abs().max() > 1 > difference > 0


def test_the_scale_is_read_from_the_config_and_is_1_for_a_linear_head(tmp_path):
    model, ids = DEFAULT.model(), random_ids(2, 11)
    logits = model(ids).logits
    model.config.logit_scale = 5.0
    assert_near(model(ids).logits, logits / 2)
    model.save_pretrained(tmp_path)
    assert_near(SphericalForCausalLM.from_pretrained(tmp_path)(ids).logits, logits / 2)
    linear = SphericalConfig(**SIZES, bounded_unembedding=False)
    assert linear.logit_scale == 1
    # As folders of version 0.1 hold it, and as an override changes it.
    assert SphericalConfig.from_dict({**linear.to_dict(), "logit_scale": 10.0}).logit_scale == 1
    DEFAULT.config().save_pretrained(tmp_path)
    assert (
        SphericalForCausalLM(SphericalConfig.from_pretrained(tmp_path, bounded_unembedding=False)).config.logit_scale
        == 1
    )


# The published start


PUBLISHED = {"vocab_size": 114, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
PUBLISHED |= {"num_hidden_layers": 1, "max_position_embeddings": 3}


def assert_published_start(model):
    for name, weight in model.named_parameters():
        weight = weight.detach().flatten()
        if "embed" in name:
            assert weight.mean().abs() < 0.2 and 0.9 < weight.std() < 1.1, name
        else:
            bound = (512 if "down_proj" in name else 128) ** -0.5
            assert 0.9 * bound < weight.abs().max() <= bound, name
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_initial_weights_are_as_published(tmp_path):
    config = SphericalConfig(**PUBLISHED)
    assert_published_start(SphericalForCausalLM(config))
    # Weights that a folder lacks are drawn in the same way.
    SphericalModel(config).save_pretrained(tmp_path)
    loaded, info = SphericalForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.rows"}
    assert_published_start(loaded)


def test_a_folder_of_before_calls_the_rows_of_the_head_its_weight(tmp_path):
    model, ids = DEFAULT.model(tie_word_embeddings=False), random_ids(2, 11)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    saved["lm_head.weight"] = saved.pop("lm_head.rows")
    save_file(saved, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert "lm_head.rows" in load_file(tmp_path / "again" / "model.safetensors")


def test_published_number_of_parameters():
    # 113 rows of outputs: one less than a causal language model has.
    for norm, gains in (("sphere", 0), ("rms_norm", 3 * 128), ("layer_norm", 6 * 128)):
        model = SphericalForCausalLM(SphericalConfig(**PUBLISHED, residual_norm=norm))
        assert model.num_parameters() == 226_688 + 128 + gains
        model = SphericalForCausalLM(SphericalConfig(**PUBLISHED, residual_norm=norm, norm_affine=False))
        assert model.num_parameters() == 226_688 + 128


def test_the_sphere_starts_with_all_but_uniform_attention():
    """Scores on the sphere are smaller than the baseline's by d, and so the two interventions do not come apart."""
    deviations = {}
    for norm in ("sphere", "layer_norm"):
        torch.manual_seed(0)
        model = SphericalModel(SphericalConfig(**PUBLISHED, residual_norm=norm))
        states = model.embedding_norm(torch.randn(200, 128))
        attention = model.layers[0].self_attn
        heads = [linear(states).view(200, 4, 32).transpose(0, 1) for linear in (attention.q_proj, attention.k_proj)]
        deviations[norm] = (heads[0] @ heads[1].mT * attention.scaling).std().item()
    assert deviations["sphere"] == pytest.approx(0.0026, rel=0.1)
    assert deviations["layer_norm"] == pytest.approx(0.33, rel=0.1)


# Uniform routing


@pytest.mark.parametrize("case", UNIFORM_CASES)
def test_uniform_attention_weights_are_those_of_zero_scores(case):
    model = case.model(attn_implementation="eager")
    ids, mask = left_pad([random_ids(11), random_ids(4)])
    for weights in model(ids, attention_mask=mask, output_attentions=True).attentions:
        for row, length in enumerate((11, 4)):
            expected = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
            assert_near(weights[row, :, -length:, -length:], expected.expand(4, -1, -1))
            assert not weights[row, :, -length:, :-length].any()
    # With a cache, of the tokens before as well.
    cache = CACHES["dynamic"](model)
    model(ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
    weights = model(ids[:, 6:], attention_mask=mask, past_key_values=cache, output_attentions=True).attentions[0]
    assert weights.shape == (2, 4, 5, 11)
    assert_near(weights[0, 0, -1], torch.full((11,), 1 / 11))
    assert_near(weights[1, 0, -1, -4:], torch.full((4,), 1 / 4))
    # Whatever is faster makes no weights, as with softmax.
    assert not case.model()(ids, output_attentions=True).attentions


def test_a_short_document_late_in_a_long_row_keeps_its_precision():
    states = torch.randn(1, 8, 8192, generator=torch.Generator().manual_seed(0)) + 3
    first = torch.where(torch.arange(8192) < 8190, 0, 8190)[None, None]
    expected = states[..., 8190:].cumsum(-1)
    assert_near(running_sum(states, None, first)[..., 8190:], expected)
    # Single precision would not do.
    until = states.cumsum(-1)
    assert (until[..., 8190:] - until[..., 8189:8190] - expected).abs().max() > 10 * TOLERANCE


# Its state


@torch.no_grad()
def test_a_mean_of_8192_tokens_keeps_its_precision():
    model = UNIFORM.model(num_hidden_layers=1, max_position_embeddings=8192)
    ids = random_ids(1, 8192)
    expected = UNIFORM.model(num_hidden_layers=1, max_position_embeddings=8192).double()(ids).logits
    cache = CACHES["dynamic"](model)
    first = model(ids[:, :8000], past_key_values=cache).logits
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(8000, 8192)]
    assert_near(torch.cat((first, *steps), dim=1).double(), expected)


@pytest.mark.parametrize("cache_name", CACHES)
@torch.no_grad()
def test_the_state_has_the_size_of_one_token(cache_name):
    model = UNIFORM.model()
    cache = CACHES[cache_name](model)
    for length, total in ((1, 1), (11, 12), (1, 13)):
        model(random_ids(2, length), past_key_values=cache)
        assert cache.get_seq_length() == total
        for layer in cache.layers:
            assert [tuple(state.shape) for state in layer.conv_states.values()] == [(2, 32, 1), (2, 1, 1)]
            with pytest.raises(ValueError, match="not keys and values"):
                layer.keys  # noqa: B018
            assert layer.values is None
            assert all(state.dtype == torch.float32 for state in layer.conv_states.values())


@torch.no_grad()
def test_a_cache_of_another_batch_is_refused():
    model = UNIFORM.model()
    cache = model(random_ids(1, 6)).past_key_values
    with pytest.raises(ValueError, match="a batch of 1, not of 2"):
        model(random_ids(2, 5), past_key_values=cache)


@pytest.mark.parametrize("assistant", [DEFAULT, UNIFORM], ids=["softmax", "uniform"])
@pytest.mark.parametrize("case", [DEFAULT, UNIFORM], ids=["softmax", "uniform"])
def test_assisted_by_the_other_routing(case, assistant):
    model, assistant = generation_model(case), assistant.model(seed=3, tie_word_embeddings=False)
    assert generate(model, prompts(9), assistant_model=assistant) == plain_loop(model, prompts(9), greedy)


# Positions


@pytest.mark.parametrize("case", [SPHERICAL_CASES[0], UNIFORM_CASES[0]])
def test_positions_beyond_the_table_are_refused(case):
    model, ids = case.model(max_position_embeddings=8), random_ids(1, 9)
    message = "Position 8 lies beyond .*`max_position_embeddings`=8: shorten the sequence"
    positions = torch.arange(9)[None]
    mask = torch.ones_like(ids)
    for arguments in ({}, {"position_ids": positions}, {"attention_mask": mask}):
        with pytest.raises(ValueError, match=message):
            model(ids, **arguments)
    cache = model(ids[:, :8]).past_key_values
    with pytest.raises(ValueError, match=message):
        model(ids[:, 8:], past_key_values=cache)
    with pytest.raises(Exception, match=message):
        torch.compile(model, fullgraph=True, backend="aot_eager")(ids)
    # What fits does so padded or packed.
    assert_near(model(ids, position_ids=positions % 5).logits[:, 5:], model(ids[:, 5:]).logits)
    mask[:, 0] = 0
    assert_near(model(ids, attention_mask=mask).logits[:, 1:], model(ids[:, 1:]).logits)


# Refusals
