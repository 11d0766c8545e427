"""Experiments, end to end at toy size: they go on where they stopped and write what their READMEs show."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_prism import MomentumConfig, MomentumForCausalLM
from training.experiments import __main__ as experiments
from training.experiments.bode import run as bode
from training.experiments.common import arguments, stacks
from training.experiments.common.arguments import CommandArguments, SmallRunArguments, parse
from training.experiments.common.jobs import read_results, run_jobs
from training.experiments.common.readme import fill, markers, wrap
from training.experiments.common.statistics import (
    at_best_rate,
    first_step_at,
    interval_of_mean,
    mean_and_spread,
    rounded,
    with_interval,
)
from training.experiments.common.stories import above, at_best, best_rate, bits, standing
from training.experiments.grokking import run as grokking
from training.experiments.induction import report as induction_report
from training.experiments.induction import run as induction
from training.experiments.induction.arms import ARMS, LearnedShiftAttention
from training.experiments.recall_scaling import report as scaling_report
from training.experiments.recall_scaling import run as recall_scaling
from training.experiments.tinystories.kinds import KINDS, kinds_of


pytestmark = pytest.mark.experiment

ROOT = Path(__file__).parent.parent


STORY_EXPERIMENTS = {
    "tinystories": {"arms": ["llama", "momentum", "bigram"], "max_steps": 1},
    "prism_steps": {"arms": ["gpt-neox", "all", "bigram"], "max_steps": 10, "hidden_size": 16, "block_size": 32},
}


@pytest.mark.parametrize("name", STORY_EXPERIMENTS)
def test_story_experiment(name, run_experiment, tmp_path, corpus, toy_recipe, in_checkout, in_this_process, capsys):
    options = {"recipe": toy_recipe(), "dataset_name": corpus, **STORY_EXPERIMENTS[name]}
    floor_arm = options["arms"][-1]
    rows = run_experiment(name, **options, learning_rates=[1e-3, 1e-2])
    *runs, floor = rows
    assert len(runs) == 4 and floor["arm"] == floor_arm and "seed" not in floor
    # More seeds add their rows and repeat none; rows of a seed stand together, the first seed first.
    more = run_experiment(name, **options, learning_rates=[1e-3], seeds=[0, 1])
    assert len(more) == 7 and [row for row in more if row.get("seed") != 1] == rows
    for row in more:
        assert row["bits_per_byte"] > 0 and row["bits_per_byte"] != row["bits_per_byte_to_report"]
    table = (tmp_path / "results" / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 5
    assert (tmp_path / "results" / "bits_per_byte.png").stat().st_size > 10_000


def test_rates_are_chosen_on_one_half_and_reported_on_the_other():
    def row(arm, rate, seed, chosen, reported):
        return {"arm": arm, "learning_rate": rate, "seed": seed} | {
            "bits_per_byte": chosen,
            "bits_per_byte_to_report": reported,
        }

    rows = [row("a", 0.1, 0, 1.0, 2.0), row("a", 0.2, 0, 1.1, 1.5), row("a", 0.1, 1, 1.2, 2.2)]
    rows += [row("b", 0.1, 0, 0.9, 1.9), row("b", 0.1, 1, 0.9, 2.0)]
    best = at_best(rows)
    assert list(best) == ["b", "a"] and bits(best["a"]) == [2.0, 2.2]
    assert above(best["a"], best["b"]) == pytest.approx([0.1, 0.2])
    assert best_rate(rows, "a") == "0.1\\*" and best_rate(rows[:3] + [row("a", 0.05, 0, 3.0, 3.0)], "a") == "0.1"
    assert [standing(found) for found in ([-0.1], [0.1, 0.11], [-0.1, 0.1])] == ["ahead of", "behind", "level with"]


def test_tokens_are_sorted_by_what_the_text_before_them_gives_away():
    words = ["<s>", " Lily", " saw", " a", ".", " Then", " I"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    )
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    text = [" a", " Lily", " saw", " a", ".", " Then", " Lily", " saw", " Lily", " I", *[" a"] * 70, " Lily", " saw"]
    found = [list(KINDS)[kind] for kind in kinds_of(np.array([[words.index(word) for word in text]]), tokenizer)[0]]
    assert found[:5] == ["new name", "new token", "known token", "new token", "new token"]
    assert found[5:9] == ["known name", "known pair, near", "known name", "new token"]
    # " a" after " I", then after " a", for the first time.
    assert found[9:12] == ["known token", "known token", "known pair, near"]
    assert found[-2:] == ["known name", "known pair, far"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("arguments", [induction.Arguments, grokking.Arguments])
def test_a_gpu_that_is_not_there_is_refused(arguments):
    with pytest.raises(ValueError, match="`device`='cuda', but torch finds no GPU"):
        arguments(device="cuda")


# Small runs on synthetic tasks

TOY = {"hidden_size": 8, "num_attention_heads": 2, "batch_size": 4, "test_examples": 16}
TOY |= {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "seeds": [3, 1], "learning_rates": [1e-2, 1e-3]}
TOY_INDUCTION = {**TOY, "vocab_size": 13, "num_distinct": 6, "num_queries": 3}
TOY_RECALL = {**TOY, "vocab_size": 12, "length": 12, "num_pairs": 3, "gammas": [0.0, 0.5, 1.0, 2.0]}
# Its options, its jobs, its figure.
SMALL_EXPERIMENTS = {
    "induction": (TOY_INDUCTION, {"arms": ["one-layer", "keys-learned"]}, "accuracy.png"),
    "recall_scaling": (TOY_RECALL, {"depths": [1, 2, 3]}, "best_gamma.png"),
}


@pytest.mark.parametrize("name", SMALL_EXPERIMENTS)
def test_small_experiment(name, run_experiment, tmp_path, capsys, request, monkeypatch):
    options, jobs, figure = SMALL_EXPERIMENTS[name]
    written = ["table.md", figure]
    monkeypatch.setattr(scaling_report, "RESAMPLES", 200)
    # One of them as users run it.
    if name != "induction":
        request.getfixturevalue("in_this_process")
    results, rows = tmp_path / "results", run_experiment(name, **options, **jobs)
    # A run for each rate with the first seed, and one with the second.
    gammas = len(options.get("gammas", [0]))
    (keys,) = jobs.values()
    assert len(rows) == len(keys) * gammas * 3
    for row in rows:
        assert len(row["curve"]) == 4 and row["accuracy"] == pytest.approx(row["curve"][-1], abs=1e-4)
        assert row["mean_accuracy"] == pytest.approx(np.mean(row["curve"]), abs=1e-4) and row["revision"]
    # The second seed ran at the rate that did better with the first.
    for key in keys:
        for gamma in options.get("gammas", [None]):
            arm = [row for row in rows if key in (row.get("arm"), row.get("layers")) and row.get("gamma") == gamma]
            grid = {row["learning_rate"]: row["mean_accuracy"] for row in arm if row["seed"] == 3}
            (other,) = (row for row in arm if row["seed"] == 1)
            assert grid.keys() == {1e-2, 1e-3} and grid[other["learning_rate"]] == max(grid.values())
    table = (results / written[0]).read_text()
    assert table in capsys.readouterr().out and table.startswith("| ")
    settings = json.loads((results / "settings.json").read_text())
    assert settings["max_steps"] == 6 and not any(
        key in settings for key in (*jobs, "output_dir", "results_dir", "jobs")
    )

    # A second call repeats nothing, and finished jobs leave no checkpoints.
    def finished():
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}

    before = finished()
    assert len(before) == len(keys) and all(file.endswith(".json") for file in before)
    for file in written:
        (results / file).unlink()
    assert run_experiment(name, **options, **jobs) == rows and finished() == before
    assert (results / written[0]).read_text() == table and all((results / file).stat().st_size for file in written)

    with pytest.raises(ValueError, match=r"other settings, \(then, now\): {'batch_size': \(4, 5\)}.*--output_dir"):
        run_experiment(name, **{**options, **jobs, "batch_size": 5})

    # The report alone, from the rows.
    for file in written:
        (results / file).unlink()
    experiments.main([name, "--report", "--results_dir", str(results)])
    assert (results / "table.md").read_text() == table and (results / figure).stat().st_size and finished() == before


class Stopped(Exception):
    """What a test stops a run with."""


def stop_after(monkeypatch, steps: int | None) -> list[int]:
    """Lets `Stack.step` run `steps` times; returns the steps done, as a list that grows."""
    done = []
    step = stacks.Stack.step

    def counted(stack, *batch):
        if len(done) == steps:
            raise Stopped
        done.append(stack.steps)
        return step(stack, *batch)

    monkeypatch.setattr(stacks.Stack, "step", counted)
    return done


RUNS = {
    "keys-1": lambda stem: induction.run_job(induction.Arguments(**TOY_INDUCTION), "keys-1", stem),
    # It draws from torch's own generator while it trains.
    "keys-shuffled": lambda stem: induction.run_job(induction.Arguments(**TOY_INDUCTION), "keys-shuffled", stem),
    "two layers": lambda stem: recall_scaling.run_job(recall_scaling.Arguments(**TOY_RECALL), 2, stem),
}


@pytest.mark.parametrize("stop", [3, 9])
@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_ends_as_if_it_had_not_stopped(name, stop, tmp_path):
    """Six steps of the grid, then six of the other seed; a checkpoint after every second."""
    straight = RUNS[name](tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, stop)
        RUNS[name](tmp_path / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        done = stop_after(patch, None)
        torch.manual_seed(99)
        rows = RUNS[name](tmp_path / "stopped")
    assert done == ([2, 3, 4, 5, *range(6)] if stop == 3 else [2, 3, 4, 5])
    assert rows == straight
    # The rows depend on what was trained: they are not those of an untrained model.
    assert len({tuple(row["curve"]) for row in rows}) > 1


SLEEPER = """
import os, signal, sys, time
from pathlib import Path
from training.experiments.common.jobs import run_jobs

