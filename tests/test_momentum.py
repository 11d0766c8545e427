"""What is particular to Momentum: the shear, Llama's weights, where a sequence starts, the state, refusals."""

import json
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
    left_pad,
    logits_error,
    positions_from_mask,
    random_ids,
)
from test_generation import generate, greedy, plain_loop, prompts
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    StaticCache,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from modeling_prism import MomentumForCausalLM, MomentumForSequenceClassification, reference


MOMENTUM_CASES = [case for case in CASES if case.id.startswith("momentum-")]
DEFAULT = Case("momentum", "default")
LLAMA = {**COMMON, "num_attention_heads": 4, "initializer_range": 0.2}
CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=24),
}


# The equations


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_published_gamma_equals_the_reference(layers):
    model = DEFAULT.model(momentum_gamma=None, num_hidden_layers=layers, initializer_range=0.08)
    assert logits_error(model) < TOLERANCE
    assert model.config.momentum_gamma == pytest.approx(4.17 * layers**-0.74)


def two_tokens_back(x, gamma):
    return [x[t] + gamma * (x[t] - x[max(t - 2, 0)]) for t in range(len(x))]


def zero_before_the_start(x, gamma):
    return [x[t] + gamma * (x[t] - (x[t - 1] if t > 0 else 0)) for t in range(len(x))]


def smoothed(x, gamma):
    return [x[t] - gamma * (x[t] - x[max(t - 1, 0)]) for t in range(len(x))]


@pytest.mark.parametrize("wrong", [two_tokens_back, zero_before_the_start, smoothed])
def test_negative_control_a_wrong_shear_does_not_match(monkeypatch, wrong):
    monkeypatch.setattr(reference, "shear", wrong)
    assert logits_error(DEFAULT.model()) > VISIBLE


@pytest.mark.parametrize("gamma", [0.15, 0.8, 4.17, -0.4])
def test_the_shear_is_the_published_high_pass_filter(gamma):
    attention = DEFAULT.model(momentum_gamma=gamma).double().model.layers[0].self_attn
    steps = torch.arange(400, dtype=torch.float64)
    for frequency in (0.0, 0.3, 1.44, math.pi):
        waves = torch.stack((torch.cos(frequency * steps), torch.sin(frequency * steps)), dim=-1)
        waves = waves[None]
        sheared = attention.shear(waves, torch.cat((waves[:, :1], waves[:, :-1]), dim=1))
        gain = (1 + 2 * gamma * (1 + gamma) * (1 - math.cos(frequency))) ** 0.5
        assert_near(sheared[0, 1:].norm(dim=-1), torch.full((399,), gain, dtype=torch.float64))
        if frequency == 0:
            assert torch.equal(sheared, waves)


# gamma = 0, and Llama's weights


def llama_and_momentum(tmp_path, llama_class=LlamaForCausalLM, **overrides):
    """A Llama with bias and grouped queries, saved, and the folder opened as a Momentum."""
    sizes = {**LLAMA, "num_key_value_heads": 2, "attention_bias": True, "num_hidden_layers": 3}
    torch.manual_seed(0)
    llama = llama_class(LlamaConfig(**sizes)).eval()
    llama.save_pretrained(tmp_path / "llama")
    momentum_class = {
        LlamaForCausalLM: MomentumForCausalLM,
        LlamaForSequenceClassification: MomentumForSequenceClassification,
    }[llama_class]
    momentum, info = momentum_class.from_pretrained(tmp_path / "llama", output_loading_info=True, **overrides)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return llama, momentum.eval()


