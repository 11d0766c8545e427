"""The experiment on Prism's banks: what it measures, its statistics, and the command at toy size."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modeling_prism import PrismConfig, PrismForCausalLM
from modeling_prism.analysis import heads, untrained_copy
from modeling_prism.analysis.collect import Batch
from training.data import DataArguments, load_texts, train_tokenizer
from training.experiments.common.jobs import read_results
from training.experiments.common.statistics import by_arm
from training.experiments.head_specialisation import measure, report, run
from training.experiments.head_specialisation.arms import ARMS
from training.experiments.head_specialisation.effects import BankMetric, Effect, bank_metric, effect_of
from training.loading import load_config
from training.options import parse_arguments


pytestmark = pytest.mark.experiment

TOY = "hidden_size=8,intermediate_size=12,num_hidden_layers=2,num_attention_heads=4,num_signal_heads=2"


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


# Arms


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_changes_what_it_says(name, tmp_path):
    arguments = run.Arguments()
    model_arguments, _, training_arguments = parse_arguments(arguments.command(name, 1, tmp_path))
    config = load_config(model_arguments)
    default = PrismConfig()
    changed = {
        field: getattr(config, field)
        for field in ("signal_rope_theta", "noise_rope_theta", "dictionary_expansion")
        if getattr(config, field) != getattr(default, field)
    }
    golden = (1 + math.sqrt(5)) / 2
    assert changed == {
        "equal-bases": {"signal_rope_theta": 10000, "noise_rope_theta": 10000},
        "swapped-bases": pytest.approx(
            {"signal_rope_theta": default.noise_rope_theta, "noise_rope_theta": default.signal_rope_theta}
        ),
        "ratio-3": pytest.approx({"signal_rope_theta": 30000, "noise_rope_theta": 10000 / 3}),
        "ratio-golden": pytest.approx({"signal_rope_theta": 10000 * golden, "noise_rope_theta": 10000 / golden}),
        "R-1": {"dictionary_expansion": 1},
    }.get(name, {})
    # pretrain's own defaults are these, as published, unless an arm says otherwise.
    expected = {"lambda-0": (0, 0), "lambda-fixed": (0.1, 0.1), "lambda-1": (1, 1)}.get(name, (0.01, 0.1))
    schedule = training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end
    assert schedule == expected
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (128, 512, 4)
    assert config.head_dim == (32 if name == "R-1" else 64) and config.num_signal_heads == 4
    assert (training_arguments.max_steps, training_arguments.learning_rate) == (400, 3e-3)


# Measuring


def batch_of(attentions: torch.Tensor) -> Batch:
    """A batch with the maps (B, H, S, S) of one layer, no token padded."""
    B, S = attentions.shape[0], attentions.shape[-1]
    ids, valid = torch.zeros(B, S, dtype=torch.long), torch.ones(B, S, dtype=torch.bool)
    return Batch(torch.arange(B), ids, valid, torch.zeros(B, S, 1), (), (attentions,))


def test_the_first_token_is_taken_away():
    A = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.2, 0.6, 0], [0.6, 0.1, 0.1, 0.2]])[None, None]
    rest = measure.without_first_token(batch_of(A))
    expected = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.25, 0.25, 0.5]])
    torch.testing.assert_close(rest.attentions[0][0, 0], expected)
    assert rest.input_ids.shape == rest.valid.shape == (1, 3)
    distance = heads.attention_distance(rest.attentions[0])[0, 0]
    torch.testing.assert_close(distance, torch.tensor([0, 0.25, 0.25 * 2 + 0.25]))
    # All attention on the first token leaves none, which is not the greatest distance.
    A[..., 3, :] = torch.tensor([1.0, 0, 0, 0])
    assert measure.without_first_token(batch_of(A)).attentions[0][0, 0, 2].tolist() == [0, 0, 1]


def test_figures_are_those_of_the_maps():
    torch.manual_seed(0)
    config = PrismConfig(
        vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=6,
        num_signal_heads=2, initializer_range=1.0, noise_coefficient=0.5,
    )  # fmt: skip
    model = PrismForCausalLM(config).eval()
    windows = list(torch.randint(50, (5, 40)))
    measured = measure.measure_heads(model, windows)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        A = torch.stack(model(torch.stack(windows), output_attentions=True).attentions)
    rest = A[..., 1:, 1:] / A[..., 1:, 1:].sum(-1, keepdim=True)
    for name, maps in (("", A), (", without first token", rest)):
        distance, entropy = heads.attention_distance(maps).mean((1, 3)), heads.attention_entropy(maps).mean((1, 3))
        torch.testing.assert_close(torch.tensor(measured[f"distance{name}"]), distance, rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(measured[f"entropy{name}"]), entropy, rtol=2e-3, atol=1e-4)
        centroid = heads.spectral_centroid(*heads.attention_spectrum(maps, num_points=40))
        torch.testing.assert_close(torch.tensor(measured[f"centroid{name}"]), centroid, rtol=2e-3, atol=1e-4)
    lags = heads.attention_by_lag(A)
    for bank, part in enumerate((lags[:, :2], lags[:, 2:])):
        edges = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]
        expected = [part[..., a:b].mean().item() for a, b in zip(edges, edges[1:])]
        assert measured["lags by bank"][bank] == pytest.approx(expected, rel=2e-3)
    # The two sets of figures differ, and so do the banks.
    assert measured["distance"] != measured["distance, without first token"]
    assert measured["lags by bank"][0] != measured["lags by bank"][1]


def test_windows_are_the_beginnings_of_long_texts():
    texts = load_texts(DataArguments(num_train_stories=20, num_validation_stories=6))["train"]["text"]
    tokenizer = train_tokenizer(load_texts(DataArguments(num_train_stories=20))["train"], 300)
    windows = measure.choose_windows(tokenizer, ["Too short.", *texts], 32, 4)
    assert [len(window) for window in windows] == [32] * 4
    for window, text in zip(windows, texts):
        assert window[0] == tokenizer.bos_token_id and text.startswith(tokenizer.decode(window[1:])[:20])
    assert len(measure.choose_windows(tokenizer, texts[:3], 32, 4)) == 3
    with pytest.raises(ValueError, match="No validation text has 32 tokens"):
        measure.choose_windows(tokenizer, ["Too short."], 32, 4)


def test_banks_with_equal_bases_and_exchanged_weights_are_exchanged():
    """The negative control of `equal_bases`: only weights tell the banks apart; with two bases, more does."""
    torch.manual_seed(0)
    config = PrismConfig(
        vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        signal_rope_theta=1000.0, noise_rope_theta=10.0, initializer_range=1.0,
    )  # fmt: skip
    model = PrismForCausalLM(config).eval()
    # Scores that matter.
    model.model.layers[0].self_attn.dictionary.weight.data *= 6
    exchanged = PrismForCausalLM(config).eval()
    exchanged.load_state_dict(model.state_dict())
    dictionary = exchanged.model.layers[0].self_attn.dictionary.weight
    dictionary.data = dictionary.data.roll(len(dictionary) // 2, 0)
    windows = list(torch.randint(50, (3, 40)))

    def distances(model):
        return torch.tensor(measure.measure_heads(model, windows)["distance"])[0]

    with measure.equal_bases(model), measure.equal_bases(exchanged):
        equal = distances(model)
        torch.testing.assert_close(distances(exchanged), equal.roll(2), rtol=1e-3, atol=1e-3)
    assert model.model.rotary_emb.thetas == [1000.0, 10.0]
    assert (distances(exchanged) - distances(model).roll(2)).abs().max() > 0.05
    assert (distances(model) - equal).abs().max() > 0.05


def test_noise_heads_that_are_not_heard_only_decay(command, tmp_path):
    """lambda 0, three steps of AdamW: rows of noise heads are the initial ones times (1 - lr * wd) a step."""
    command(arms="lambda-0")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "lambda-0-seed0")
    start = untrained_copy(model, 0)
    ratios = []
    for layer, before in zip(model.model.layers, start.model.layers):
        signal, noise = (layer.self_attn.dictionary.weight / before.self_attn.dictionary.weight).detach().chunk(2)
        ratios.append(noise)
        assert (signal - 1).abs().max() > 0.01
    ratios = torch.cat(ratios)
    assert 0.99 < ratios.mean() < 1 and ratios.std() < 1e-5


def test_what_the_construction_imposes():
    """One value by hand: the kernel at lag 1 is the mean of the cosines of 32 frequencies."""
    line = next(line for line in report.make_construction_table().splitlines() if line.startswith("| 10000 |"))
    kernel = sum(math.cos(10000 ** (-plane / 32)) for plane in range(32)) / 32
    assert line.startswith(f"| 10000 | {kernel:.2f} | ") and line.endswith(" | 112.4 | 93.4 | 46.5 |")


def test_the_published_rows_agree_with_their_settings():
    folder = Path("training/experiments/head_specialisation")
    settings = json.loads((folder / "settings.json").read_text())
    arguments = run.Arguments(**settings)
    for arm, rows in by_arm(read_results(folder)).items():
        for row in rows:
            _, data, training = parse_arguments(arguments.command(arm, row["seed"], folder))
            assert row["tokens_seen"] == training.max_steps * training.per_device_train_batch_size * data.block_size
            assert row["learning_rate"] == training.learning_rate and row["noise_coefficient"] == ARMS[arm].lambda_end
            assert (row["windows"], row["window_length"]) == (settings["num_windows"], data.block_size)


# Statistics


def test_bank_metric():
    # Signal 1 2 3 4, noise 5 6 7 0: three of four noise heads are above all signal heads, one is below.
    figure = bank_metric([[1.0, 2, 5, 6], [3, 4, 7, 0]], 2)
    assert figure == BankMetric(2.5, 4.5, cliffs_delta=(4 - 12) / 16) and figure.difference == -2
    # Banks of unequal size.
    assert bank_metric([[9.0, 1, 2]], 1) == BankMetric(9, 1.5, 1)


def test_effect_is_paired_by_seed():
    rows = [
        {
            "seed": seed,
            "num_signal_heads": 1,
            "untrained": {"x": [[a, 0.0]]},
            "trained": {"x": [[b, 1.0]]},
            "trained, equal bases": {"x": [[a, b]]},
        }
        for seed, (a, b) in enumerate(((1.0, 5.0), (2.0, 5.0), (3.0, 11.0)))
    ]
    effect = effect_of(rows, "x")
    assert effect.differences("untrained") == [1, 2, 3] and effect.differences("trained") == [4, 4, 10]
    assert effect.added == [3, 2, 7] and effect.differences("equal_bases") == [-4, -3, -8]
    # Only seeds that both have, whatever their order.
    other = effect_of([{**rows[0], "seed": 2}, {**rows[1], "seed": 0}, {**rows[2], "seed": 7}], "x")
    assert effect.added_less(other) == [3 - 2, 7 - 3]
    assert effect.mean("trained", "signal") == 7 and effect.mean("untrained", "noise") == 0


def test_slope_over_bases():
    """Differences of 1, 2 and 6 ln(signal base / noise base) in three seeds, whose models share an offset."""

    def effect(name, factors=(1, 2, 6), seeds=(0, 1, 2)):
        ratio = math.log(ARMS[name].fields["signal_rope_theta"] / ARMS[name].fields["noise_rope_theta"])
        trained = [BankMetric(factors[seed] * ratio + 100 * seed, 0, 0) for seed in seeds]
        untrained = [BankMetric(ratio + 100 * seed, 0, 0) for seed in seeds]
        return Effect(list(seeds), untrained, trained, [BankMetric(100 * seed, 0, 0) for seed in seeds])

    effects = {name: effect(name) for name in ("default", "equal-bases", "swapped-bases")}
    line = report.make_base_line(effects, 2)
    # 3 +- t(0.975, 2) * sqrt(7 / 3). The offsets, which one line through all models would take for noise, cancel.
    assert "over the 3 arms" in line and "as trained +3.00 (-3.57 to +9.57), each seed +1.00, +2.00, +6.00;" in line
    # Of these, 1 per unit was there before training.
    assert "added by training +2.00 (-4.57 to +8.57), each seed" in line
    assert "both bases 10000 +0.00 (+0.00 to +0.00), each seed +0.00, +0.00, +0.00." in line
    # An arm that differs in lambda takes no part, nor does a seed that an arm lacks.
    assert report.make_base_line({**effects, "lambda-1": effect("lambda-1", (9, 9, 9))}, 2) == line
    unfinished = {**effects, "equal-bases": effect("equal-bases", seeds=(2, 0))}
    assert "as trained +3.50 (" in (line := report.make_base_line(unfinished, 2)) and "seed +1.00, +6.00;" in line
    assert "as trained +1.00, each" in report.make_base_line({name: effect(name, seeds=(0,)) for name in effects}, 2)
    # No line: two points, and no seed in common.
    assert report.make_base_line({name: effects[name] for name in ("default", "equal-bases")}, 2) == ""
    assert report.make_base_line({**unfinished, "default": effect("default", seeds=(1,))}, 2) == ""


def test_arms_that_are_compared_with_lambda_fixed_differ_in_lambda_alone():
    fixed = ARMS["lambda-fixed"]
    alike = [
        name
        for name, arm in ARMS.items()
        if arm != fixed and arm.fields == fixed.fields and arm.lambda_start == arm.lambda_end
    ]
    assert fixed.lambda_start == fixed.lambda_end and report.COMPARED["lambda-fixed"] == alike


# The command


@pytest.fixture
def command(run_experiment, corpus, toy_recipe, in_this_process):
    """At toy size, in this process: (options) -> rows of results.jsonl."""

    def call(learning_rate=1e-2, **options):
        toy = {"recipe": toy_recipe(learning_rate=learning_rate), "dataset_name": corpus, "config_overrides": TOY}
        toy |= {"max_steps": 3, "num_windows": 4, "arms": "default", "seeds": 0}
        return run_experiment("head_specialisation", **{**toy, **options})

    return call


def test_the_command_writes_data_tables_and_plots_and_repeats_nothing(command, corpus, tmp_path, capsys):
    options = {"arms": ["default", "lambda-1"], "seeds": [0, 2]}
    rows = command(**options)
    assert [(row["arm"], row["seed"]) for row in rows] == list(itertools.product(("default", "lambda-1"), (0, 2)))
    for row in rows:
        assert row["noise_coefficient"] == (1.0 if row["arm"] == "lambda-1" else 0.1)
        assert row["windows"] == 4 and row["window_length"] == 32 and row["bits_per_byte"] > 0 and row["revision"]
        for state in ("trained", "untrained", "trained, equal bases"):
            for name in (*report.HEAD_METRICS, "distance, without first token"):
                assert torch.tensor(row[state][name]).shape == (2, 4)
        assert row["trained"]["distance"] != row["untrained"]["distance"]
    # Arms of a seed start from the same weights; lambda reaches the maps from the second layer on.
    starts = [row["untrained"]["entropy"] for row in rows]
    assert starts[0][0] == starts[2][0] != starts[1][0] and starts[0][1] != starts[2][1]

    results, runs = tmp_path / "results", tmp_path / "runs"
    settings = json.loads((results / "settings.json").read_text())
    assert settings == {
        "dataset_name": Path(corpus).name, "recipe": "recipe.yaml", "config_overrides": TOY, "max_steps": 3,
        "num_windows": 4,
    }  # fmt: skip
    table = (results / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("| lambda-1 |") == 1 + len(report.HEAD_METRICS) + 3
    plots = [results / f"{name}.png" for name in ("differences", "layers")]
    assert all(plot.stat().st_size > 10_000 for plot in plots)

    # Trained but not measured: it is measured, not trained again.
    trained = {file: file.stat().st_mtime_ns for file in runs.glob("*/model.safetensors")}
    (runs / "lambda-1-seed2.json").unlink()
    assert command(**options) == rows and len(trained) == 4
    assert trained == {file: file.stat().st_mtime_ns for file in runs.glob("*/model.safetensors")}


def test_the_untrained_copy_is_what_training_began_with(command, tmp_path):
    """At learning rate 0 the trained model is the initial one."""
    (row,) = command(learning_rate=0.0, seeds="3")
    assert row["trained"] == row["untrained"]
    assert report.effect_of([row], "distance").added == [0]
    folder = tmp_path / "runs" / "default-seed3"
    saved, model = load_file(folder / "model.safetensors"), AutoModelForCausalLM.from_pretrained(folder)
    for seed, same in ((3, True), (4, False)):
        weights = untrained_copy(model, seed).state_dict()
        assert all((weights[name] == value).all() for name, value in saved.items()) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": "nowhere/at/all"}, "`dataset_name`='nowhere/at/all' is neither"),
        ({"config_overrides": "width=3"}, "`config_overrides` names `width`"),
        ({"config_overrides": "num_signal_heads=5"}, "`num_signal_heads`=5 does not divide"),
    ],
)
def test_what_every_run_would_stumble_over_is_refused_before_any_starts(options, message, command, tmp_path):
    with pytest.raises(ValueError, match=message):
        command(**options)
    assert not (tmp_path / "runs").exists()
