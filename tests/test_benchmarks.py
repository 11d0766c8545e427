"""The benchmark of stacked training runs, and compares like with like. No test asserts a timing."""

import json

import pytest
import torch
from families import head_parameter

from training.benchmarks import stacking
from training.stacked import Stack


pytestmark = pytest.mark.experiment

SMALL = {"models": 2, "rounds": 2, "steps": 1}
HEADER = {"date", "hardware", "torch", "transformers", "python", "revision"}


def test_stacking(tmp_path, capsys):
    output = tmp_path / "results" / "stacking.json"
    threads = torch.get_num_threads()
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    stacking.main([*options, "--output", str(output)])
    assert torch.get_num_threads() == threads
    result = json.loads(output.read_text())
    assert result["header"].keys() == HEADER and "1 threads" in result["header"]["hardware"]
    assert list(result["experiments"]) == ["induction", "recall", "grokking"]
    for experiment in result["experiments"].values():
        assert experiment["parameters"] > 10_000 and list(experiment["ways"]) == ["one at a time", "stack"]
        for entry in experiment["ways"].values():
            seconds, rate = entry["seconds"], entry["seed_steps_per_second"]
            assert (rate["min"], rate["max"]) == (2 / seconds["max"], 2 / seconds["min"])
            assert all(measured["min"] <= measured["median"] <= measured["max"] for measured in entry.values())
        assert set(experiment["ways"]["one at a time"]["ratio"].values()) == {1}
    report = capsys.readouterr().out
    assert report == stacking.format_report(result) + "\n" and report.count("| one at a time |") == 3


@pytest.mark.parametrize("experiment", stacking.SETTINGS)
def test_both_ways_do_the_same_work(experiment):
    alone, stacked = stacking.SETTINGS[experiment](stacking.StackingArguments(**SMALL))
    stack = Stack(stacked.models, stacked.loss, learning_rate=stacking.LEARNING_RATE, chunk_size=stacked.chunk_size)
    before = [head_parameter(model).detach().clone() for model in map(get_causal_lm, alone.models)]
    stacking.prepare_stack(stack, stacked.batches, steps=2)()
    stacking.prepare_alone(alone, steps=2)()
    for index, model in enumerate(map(get_causal_lm, alone.models)):
        trained = head_parameter(model).detach()
        name = f"causal_lm.lm_head.{'rows' if hasattr(model.lm_head, 'rows') else 'weight'}"
        # Rounding moves a gradient near 0 by a share of a step of AdamW, which is the learning rate.
        difference = (stack.unstack(index)[name] - trained).abs()
        assert difference.mean() < 1e-5 and (trained - before[index]).abs().mean() > 1e-4


def get_causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    return getattr(model, "causal_lm", model)
