"""The experiment `banks`: what its changes do to a Prism, and the directions that attention is compared with."""

import pytest
import torch
from families import Case, random_ids, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_prism.analysis.prism import ascent_direction
from training.experiments.banks.arms import banks_of
from training.experiments.banks.ascent import cosine_without, directions, measure_ascent, random_frame
from training.experiments.banks.change import limited, mean_outputs, replaced


pytestmark = pytest.mark.experiment

PRISMS = [Case("prism", "default"), Case("prism", "stepped")]
LENGTH = 13


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("case", PRISMS, ids=str)
def test_a_window_is_a_mask_for_these_heads_alone(case):
    model, ids = case.model(), random_ids(2, LENGTH)
    heads = list(range(model.config.num_attention_heads))
    whole = logits(model, ids)
    with limited(model, LENGTH, heads):
        assert torch.allclose(logits(model, ids), whole, atol=1e-6)
    with limited(model, 1, []):
        assert torch.allclose(logits(model, ids), whole, atol=1e-6)
    model.set_attn_implementation("eager")
    with limited(model, 4, [1]), torch.no_grad():
        maps = model(ids, use_cache=False, output_attentions=True).attentions
    for attention in maps:
        lags = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
        assert (attention[:, 1, lags >= 4] == 0).all() and (attention[:, 0, lags >= 4] > 0).all()
    assert torch.allclose(logits(model, ids), whole, atol=1e-5)


@pytest.mark.parametrize("case", PRISMS, ids=str)
def test_a_head_with_its_mean_output_reads_nothing(case):
    model, ids = case.model(), random_ids(2, LENGTH)
    heads, layers = list(range(model.config.num_attention_heads)), list(range(model.config.num_hidden_layers))
    means = mean_outputs(model, ids)
    whole = logits(model, ids)
    with replaced(model, means, heads, layers):
        turned = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
        assert torch.allclose(logits(model, turned)[:, -1], logits(model, ids)[:, -1], atol=1e-5)
    assert not torch.allclose(logits(model, turned)[:, -1], whole[:, -1], atol=1e-2)
    with replaced(model, means, heads[:1], layers[:1]):
        one = logits(model, ids)
    assert not torch.allclose(one, whole, atol=1e-4)
    with replaced(model, means, [], layers):
        assert torch.equal(logits(model, ids), whole)


def test_the_gradient_is_that_of_the_objective_and_of_one_token():
    generator = torch.Generator().manual_seed(0)
    Z, U = torch.randn(9, 6, generator=generator), torch.randn(4, 3, 6, generator=generator)
    weights = torch.tensor([1.0, 1.0, -0.3, -0.3])
    whole, alone = directions(Z, U, weights, None)
    assert torch.allclose(whole, ascent_direction(Z, U[:2], U[2:], 0.3), atol=1e-12)
    # With little precision the logarithm is linear, and no token meets another.
    whole, alone = directions(Z, U, weights, None, eps2=1e9)
    assert torch.allclose(whole, alone, rtol=1e-6, atol=0)
    # A turn of all codes by one angle changes no rate; turns by position do.
    U = torch.randn(4, 4, 6, generator=generator)
    same = torch.full((1, 4, 9, 2), 0.7).double()
    by_position = same * torch.arange(9.0)[:, None]
    turned = [directions(Z, U, weights, (angle.cos(), angle.sin()))[0] for angle in (same, by_position)]
    assert torch.allclose(turned[0], directions(Z, U, weights, None)[0], atol=1e-12)
    assert not torch.allclose(turned[1], turned[0], atol=1e-3)


def test_cosines_leave_out_what_they_are_told_to():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 50, 8, generator=generator)
    assert cosine_without(a + 5 * b, a, b) == pytest.approx(1.0)
    assert cosine_without(a + 5 * b, a, c) < 0.5
    assert cosine_without(a + 5 * b - 3 * c, -a, b, c) == pytest.approx(-1.0)
    U = torch.randn(4, 3, 6, generator=generator)
    other = random_frame(U)
    assert other.shape == U.shape and not torch.allclose(other, U)
    assert torch.allclose(torch.linalg.svdvals(other.flatten(0, 1)), torch.linalg.svdvals(U.flatten(0, 1)), atol=1e-5)


def test_attention_to_oneself_alone_is_the_term_of_the_token():
    model = Case("prism", "default").model()
    ids = random_ids(1, LENGTH)
    with limited(model, 1, list(range(model.config.num_attention_heads))):
        found = measure_ascent(model, [ids[0]])
    assert found["plain, alone"] == pytest.approx([1.0] * model.config.num_hidden_layers, abs=1e-6)
    assert max(found["plain, alone, random dictionary"]) < 0.9


def test_mixed_heads_come_from_both_banks():
    banks = banks_of(8, 4)
    assert banks["signal"] + banks["noise"] == list(range(8))
    for name, heads in banks.items():
        assert len(set(heads)) == 4 and (name in ("signal", "noise") or 0 < sum(head < 4 for head in heads) < 4)


def test_the_command_adds_models_and_repeats_none(run_experiment, finished, corpus, in_checkout, in_this_process):
    options = {"dataset_name": corpus, "num_blocks": 3, "num_windows": 2}
    (row,) = run_experiment("banks", models=[finished[0]], **options)
    assert row["arm"] == "prism" and row["seed"] == 42 and row["model"] == "finished"
    assert row["raised"]["nothing"]["every token"] == [0.0, 0.0]
    assert row["raised"]["signal: mean"]["every token"][0] != row["raised"]["noise: mean"]["every token"][0]
    assert run_experiment("banks", models=[finished[0]], **options) == [row]


def test_models_that_cannot_be_told_apart_or_measured_are_refused(run_experiment, tmp_path, corpus, in_this_process):
    with pytest.raises(ValueError, match="`models` must differ in the last part of their paths"):
        run_experiment("banks", models=["a/model", "b/model"], dataset_name=corpus)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="is a gpt2: give a Prism, or a model that is built like a Llama"):
        run_experiment("banks", models=[tmp_path / "gpt2"], dataset_name=corpus)
