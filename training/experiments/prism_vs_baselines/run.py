"""
Prism against parameter- and compute-matched baselines on TinyStories: same tokens, same tokenizer, several seeds, each
arm at the best of the same learning rates.

```bash
python -m training.experiments prism_vs_baselines --dataset_name FOLDER
```

The speeds in the table come from another command, to be run on a quiet machine:

```bash
python -m training.benchmarks.throughput configuration/models/{llama,prism,gpt-neox,gpt2}-tiny \
    configuration/models/{gpt-neox,gpt2,llama}-tiny-compute --rounds 9 \
    --output training/experiments/prism_vs_baselines/throughput.json
```
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from training import pretrain
from training.experiments.common.arguments import (
    CorpusArguments,
    check_arms,
    check_positive,
    check_rates,
    check_seeds,
    settings_of,
)
from training.experiments.common.jobs import run_jobs, write_results
from training.experiments.prism_vs_baselines.arms import ARMS


MODELS = Path("configuration/models")


@dataclass
class Arguments(CorpusArguments):
    """Which arms, and how many runs of each."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Folders of configuration/models/."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 3e-3, 9e-3], metadata={"help": "Grid, run with the first seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "The others run at the best learning rate."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "Steps of each run, if not the recipe's."})

    def __post_init__(self):
        check_arms(self, sorted(file.parent.name for file in MODELS.glob("*/config.json")))
        check_rates(self, "learning_rates")
        check_seeds(self)
        if self.max_steps is not None:
            check_positive(self, "max_steps")

    def command(self, arm: str, learning_rate: float, seed: int, output_dir: Path) -> list[str]:
        """The words after `python -m training.pretrain` that train one model."""
        options = {
            "model_config": MODELS / arm,
            "dataset_name": self.dataset_name,
            "learning_rate": learning_rate,
            "seed": seed,
            "output_dir": output_dir,
            # Several runs write to one terminal.
            "disable_tqdm": True,
            **({"max_steps": self.max_steps} if self.max_steps else {}),
        }
        return [self.recipe, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def run_job(arguments: Arguments, arm: str, stem: Path) -> list[dict]:
    """All runs of an arm: the grid with the first seed, then the other seeds at the best learning rate."""

    def train(rate: float, seed: int) -> dict:
        # A finished run is read back, not repeated.
        row = pretrain.main(arguments.command(arm, rate, seed, stem / f"lr{rate:g}-seed{seed}"))
        del row["saved_in"]
        return {"arm": arm, "learning_rate": rate, **row}

    first, *others = arguments.seeds
    grid = [train(rate, first) for rate in arguments.learning_rates]
    best = min(grid, key=lambda row: row["bits_per_byte"])["learning_rate"]
    return grid + [train(best, seed) for seed in others]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and writes all rows to `results`."""
    settings = settings_of(arguments, "arms")
    jobs = {arm: arm for arm in arguments.arms}
    write_results(
        results, run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes), settings
    )