@pytest.mark.parametrize("placement", ["post_rope", "pre_rope"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_gamma_zero_is_llama_bit_for_bit(tmp_path, attn_implementation, placement):
    overrides = {"momentum_gamma": 0.0, "momentum_placement": placement}
    llama, momentum = llama_and_momentum(tmp_path, **overrides)
    ids, mask = left_pad([random_ids(11), random_ids(4)])
    positions = positions_from_mask(mask)
    for model in (llama, momentum):
        model.set_attn_implementation(attn_implementation)
    for arguments in (
        {},
        {"attention_mask": mask},
        {"attention_mask": mask, "position_ids": positions},
        {"use_cache": False, "position_ids": torch.arange(11).remainder(4)[None]},
    ):
        for train in (True, False):
            outputs = [model.train(train)(ids, labels=ids, **arguments) for model in (llama, momentum)]
            assert torch.equal(outputs[0].logits, outputs[1].logits)
            for model, output in zip((llama, momentum), outputs):
                model.zero_grad()
                output.loss.backward()
            for (name, parameter), other in zip(llama.named_parameters(), momentum.parameters()):
                assert torch.equal(parameter.grad, other.grad), name
    kwargs = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    assert torch.equal(llama.generate(ids, **kwargs), momentum.generate(ids, **kwargs))


@pytest.mark.parametrize("head", [LlamaForCausalLM, LlamaForSequenceClassification])
def test_a_llama_folder_loads_with_a_gamma_of_choice(tmp_path, head):
    ids = random_ids(2, 11)
    llama, momentum = llama_and_momentum(tmp_path, head, momentum_gamma=0.7, momentum_streams="k")
    assert {name for name, _ in llama.named_parameters()} == {name for name, _ in momentum.named_parameters()}
    for (name, weight), other in zip(llama.named_parameters(), momentum.parameters()):
        assert torch.equal(weight, other), name
    assert (llama(ids).logits - momentum(ids).logits).abs().max() > VISIBLE
    momentum.save_pretrained(tmp_path / "momentum")
    saved = json.loads((tmp_path / "momentum" / "config.json").read_text())
    assert (saved["model_type"], saved["momentum_gamma"], saved["momentum_streams"]) == ("momentum", 0.7, "k")
    assert "layer_types" not in saved
    again = type(momentum).from_pretrained(tmp_path / "momentum")
    assert torch.equal(again(ids).logits, momentum(ids).logits)


def test_a_llama_folder_loads_with_the_published_gamma(tmp_path):
    _, momentum = llama_and_momentum(tmp_path)
    assert momentum.config.momentum_gamma == 4.17 * 3**-0.74
    _, momentum = llama_and_momentum(tmp_path, momentum_gamma=None)
    assert momentum.config.momentum_gamma == 4.17 * 3**-0.74
    momentum.save_pretrained(tmp_path / "momentum")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "momentum").config.momentum_gamma == 4.17 * 3**-0.74
    _, momentum = llama_and_momentum(tmp_path, momentum_gamma=[0.5, 0.0, 1.0])
    assert momentum.config.layer_types == ["previous_token", "full_attention", "previous_token"]
    assert [layer.self_attn.gamma for layer in momentum.model.layers] == [0.5, 0.0, 1.0]


def test_gamma_can_be_set(tmp_path):
    model, ids = DEFAULT.model(), random_ids(2, 9)
    for gamma in (0.3, [0.0, 0.7]):
        model.set_momentum_gamma(gamma)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert again.config.momentum_gamma == gamma
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert torch.equal(again.generate(ids, max_new_tokens=4), model.generate(ids, max_new_tokens=4))
    model.config.momentum_gamma = None
    assert model.config.momentum_gamma == model.model.layers[1].self_attn.gamma == 4.17 * 2**-0.74


def test_no_parameters_are_added():
    config = DEFAULT.config()
    llama = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))
    assert MomentumForCausalLM(config).num_parameters() == llama.num_parameters()


# Where a sequence starts


# Without position ids, rotary distances count the padding between tokens: there is nothing to compare with.


def test_documents_told_apart_by_a_mask_of_four_dimensions():
    model, ids = DEFAULT.model(), random_ids(1, 11)
    positions = torch.cat((torch.arange(4), torch.arange(7)))[None]
    document = (torch.arange(11) >= 4).long()
    allowed = (document[:, None] == document) & torch.ones(11, 11, dtype=torch.bool).tril()
    expected = model(ids, position_ids=positions).logits
    assert_near(model(ids, position_ids=positions, attention_mask=allowed[None, None]).logits, expected)
    additive = torch.zeros(11, 11).masked_fill(~allowed, torch.finfo(torch.float).min)
    assert_near(model(ids, position_ids=positions, attention_mask=additive[None, None]).logits, expected)


# The state


@torch.no_grad()
def test_the_cache_keeps_its_size():
    for variant, heads in (("default", 8), ("keys", 4), ("queries", 4), ("grouped", 6)):
        model = Case("momentum", variant).model()
        cache = model(random_ids(2, 11)).past_key_values
        for layer in cache.layers:
            keys = (2, model.config.num_key_value_heads, 11, 8)
            assert tuple(layer.keys.shape) == tuple(layer.values.shape) == keys
            # One token, whatever was prefilled.
            assert tuple(layer.conv_states[0].shape) == (2, heads * 8, 1)
    cache = Case("momentum", "per_layer").model()(random_ids(2, 11)).past_key_values
    assert [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers] == [True, False, True]


@torch.no_grad()
def test_the_cache_holds_sheared_keys():
    model, ids = Case("momentum", "keys").model(), random_ids(1, 11)
    sheared = model(ids).past_key_values.layers[0].keys
    plain = Case("momentum", "keys").model(momentum_gamma=0.0)(ids).past_key_values.layers[0].keys
    previous = torch.cat((plain[:, :, :1], plain[:, :, :-1]), dim=2)
    assert_near(sheared, plain + 0.8 * (plain - previous))


def test_assisted_by_llama_and_assisting_llama(tmp_path):
    llama, momentum = llama_and_momentum(tmp_path, momentum_gamma=0.7)
    for model, assistant in ((llama, momentum), (momentum, llama)):
        expected = plain_loop(model, prompts(9), greedy)
        assert generate(model, prompts(9), assistant_model=assistant) == expected


# Refusals
