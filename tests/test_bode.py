"""The Bode experiment at toy size, and that it would notice another filter."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from modeling_prism import MomentumConfig
from modeling_prism.analysis import momentum, response
from modeling_prism.modeling_momentum import MomentumAttention
from tests.families import FAMILIES, Case, random_ids
from training.data import train_tokenizer
from training.experiments.bode import report, run


pytestmark = pytest.mark.experiment

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": True}
THETA = momentum.rotary_frequencies(8, 10000.0)
OMEGAS = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)


@pytest.fixture
def command(run_experiment, tmp_path, corpus, toy_recipe, in_checkout, in_this_process):
    """Two arms at toy size: (options) -> rows of results.jsonl."""
    MomentumConfig(**SIZES).save_pretrained(tmp_path / "model")
    toy = {"recipe": toy_recipe(per_device_train_batch_size=2), "model_config": tmp_path / "model"}
    toy |= {"dataset_name": corpus, "max_steps": 2, "num_frequencies": 5, "num_stories": 4}
    toy |= {"seeds": 1, "arms": ["momentum", "gamma-0"]}
    return lambda **options: run_experiment("bode", **{**toy, **options})


@pytest.fixture
def trained_tokenizer():
    return train_tokenizer(Dataset.from_list([{"text": "a story"}]), 258)


def test_the_experiment(command, tmp_path, capsys):
    results, (sheared, plain) = tmp_path / "results", command()
    assert (sheared["arm"], plain["arm"], sheared["seed"]) == ("momentum", "gamma-0", 1)
    assert sheared["gammas"] == pytest.approx([4.17 * 2**-0.74] * 2, rel=1e-4) and plain["gammas"] == [0, 0]
    for row in (sheared, plain):
        found = row["response"]
        assert found["fp32"]["response"] < 1e-5 < found["bf16"]["response"] < 0.05
        assert found["text"]["response"] < 1e-4
        assert max(found["fp32"]["by_plane"]) == found["fp32"]["response"]
        assert row["noise"]["gain"][1] == pytest.approx(row["noise"]["gain_formula"][1], rel=0.05)
        for model in ("trained", "untrained"):
            tables = row["text"][model]
            assert torch.tensor(tables["keys"]["amplification"]).shape == (2, 4)
            assert torch.tensor(tables["shares"]).sum(0).tolist() == pytest.approx([1, 1], abs=1e-3)
        assert row["text"]["trained"] != row["text"]["untrained"]
    assert sheared["response"]["controls"] == {
        "gamma + 0.1": pytest.approx(0.2, abs=0.01),
        "other placement": pytest.approx(2 * sheared["gammas"][0] * math.sin(0.5), rel=1e-3),
        "planes reversed": pytest.approx(2 * sheared["gammas"][0] * math.sin(0.4995), rel=1e-3),
    }
    assert plain["response"]["controls"] == {
        "gamma + 0.1": pytest.approx(0.2, abs=0.01),
        "other placement": None,
        "planes reversed": None,
    }
    assert plain["text"]["trained"]["keys"]["amplification"] == [[1] * 4] * 2
    table = (results / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("| momentum | ") == 6
    settings = json.loads((results / "settings.json").read_text())
    assert settings["max_steps"] == 2 and settings["dataset_name"] == Path(settings["dataset_name"]).name
    assert all((results / name).stat().st_size > 10_000 for name in ("bode.png", "planes.png"))


def test_the_greatest_deviation_is_found_and_named():
    formula = run.formula_of(MomentumConfig(**SIZES), OMEGAS, THETA)
    assert run.deviation(formula, formula, OMEGAS)["response"] == 0
    measured = formula.clone()
    measured[1, 0, 2, 6] *= 10 ** (1 / 20)
    measured[0, 1, 3, 4] *= torch.exp(torch.tensor(0.01j))
    found = run.deviation(measured, formula, OMEGAS)
    assert found["where"] == {"stream": "keys", "layer": 0, "plane": 2, "omega": pytest.approx(math.pi / 2, abs=1e-4)}
    assert found["gain_db"] == pytest.approx(1) and found["phase_degrees"] == pytest.approx(
        math.degrees(0.01), rel=1e-4
    )
    assert [value > 0 for value in found["by_plane"]] == [False, False, True, True]


@pytest.mark.parametrize("variant", FAMILIES["momentum"].variants)
def test_the_right_formula_and_wrong_ones(variant):
    """Every way to shear: on its own formula, and on none of another."""
    model = Case("momentum", variant).model()
    found = run.measure_responses(model, model, list(random_ids(8, 40)), OMEGAS)
    assert found["fp32"]["response"] < 1e-5 and found["text"]["response"] < 1e-4
    wrong = {name: value for name, value in found["controls"].items() if value is not None}
    assert min(wrong.values()) > 0.1
    assert wrong.keys() == found["controls"].keys() - ({"planes reversed"} if variant == "pre_rope" else set())


@pytest.mark.parametrize("variant", ["default", "pre_rope", "per_layer"])
def test_white_noise(variant):
    found = run.measure_noise(Case("momentum", variant).model())
    assert found["response"] < 0.06
    assert found["gain"][0] == pytest.approx(found["gain_formula"][0], rel=0.02)


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_the_response_on_text_shows_another_filter(lag, monkeypatch):
    """A shear with the wrong lag, and one that reaches further back than the taps that are fitted."""

    def shear(self, states, previous):
        previous = torch.cat((states[:, :1].expand(-1, lag, -1), states[:, :-lag]), dim=1)
        return states + self.gamma * (states - previous)

    monkeypatch.setattr(MomentumAttention, "shear", shear)
    model = Case("momentum", "default").model()
    measured = run.stack_streams(response.text_response(model, list(random_ids(8, 40)), OMEGAS))
    found = run.deviation(measured, run.formula_of(model.config, OMEGAS, THETA), OMEGAS)
    assert found["response"] < 1e-4 if lag == 1 else found["response"] > 0.5
    if lag == 2:
        right = momentum.transfer_function(2 * (OMEGAS + THETA[:, None]), model.config.momentum_gamma)
        assert (measured - right).abs().max() < 1e-4


# Energy: predicted from a spectrum, and counted


@pytest.mark.parametrize("placement", ["post_rope", "pre_rope"])
@pytest.mark.parametrize("gamma", [-0.4, 0.8])
def test_energy_of_constant_and_white_content(gamma, placement):
    omegas = torch.arange(-32, 32, dtype=torch.float64) * math.pi / 32
    H = momentum.plane_response(omegas, THETA, gamma, placement)
    flat = momentum.energy_gain(torch.ones_like(omegas), H)
    assert torch.allclose(flat, torch.full_like(flat, momentum.noise_gain(gamma)))
    constant = momentum.energy_gain((omegas == 0).double(), H)
    theta = THETA if placement == "post_rope" else torch.zeros_like(THETA)
    assert torch.allclose(constant, momentum.transfer_function(theta, gamma).abs().square())


@pytest.mark.parametrize("placement", ["post_rope", "pre_rope"])
def test_energy_of_text_is_that_of_its_spectrum(placement):
    """Content that is neither constant nor white: the same text, once by its spectrum and once counted."""
    model = Case("momentum", "default").model(momentum_placement=placement, max_position_embeddings=256)
    windows = list(random_ids(6, 256))
    # Each token four times, so that content changes slowly.
    windows = [window[:64].repeat_interleave(4) for window in windows]
    omegas, spectra = response.content_spectra(model, windows)
    assert omegas.shape == (64,) and (omegas.diff() > 0).all() and spectra["keys"].shape == (2, 4, 64)
    tables = response.measured_dc_ac(model, windows)
    other = {"post_rope": "pre_rope", "pre_rope": "post_rope"}[placement]
    for stream, index in (("queries", 0), ("keys", 1)):
        energy, before = (
            tables[stream][f"content_dc{suffix}"] + tables[stream][f"content_ac{suffix}"]
            for suffix in ("_sheared", "")
        )
        right, wrong = (
            momentum.energy_gain(spectra[stream], run.formula_of(model.config, omegas, THETA, placement=each)[index])
            for each in (placement, other)
        )
        assert torch.allclose(right, energy / before, rtol=0.05)
        # Far from white, and another placement is noticed where planes turn fast.
        assert (right < 0.8 * momentum.noise_gain(0.8)).all()
        assert ((wrong / (energy / before))[:, 0] - 1).abs().min() > 0.1


def test_stories_that_are_too_short_are_counted(trained_tokenizer):
    with pytest.raises(ValueError, match="Only 1 validation stories have 8 tokens, of `num_stories`=2"):
        run.full_windows(trained_tokenizer, ["short", "a story of many more letters"], 8, 2)


def test_a_window_has_to_hold_a_segment():
    with pytest.raises(ValueError, match="`nperseg`=32 needs windows of more tokens: the shortest has 32"):
        response.content_spectra(Case("momentum", "default").model(), [random_ids(32)], nperseg=32)


# What is made of the rows


def test_errors_are_those_of_what_is_sheared():
    """Of keys of layer 1 alone: predicted 4, 1 and 5 where 4 was measured."""
    table = {"amplification": [[9.0], [4.0]], "predicted": [[1.0], [4.0]]}
    row = {"gammas": [0.0, 1.0], "streams": "k", "placement": "pre_rope", "plane_frequencies": [1.0]}
    row |= {"text": {"trained": {"queries": table, "keys": table}}}
    row |= {"noise": {"gain_formula": [[1.0, 1.0], [1.0, 5.0]]}}
    assert report.sheared(row) == [(1, 1)]
    assert [error.tolist() for error in report.prediction_errors(row, "trained")] == [[0.0], [0.75], [0.25]]


# Bad input


def test_more_is_refused_before_anything_is_trained(command, tmp_path):
    with pytest.raises(ValueError, match="4 numbers for `num_hidden_layers`=2"):
        command(arms="per-layer")
    with pytest.raises(ValueError, match="no recipe 'nowhere.yaml'"):
        command(recipe="nowhere.yaml")
    with pytest.raises(ValueError, match="`num_stories`=998, but the validation part has 20"):
        command(num_stories=998)
    assert not (tmp_path / "runs").exists()
