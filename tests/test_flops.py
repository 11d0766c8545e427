import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from modeling_prism import PrismConfig, PrismModel, SphericalConfig
from training.flops import forward_flops_per_token, training_flops_per_token


V, D, F, L, S = 99, 32, 37, 2, 23
SIZES = {"vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": 4}
GPT2_SIZES = {"vocab_size": V, "n_embd": D, "n_inner": F, "n_layer": L, "n_head": 4}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}


# Multiply-adds a token, by hand.
@pytest.mark.parametrize(
    ("config", "multiply_adds"),
    [
        # U twice (8 d^2) and scores and values of width 4 d each, where the others have 4 d^2 and width d.
        (PrismConfig(**SIZES), L * (8 * D * D + 2 * S * 4 * D + 2 * D * F) + V * D),
        (PrismConfig(**SIZES, dictionary_expansion=1), L * (4 * D * D + 2 * S * 2 * D + 2 * D * F) + V * D),
        (PrismConfig(**SIZES, learned_position_embeddings=True), L * (8 * D**2 + 8 * S * D + 2 * D * F) + V * D),
        (GPT2Config(**GPT2_SIZES, **SPECIAL), L * (4 * D * D + 2 * S * D + 2 * D * F) + V * D),
        (GPTNeoXConfig(**SIZES, rotary_pct=1.0), L * (4 * D * D + 2 * S * D + 2 * D * F) + V * D),
        # Half as many key and value heads; a gated MLP has three matrices.
        (LlamaConfig(**SIZES, num_key_value_heads=2), L * (3 * D * D + 2 * S * D + 3 * D * F) + V * D),
        (SphericalConfig(**SIZES), L * (4 * D * D + 2 * S * D + 2 * D * F) + V * D),
        # Neither queries nor keys, and sums do not count: nothing grows with S.
        (SphericalConfig(**SIZES, attention_routing="uniform"), L * (2 * D * D + 2 * D * F) + V * D),
    ],
    ids=[
        "prism",
        "prism-expansion-1",
        "prism-learned-positions",
        "gpt2",
        "gpt_neox",
        "llama",
        "spherical",
        "spherical-uniform",
    ],
)
def test_flops_equal_the_formula(config, multiply_adds):
    assert forward_flops_per_token(config, S) == 2 * multiply_adds
    assert training_flops_per_token(config, S) == 3 * 2 * multiply_adds
    # The head reads one position of S.
    kept = forward_flops_per_token(config, S, logits_to_keep=1) * S
    assert kept == pytest.approx(2 * multiply_adds * S - 2 * V * D * (S - 1))


def test_causal_count_is_that_of_the_pairs_on_and_below_the_diagonal():
    pairs = S * (S + 1) / 2
    expected = L * (8 * D * D + 2 * 4 * D * pairs / S + 2 * D * F) + V * D
    assert forward_flops_per_token(PrismConfig(**SIZES), S, causal=True) == pytest.approx(2 * expected)


def test_model_and_config_agree_whatever_the_attention():
    config = PrismConfig(**SIZES)
    for attention in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        assert forward_flops_per_token(model, S) == forward_flops_per_token(config, S)
        # The model given is not touched.
        assert model.config._attn_implementation == attention
        assert model.device.type == "cpu"


def test_model_without_a_head_is_counted_without_it():
    config = PrismConfig(**SIZES)
    assert forward_flops_per_token(config, S) - forward_flops_per_token(PrismModel(config), S) == 2 * V * D


def test_meta_count_equals_a_real_pass():
    config = PrismConfig(**SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(V, (3, S)))
    assert counter.get_total_flops() / (3 * S) == forward_flops_per_token(config, S)


def test_refuses_an_empty_sequence():
    with pytest.raises(ValueError, match="sequence_length"):
        forward_flops_per_token(PrismConfig(**SIZES), 0)
