"""
All families and their baselines on TinyStories: equal parameters, tokens, tokenizer and recipe, each arm at its best
learning rate.

```bash
python -m training.experiments tinystories --dataset_name FOLDER
```
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training import pretrain
from training.evaluate import score_blocks
from training.experiments.common.arguments import check_arms, check_positive, settings_of
from training.experiments.common.jobs import run_jobs, stored_rows, write_results
from training.experiments.common.stories import Grid, bits_per_byte, count_floor, halves, in_order, missing
from training.experiments.tinystories.arms import ARMS
from training.experiments.tinystories.kinds import KINDS, kinds_of
from training.loading import load_model_and_tokenizer
from training.options import parse_arguments


@dataclass
class Arguments(Grid):
    """Which arms, and how many runs of each."""

    recipe: str = field(
        default="configuration/recipes/release.yaml", metadata={"help": "What all arms have in common."}
    )
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Names of `arms.py`."})
    max_steps: int | None = field(default=None, metadata={"help": "Steps of each run, if not the recipe's."})

    def __post_init__(self):
        super().__post_init__()
        check_arms(self, ARMS)
        if self.max_steps is not None:
            check_positive(self, "max_steps")

    def command(self, arm: str, learning_rate: float, seed: int, output_dir: Path) -> list[str]:
        """The words after `python -m training.pretrain` that train one model."""
        overrides = ARMS[arm].overrides
        options = {
            "model_config": Path("configuration/models", ARMS[arm].preset or "llama-tiny"),
            "config_overrides": "max_position_embeddings=384" + (f",{overrides}" if overrides else ""),
            "dataset_name": self.dataset_name,
            "learning_rate": learning_rate,
            "seed": seed,
            "output_dir": output_dir,
            # Several runs write to one terminal.
            "disable_tqdm": True,
            **({"max_steps": self.max_steps} if self.max_steps else {}),
        }
        return [self.recipe, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def score(folder: Path, data) -> dict:
    """Bits per byte of a trained model on both halves of the validation stories; of the second, nats by kind."""
    model, tokenizer = load_model_and_tokenizer(str(folder))
    model, (choose, report) = model.float(), halves(data, tokenizer)
    nats = score_blocks(model, report)
    kinds = kinds_of(np.array(report.validation["input_ids"]), tokenizer)
    found = {name: kinds == kind for kind, name in enumerate(KINDS) if (kinds == kind).any()}
    return {
        "bits_per_byte": bits_per_byte(score_blocks(model, choose), choose),
        "bits_per_byte_to_report": bits_per_byte(nats, report),
        "nats": {name: round(float(nats[where].mean()), 5) for name, where in found.items()},
        "shares": {name: round(float(where.mean()), 5) for name, where in found.items()},
    }


def run_job(arguments: Arguments, job: tuple[str, float, int], stem: Path) -> list[dict]:
    """Trains one model and scores it."""
    arm, learning_rate, seed = job
    command = arguments.command(arm, learning_rate, seed, stem)
    if ARMS[arm].ngram:
        return [{"arm": arm, **count_floor(ARMS[arm].ngram, command)}]
    # A finished run is read back, not repeated.
    result = pretrain.main(command)
    del result["saved_in"]
    _, data, _ = parse_arguments(command)
    return [{"arm": arm, "learning_rate": learning_rate, **result, **score(stem, data)}]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what neither `results` nor `folder` has, and adds its rows to `results`."""
    settings = settings_of(arguments, "arms", "learning_rates", "seeds")
    stored = stored_rows(results, settings)
    jobs = missing(arguments, ARMS, stored)
    rows = stored + run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    write_results(results, in_order(rows, ARMS), settings)