def sleep(job, stem):
    Path(f"{stem}.pid").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    # As at a terminal, also where the tests run in the background of a script, which takes Ctrl-C from them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_jobs(sleep, {"only": 0}, Path(sys.argv[1]), {}, 1)
"""


def is_running(pid: int) -> bool:
    # Where nobody collects orphans, one that has ended stays as a zombie.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition, seconds: int = 120):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLEEPER)
    file = tmp_path / "runs" / "only.pid"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = subprocess.Popen(
        [sys.executable, script, tmp_path / "runs"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert wait_for(lambda: file.is_file() and file.read_text())
        worker = int(file.read_text())
        assert is_running(worker)
        command.send_signal(how)
        assert wait_for(lambda: command.poll() is not None, seconds=30)
        assert wait_for(lambda: not is_running(worker), seconds=30)
    finally:
        command.kill()
    if how == signal.SIGINT:
        told = command.stderr.read()
        assert command.returncode == 130 and "The same command goes on" in told and "Traceback" not in told


def square_unless_stopped(job: int, stem: Path) -> list[dict]:
    if not (stem.parent / "go").is_file():
        raise Stopped(f"job {job}")
    return [{"job": job, "square": job**2}]


def test_jobs_begun_under_other_settings_are_refused(tmp_path, in_this_process):
    """Checkpoints hold learning rates: to go on from them under other settings would mix two runs."""
    jobs = {"one": 1, "two": 2}
    with pytest.raises(Stopped):
        run_jobs(square_unless_stopped, jobs, tmp_path, {"rate": 0.1}, 1)
    (tmp_path / "go").touch()
    with pytest.raises(ValueError, match=r"one.settings was made with other settings, .*{'rate': \(0.1, 0.2\)}"):
        run_jobs(square_unless_stopped, jobs, tmp_path, {"rate": 0.2}, 1)
    # Another job in the same folder may have them.
    assert run_jobs(square_unless_stopped, {"three": 3}, tmp_path, {"rate": 0.2}, 1)[0]["square"] == 9
    rows = run_jobs(square_unless_stopped, jobs, tmp_path, {"rate": 0.1}, 1)
    assert [row["square"] for row in rows] == [1, 4]
    assert {file.name for file in tmp_path.iterdir()} == {"go", "one.json", "two.json", "three.json"}
    with pytest.raises(ValueError, match=r"one.json was made with other settings"):
        run_jobs(square_unless_stopped, jobs, tmp_path, {"rate": 0.2}, 1)


@pytest.mark.parametrize(
    "arguments,options,message",
    [
        (CommandArguments, {"jobs": 0}, "`jobs` must be at least 1, got 0"),
        (SmallRunArguments, {"seeds": [0, 0]}, r"`seeds` must .* all different, got \[0, 0\]"),
        (SmallRunArguments, {"seeds": [0, -2]}, "`seeds` must lie between 0 and .*, got -2"),
        (SmallRunArguments, {"learning_rates": [0.1, float("nan")]}, "`learning_rates` must be positive .* got nan"),
        (SmallRunArguments, {"learning_rates": [float("inf")]}, "`learning_rates` must be positive and finite"),
        (SmallRunArguments, {"initializer_range": 0.0}, "`initializer_range` must be positive and finite"),
        (SmallRunArguments, {"hidden_size": 33}, r"`hidden_size`=33 must be a multiple of 2 \* .*=4"),
        (SmallRunArguments, {"device": "tpu"}, "`device` must be 'cpu', 'cuda' or .*, got 'tpu'"),
        (SmallRunArguments, {"max_steps": 7, "eval_steps": 2}, "`max_steps`=7 must be a multiple of `eval_steps`=2"),
        (induction.Arguments, {"num_queries": 32}, "`num_queries` must be 1 to 31"),
        (recall_scaling.Arguments, {"gammas": [0, 1, 2]}, "`gammas` must be finite, at least three"),
        (recall_scaling.Arguments, {"gammas": [1, 2, 3, float("inf")]}, "`gammas` must be finite"),
        (recall_scaling.Arguments, {"depths": [1, 0]}, "`depths` must be at least 1"),
        (recall_scaling.Arguments, {"num_pairs": 9}, "9 pairs .* raise `length`"),
        (bode.Arguments, {"learning_rate": 0.0}, "`learning_rate` must be positive and finite"),
        (bode.Arguments, {"learning_rate": float("nan")}, "`learning_rate` must be positive and finite"),
        (bode.Arguments, {"num_frequencies": 4}, "`num_frequencies` must be odd"),
        (bode.Arguments, {"num_stories": 3}, "`num_stories` must be even"),
        (bode.Arguments, {"model_config": "configuration/models/llama-tiny"}, "is a llama, not a momentum"),
        (bode.Arguments, {"model_config": "nowhere/at/all"}, "`model_config`='nowhere/at/all' is neither"),
        (grokking.Arguments, {"lr": 0.0}, "`lr` must be positive and finite"),
        (grokking.Arguments, {"lr": float("inf")}, "`lr` must be positive and finite"),
        (grokking.Arguments, {"settle_epochs": -50}, "`settle_epochs` must be at least 0"),
        (grokking.Arguments, {"test_onset": 95.0}, "`test_onset` is a share, .* 0.95 for 95 %"),
        (grokking.Arguments, {"train_fraction": 1.0}, "leaves a split"),
        (grokking.Arguments, {"modulus": -1}, "`modulus` must be a positive integer"),
    ],
)
def test_bad_options_are_refused(arguments, options, message, in_checkout):
    with pytest.raises(ValueError, match=message):
        arguments(**options)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_lists_hold_known_values_once_and_numbers_begin_at_1(name, in_checkout):
    options = experiments.module_of(name, "run").Arguments
    for field in dataclasses.fields(options):
        if field.default_factory is not dataclasses.MISSING:
            values = field.default_factory()
            for wrong in ([], [*values, values[0]]):
                with pytest.raises(ValueError, match=f"`{field.name}` must hold one or more values, all different"):
                    options(**{field.name: wrong})
        if field.name == "arms":
            with pytest.raises(ValueError, match=r"`arms` has unknown names \['nobody'\]; known are "):
                options(arms=["nobody"])
        if field.name.startswith(("max_", "num_", "batch_", "hidden_", "eval_", "save_")):
            with pytest.raises(ValueError, match=f"`{field.name}` must be .*got 0"):
                options(**{field.name: 0})


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(arguments.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="`torch_compile` needs a C\\+\\+ compiler"):
        SmallRunArguments(torch_compile=True)


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["induktion"], "no experiment 'induktion'; did you mean 'induction'"),
        (["chess"], "no experiment 'chess'; there are tinystories, "),
        ([], "Name an experiment .*induction.*, or give `--report`"),
        (["induction", "--learning_rate", "0.1"], "Unknown option '--learning_rate': did you mean `--learning"),
        (["induction", "--report", "--seeds", "1"], "Unknown option '--seeds'"),
        (["induction", "--learning_rates", "nan"], "`learning_rates` must be positive and finite"),
    ],
)
def test_bad_commands_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        experiments.main(words)
    assert not list(tmp_path.iterdir())


def test_a_report_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no results.jsonl: run the experiment first"):
        experiments.main(["induction", "--report", "--results_dir", str(tmp_path)])


def test_every_experiment_has_one_shape(in_checkout):
    folders = {file.parent.name for file in experiments.HERE.glob("*/run.py")}
    assert folders == set(experiments.EXPERIMENTS)
    for name in folders:
        options, command = parse(name, [], experiments.module_of(name, "run").Arguments, CommandArguments)
        assert not command.report and not {"jobs", "output_dir", "results_dir"} & vars(options).keys()
        files = {file.name for file in (experiments.HERE / name).iterdir()}
        assert {"arms.py", "run.py", "report.py"} <= files and "__main__.py" not in files


# What READMEs show


@pytest.mark.parametrize("name", experiments.with_results())
def test_readmes_show_the_stored_results(name, in_checkout):
    """No number is typed: tables and blocks are what the report makes of results.jsonl."""
    folder = experiments.HERE / name
    report, rows = experiments.module_of(name, "report"), read_results(folder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert fill(readme, experiments.readme_blocks(name, rows)) == readme
    assert (folder / "table.md").read_text(encoding="utf-8") == report.make_tables(rows)
    figures = {file.name for file in folder.glob("*.png")}
    assert figures == {f"{stem}.png" for stem in report.make_figures(rows)} and all(f in readme for f in figures)
    # Measured numbers outside the blocks would be typed ones.
    rest = re.sub(r"^<!-- ([\w:]+) -->$.*?^<!-- /\1 -->$|```.*?```", "", readme, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"±|\d \(-?[\d.]+ to ", rest)


def test_the_table_of_results_is_made_of_the_stored_results(in_checkout):
    readme = experiments.README.read_text(encoding="utf-8")
    assert fill(readme, {"results": experiments.results_block()}) == readme


def test_fill_replaces_what_stands_between_markers():
    text = "a\n<!-- x:table -->\nold\n<!-- /x:table -->\nb\n<!-- x:verdict -->\n<!-- /x:verdict -->\n"
    blocks = {"x:table": "| 1 |\n", "x:verdict": "\\1 of 2"}
    assert markers(text) == ["x:table", "x:verdict"]
    filled = fill(text, blocks)
    assert filled == text.replace("old", "| 1 |").replace("verdict -->\n<", "verdict -->\n\\1 of 2\n<")
    assert fill(filled, blocks) == filled
    with pytest.raises(
        ValueError, match=r"markers of \['x:table', 'x:verdict'\], the report has blocks \['x:table'\]"
    ):
        fill(text, {"x:table": ""})
    with pytest.raises(ValueError, match="lacks the end of its block: <!-- /y -->"):
        fill("<!-- y -->\n", {"y": ""})


def test_paragraphs_and_items_are_wrapped():
    text = wrap("\nA  b\nc.\n\n- " + 60 * "d " + "\n- e\n  f\n\ng\n")
    assert text == "A b c.\n\n- " + " ".join(59 * "d") + "\n  d\n- e f\n\ng\n\n"


# What is made of the rows


def test_first_step_at():
    curve = [0.1, 0.5, 0.4, 0.9]
    assert [first_step_at(curve, threshold, 50) for threshold in (0.1, 0.5, 0.6, 0.9, 0.91)] == [0, 50, 150, 150, None]


def test_how_numbers_are_written():
    # Deviations of -1, 0 and 1: with two degrees of freedom, a standard deviation of 1.
    assert mean_and_spread([1, 2, 3]) == "2.000 ± 1.000" and mean_and_spread([1000, 3000], ",.0f") == "2,000 ± 1,414"
    assert mean_and_spread([0.5], ".2f") == "0.50"
    # 2 +- t(0.975, 2) * 1 / sqrt(3)
    assert interval_of_mean([1, 2, 3]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert with_interval([1, 2, 3], "+.1f") == "+2.0 (-0.5 to +4.5)"
    assert interval_of_mean([1]) is None and with_interval([1.0]) == "+1.00" and with_interval([]) == ""
    values = torch.tensor([[1 / 3, 12345678.0], [0.0, -1e-9]], dtype=torch.float64)
    assert rounded(values) == [[0.33333, 12346000], [0, -1e-9]] and rounded(values[0, 0], digits=2) == 0.33


def test_steps_of():
    def steps(*values):
        return induction_report.steps_of([{"steps": value} for value in values], "steps")

    assert steps(100, 300, 200) == "200 [100, 300]"
    assert steps(100, None, 200, None) == "150 [100, 200] (2 of 4)"
    assert steps(None, None) == "never"
    # Step 0 is a step.
    assert steps(0) == "0 [0, 0]"


def test_an_arm_is_judged_at_the_rate_that_won_the_grid():
    rows = [
        {"layers": 1, "gamma": 0.5, "learning_rate": rate, "seed": seed, "score": score}
        for rate, seed, score in ((1, 7, 0.2), (2, 7, 0.3), (3, 7, 0.25), (2, 0, 0.1), (1, 0, 0.4))
    ]
    rows += [{**row, "layers": 2, "score": 1} for row in rows] + [{**row, "gamma": 0, "score": 0} for row in rows]
    for best, scores in ((max, [0.3, 0.1]), (min, [0.2, 0.4])):
        assert [row["score"] for row in at_best_rate(rows, "score", best, layers=1, gamma=0.5)] == scores


GRID = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize("vertex", [0.4, 1.0, 2.7, 5.5])
def test_the_best_gamma_is_the_vertex(vertex):
    scores = 0.8 - 0.03 * np.log(GRID / vertex) ** 2
    assert scaling_report.find_best_gamma(GRID, scores) == pytest.approx(vertex)


def test_the_best_gamma_at_an_end_is_that_end():
    for vertex, end in ((0.01, 0.25), (100.0, 8.0)):
        assert scaling_report.find_best_gamma(GRID, -(np.log(GRID / vertex) ** 2)) == end
    # Of equals, the first; two equal neighbours have the vertex between them.
    assert scaling_report.find_best_gamma(GRID, np.ones(6)) == 0.25
    assert scaling_report.find_best_gamma(GRID, np.array([0, 1, 1, 0, 0, 0])) == pytest.approx(0.5**0.5)


def scaling_rows(spread: float, depths=(1, 2, 4), gammas=(0.0, *GRID)) -> list[dict]:
    """Rows whose best gamma is 3 * N ** -0.5; the rate 0.2 is worse by far; seeds differ in where the best is."""
    rows = []
    for layers in depths:
        for gamma in gammas:
            for rate, seed in ((0.1, 0), (0.2, 0), (0.1, 1), (0.1, 2)):
                vertex = np.log(3 * layers**-0.5) + spread * (seed - 1)
                score = 0.9 - 0.05 * (np.log(gamma) - vertex) ** 2 if gamma else 0.1
                score -= 0.3 * (rate == 0.2)
                row = {"layers": layers, "gamma": gamma, "learning_rate": rate, "seed": seed}
                rows.append({**row, "mean_accuracy": score, "accuracy": score})
    return rows


def test_analyse_recovers_a_known_law(monkeypatch):
    monkeypatch.setattr(scaling_report, "RESAMPLES", 200)
    # Seeds that agree leave nothing open.
    analysis = scaling_report.analyse(scaling_rows(spread=0.0))
    assert analysis["best_gamma"] == pytest.approx({1: 3, 2: 3 / 2**0.5, 4: 1.5})
    assert analysis["published_gamma"][2] == pytest.approx(2.497, abs=1e-3)
    law = analysis["law"]
    assert (law["factor"], law["exponent"], law["r_squared"]) == pytest.approx((3, -0.5, 1))
    assert law["exponent_interval"] == pytest.approx([-0.5, -0.5])
    assert analysis["best_gamma_interval"][1] == pytest.approx([3, 3])

    rows = scaling_rows(spread=0.3)
    analysis = scaling_report.analyse(rows)
    # The seeds' parabolas have one width, so that their mean is at the middle seed's vertex.
    assert analysis["best_gamma"] == pytest.approx({1: 3, 2: 3 / 2**0.5, 4: 1.5})
    for name, value in (("exponent", -0.5), ("factor", 3)):
        low, high = analysis["law"][f"{name}_interval"]
        assert low < value - 0.01 and value + 0.01 < high
    low, high = analysis["best_gamma_interval"][1]
    assert 3 * np.exp(-0.6) < low < 3 < high < 3 * np.exp(0.6)
    assert analysis == scaling_report.analyse(rows)

    tables = scaling_report.make_tables(rows)
    assert f"| 4 | 1.50 ({analysis['best_gamma_interval'][4][0]:.2f} to " in tables
    assert "| published | 4.17 | -0.74 |" in tables
    assert tables.count("gamma 0 ") == 1
    scaling_report.plot_best_gamma(rows)
    # Two depths are no law; the whole grid need not have gamma 0.
    few = scaling_rows(spread=0.3, depths=(1, 2), gammas=GRID)
    assert "law" not in scaling_report.analyse(few)
    assert "fitted" not in scaling_report.make_tables(few)
    scaling_report.plot_best_gamma(few)


# The arms of the induction experiment

TOY_ARGUMENTS = induction.Arguments(**TOY_INDUCTION)


def attention_of(arm: str, layer: int = 0):
    return induction.build(TOY_ARGUMENTS, arm, seed=0).causal_lm.model.layers[layer].self_attn


def shear(attention, states):
    return attention.shear(states, torch.cat((states[:, :1], states[:, :-1]), dim=1))


@pytest.fixture
def states():
    """(B, S, C), all numbers different."""
    return torch.randn(3, 12, 8)


@pytest.fixture
def ids():
    return torch.randint(13, (4, 12))


def package_model(build=MomentumForCausalLM, config=MomentumConfig, **fields):
    sizes = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return build(config(**{**sizes, "num_hidden_layers": 1, "max_position_embeddings": 12, **fields}))


@torch.no_grad()
def logits_of(model, weights: dict, ids):
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    return model(ids).logits


PLAIN_ARMS = [name for name, arm in ARMS.items() if arm.attention is None]


@pytest.mark.parametrize("name", PLAIN_ARMS)
@torch.no_grad()
def test_an_arm_is_the_package_s_model(name, ids):
    arm = ARMS[name]
    model = induction.build(TOY_ARGUMENTS, name, seed=0).causal_lm
    fields = {"momentum_streams": arm.streams, "momentum_placement": arm.placement}
    same, other = (
        package_model(num_hidden_layers=arm.layers, momentum_gamma=gamma, **fields) for gamma in (arm.gamma, 0.7)
    )
    expected = logits_of(same, model.state_dict(), ids)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=0)
    # At these sizes another gamma shows.
    assert (logits_of(other, model.state_dict(), ids) - expected).abs().max() > 1e-4
    if arm.gamma == 0:
        llama = package_model(LlamaForCausalLM, LlamaConfig, num_hidden_layers=arm.layers)
        torch.testing.assert_close(logits_of(llama, model.state_dict(), ids), expected, atol=1e-6, rtol=0)


def test_all_one_layer_arms_of_a_seed_start_alike():
    def weights(name, seed):
        return dict(induction.build(TOY_ARGUMENTS, name, seed).named_parameters())

    first, other = weights("one-layer", 0), weights("one-layer", 1)
    assert any((first[name] != other[name]).any() for name in first)
    for name in ARMS:
        if name == "two-layers":
            continue
        own = weights(name, 0)
        added = {key.split(".")[-1] for key in own.keys() - first.keys()}
        assert added == ({"head_gamma"} if name in ("keys-learned", "keys-smeared") else set())
        for key in first:
            assert (own[key] == first[key]).all()


def test_the_wrong_lag_is_two(states):
    attention = attention_of("keys-wrong-lag")
    assert attention.gamma == 1 and attention.streams == "k"
    sheared = shear(attention, states)
    torch.testing.assert_close(sheared[:, 2:], 2 * states[:, 2:] - states[:, :-2])
    assert (sheared[:, :2] == states[:, :2]).all()


def test_a_shuffled_previous_token_is_one_of_those_up_to_now(states):
    attention = attention_of("keys-shuffled")
    seen = set()
    for _ in range(200):
        previous = attention.find_previous(states)
        # One that was drawn, as a whole, at every place: (B, S, 1, C) against (B, 1, S, C).
        drawn = (previous[:, :, None] == states[:, None]).all(-1)
        assert (drawn.sum(-1) == 1).all()
        place = drawn.int().argmax(-1)
        assert (place <= torch.arange(12)).all()
        seen |= {(now, then) for row in place.tolist() for now, then in enumerate(row)}
    assert seen == {(now, then) for now in range(12) for then in range(now + 1)}
    torch.manual_seed(0)
    previous = attention.find_previous(states)
    torch.manual_seed(0)
    torch.testing.assert_close(shear(attention, states), 2 * states - previous)


@torch.no_grad()
def test_a_learned_shift_starts_as_llama(states, ids):
    attention = attention_of("keys-learned")
    assert (shear(attention, states) == states).all()
    model = induction.build(TOY_ARGUMENTS, "keys-learned", seed=0).causal_lm
    llama = package_model(LlamaForCausalLM, LlamaConfig)
    torch.testing.assert_close(logits_of(llama, model.state_dict(), ids), model(ids).logits, atol=1e-6, rtol=0)
    # Each head has its own gamma: (K, D) lie head by head.
    attention.head_gamma.copy_(torch.tensor([1.0, -0.5]))
    previous = torch.cat((states[:, :1], states[:, :-1]), dim=1)
    sheared = shear(attention, states)
    torch.testing.assert_close(sheared[..., :4], (2 * states - previous)[..., :4])
    torch.testing.assert_close(sheared[..., 4:], (0.5 * states + 0.5 * previous)[..., 4:])


@torch.no_grad()
def test_a_smeared_key_is_a_convex_mix(states):
    attention = attention_of("keys-smeared")
    assert isinstance(attention, LearnedShiftAttention)
    previous = torch.cat((states[:, :1], states[:, :-1]), dim=1)
    torch.testing.assert_close(shear(attention, states), 0.5 * states + 0.5 * previous)
    for value in (-30.0, -1.0, 2.0, 30.0):
        attention.head_gamma.fill_(value)
        share = 1 - torch.sigmoid(torch.tensor(value))
        sheared = shear(attention, states)
        torch.testing.assert_close(sheared, share * states + (1 - share) * previous)
        between = torch.minimum(states, previous) - 1e-5, torch.maximum(states, previous) + 1e-5
        assert (sheared >= between[0]).all() and (sheared <= between[1]).all()
