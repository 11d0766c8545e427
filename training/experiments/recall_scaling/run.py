"""
Which gamma is best at which depth? Momentum models of several depths and gammas on multi-query associative recall,
several seeds, each at the best of the same learning rates; the best gamma of each depth, and the power law through
them. All models of a depth are one stack.

```bash
python -m training.experiments recall_scaling
python -m training.experiments recall_scaling --depths 1 2 4 8 --vocab_size 8192 --length 128 --num_pairs 8 \
    --hidden_size 128 --batch_size 256 --max_steps 5000 --device cuda --jobs 1 --output_dir outputs/recall_large
```
"""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.experiments.common.arguments import SmallRunArguments, check_lists, settings_of
from training.experiments.common.jobs import run_jobs, write_results
from training.experiments.common.stacks import small_momentum, train_stack
from training.experiments.recall_scaling.arms import DEPTHS, GAMMAS
from training.tasks.recall import draw_recall


@dataclass
class Arguments(SmallRunArguments):
    """The experiment's own options."""

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Initialisation and data. All but the first run at their arm's best learning rate."},
    )
    max_steps: int = field(default=600, metadata={"help": "Steps of every run."})
    depths: list[int] = field(default_factory=lambda: list(DEPTHS), metadata={"help": "Numbers of layers."})
    gammas: list[float] = field(default_factory=lambda: list(GAMMAS), metadata={"help": "Of both streams, post-RoPE."})
    vocab_size: int = field(default=128, metadata={"help": "Tokens of the task; as published: 8192."})
    length: int = field(default=32, metadata={"help": "Tokens per sequence."})
    num_pairs: int = field(default=6, metadata={"help": "Pairs, and questions, per sequence."})
    power: float = field(default=0.01, metadata={"help": "Exponent parameter of the gaps."})

    def __post_init__(self):
        super().__post_init__()
        check_lists(self, "depths", "gammas")
        if not all(map(math.isfinite, self.gammas)) or sum(gamma > 0 for gamma in self.gammas) < 3:
            raise ValueError(f"`gammas` must be finite, at least three of them positive, got {self.gammas}.")
        if min(self.depths) < 1:
            raise ValueError(f"`depths` must be at least 1, got {self.depths}.")
        self.draw(1, seed=0)

    def draw(self, num_examples: int, seed) -> tuple[np.ndarray, np.ndarray]:
        return draw_recall(
            num_examples,
            vocab_size=self.vocab_size,
            length=self.length,
            num_pairs=self.num_pairs,
            power=self.power,
            seed=seed,
        )


def run_job(arguments: Arguments, depth: int, stem: Path) -> list[dict]:
    """All runs of a depth: every gamma and learning rate with the first seed, then the others at the best rates."""
    first, *others = arguments.seeds
    plan = [(gamma, rate, first) for gamma in arguments.gammas for rate in arguments.learning_rates]
    rows = []
    for phase in ("grid", "seeds"):
        models = [
            small_momentum(arguments, seed, arguments.vocab_size, arguments.length, gamma, depth)
            for gamma, _, seed in plan
        ]
        rates, seeds = [rate for _, rate, _ in plan], [seed for _, _, seed in plan]
        accuracies, _ = train_stack(models, seeds, rates, arguments.draw, arguments, Path(f"{stem}.{phase}.pt"))
        for (gamma, rate, seed), model, curve in zip(plan, models, accuracies):
            rows.append(
                {
                    "layers": depth,
                    "gamma": gamma,
                    "learning_rate": rate,
                    "seed": seed,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "accuracy": float(curve[-1]),
                    "mean_accuracy": float(np.mean(curve)),
                    "curve": [round(float(accuracy), 4) for accuracy in curve],
                }
            )
        plan = [
            (gamma, max(candidates, key=lambda row: row["mean_accuracy"])["learning_rate"], seed)
            for gamma in arguments.gammas
            for candidates in [[row for row in rows if row["gamma"] == gamma]]
            for seed in others
        ]
        if not plan:
            break
    return rows


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and writes all rows to `results`."""
    settings = settings_of(arguments, "depths")
    # The longest first: it is the last to end.
    jobs = {f"{depth}-layers": depth for depth in sorted(arguments.depths, reverse=True)}
    rows = run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    # Stable: the grid of a gamma stays before the other seeds.
    rows.sort(key=lambda row: (row["layers"], row["gamma"]))
    write_results(results, rows, settings)
