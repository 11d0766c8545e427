"""Experiments, end to end at toy size: they go on where they stopped and write what their READMEs show."""

import json
from pathlib import Path

import pytest

from training.experiments.prism_vs_baselines import run as prism_vs_baselines


@pytest.fixture
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_prism_vs_baselines(tmp_path, corpus, in_checkout, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = Path("configuration/recipes/tinystories_2m.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("block_size: 256", "block_size: 32").replace("vocab_size: 2048", "vocab_size: 300"))
    command = ["--recipe", recipe, "--dataset_name", corpus, "--arms", "prism-tiny", "llama-tiny", "--max_steps", "1"]
    command += ["--learning_rates", "1e-3", "1e-2", "--seeds", "0", "1"]
    command += ["--output_dir", tmp_path / "runs", "--results_dir", tmp_path / "results"]
    command = list(map(str, command))
    prism_vs_baselines.main(command)
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (2 + 1)
    table = (tmp_path / "results" / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 4
    assert (tmp_path / "results" / "bits_per_byte.png").stat().st_size > 10_000

    # A second call repeats nothing.
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/*/model.safetensors")}
    prism_vs_baselines.main(command)
    assert finished == {file: file.stat().st_mtime_ns for file in finished} and len(finished) == 6


def test_an_arm_is_judged_at_the_rate_that_won_the_grid():
    rows = [
        {"arm": "a", "learning_rate": rate, "seed": seed, "bits_per_byte": bits}
        for rate, seed, bits in ((1, 0, 3.0), (2, 0, 2.0), (3, 0, 2.5), (2, 1, 2.4))
    ]
    assert [row["bits_per_byte"] for row in prism_vs_baselines.at_best_rate(rows, "a")] == [2.0, 2.4]
