"""
Prism against parameter- and compute-matched baselines on TinyStories: same tokens, same tokenizer, several seeds, each
arm at the best of the same learning rates. Finished runs are kept, so a stopped experiment goes on where it was.

```bash
python -m training.experiments.prism_vs_baselines.run --dataset_name FOLDER
```

The speeds in the table are of another command, to be run on a quiet machine:

```bash
python -m training.benchmarks.throughput configuration/models/{llama,prism,gpt-neox,gpt2}-tiny \
    configuration/models/{gpt-neox,gpt2,llama}-tiny-compute --rounds 9 \
    --output training/experiments/prism_vs_baselines/throughput.json
```
"""

import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from transformers import AutoConfig, HfArgumentParser

from training import pretrain
from training.experiments.small_runs import CorpusArguments, at_best_rate, check_lists
from training.flops import training_flops_per_token


PARAMETER_MATCHED = ["prism-tiny", "gpt-neox-tiny", "gpt2-tiny", "llama-tiny"]
COMPUTE_MATCHED = ["gpt-neox-tiny-compute", "gpt2-tiny-compute", "llama-tiny-compute"]


@dataclass
class ExperimentArguments(CorpusArguments):
    """Which arms, and how many runs of each."""

    arms: list[str] = field(
        default_factory=lambda: PARAMETER_MATCHED + COMPUTE_MATCHED,
        metadata={"help": "Folders of configuration/models/."},
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 3e-3, 9e-3], metadata={"help": "Grid, run with the first seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "The others run at the best learning rate."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "Steps of each run, if not the recipe's."})
    output_dir: str = field(default="outputs/prism_vs_baselines", metadata={"help": "Where the runs go."})
    results_dir: str = field(
        default=str(Path(__file__).parent), metadata={"help": "Where results.jsonl, table.md and the plot go."}
    )

    def __post_init__(self):
        check_lists(self, "arms", "learning_rates", "seeds")


def run_arm(arguments: ExperimentArguments, arm: str, learning_rate: float, seed: int) -> dict:
    """Trains one model and returns its closing row."""
    folder = Path(arguments.output_dir, arm, f"lr{learning_rate:g}-seed{seed}")
    options = {
        "model_config": f"configuration/models/{arm}",
        "dataset_name": arguments.dataset_name,
        "learning_rate": learning_rate,
        "seed": seed,
        "output_dir": folder,
        **({"max_steps": arguments.max_steps} if arguments.max_steps else {}),
    }
    # A finished run is read back, not repeated.
    row = pretrain.main(
        [arguments.recipe, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
    )
    del row["saved_in"]
    return {"arm": arm, "learning_rate": learning_rate, **row}


def run_arms(arguments: ExperimentArguments) -> list[dict]:
    """All runs: the grid for every arm with the first seed, then the other seeds at each arm's best learning rate."""
    first, *others = arguments.seeds
    rows = [run_arm(arguments, arm, rate, first) for rate in arguments.learning_rates for arm in arguments.arms]
    best = {
        arm: min((row for row in rows if row["arm"] == arm), key=lambda row: row["bits_per_byte"])["learning_rate"]
        for arm in arguments.arms
    }
    rows += [run_arm(arguments, arm, best[arm], seed) for seed in others for arm in arguments.arms]
    return rows


def distance(rows: list[dict], arm: str) -> str:
    """Bits per byte by which Prism is above `arm`, with Welch's 95 % confidence interval over seeds."""
    if arm == "prism-tiny" or all(row["arm"] != "prism-tiny" for row in rows):
        return ""
    prism, other = (
        [row["bits_per_byte"] for row in at_best_rate(rows, "bits_per_byte", min, arm=name)]
        for name in ("prism-tiny", arm)
    )
    if min(len(prism), len(other)) < 2:
        return ""
    interval = stats.ttest_ind(prism, other, equal_var=False).confidence_interval()
    return f"{np.mean(prism) - np.mean(other):.3f} ({interval.low:.3f} to {interval.high:.3f})"


def make_table(rows: list[dict], speeds: dict[str, dict]) -> str:
    """
    The Markdown table of the README: one row an arm, mean and standard deviation over seeds.

    Args:
        rows (`list[dict]`): closing rows of the runs.
        speeds (`dict[str, dict]`): training phase of `training.benchmarks.throughput`, by arm; ratios to llama-tiny.
    """
    lines = [
        "| arm | parameters | training MFLOPs a token (causal) | best learning rate | bits per byte, mean ± std "
        "| seeds | Prism is worse by (95 % interval) | tokens a second / Llama's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        best = at_best_rate(rows, "bits_per_byte", min, arm=arm)
        bits = np.array([row["bits_per_byte"] for row in best])
        spread = f" ± {bits.std(ddof=1):.3f}" if len(bits) > 1 else ""
        config = AutoConfig.from_pretrained(f"configuration/models/{arm}")
        square, causal = (
            training_flops_per_token(config, config.max_position_embeddings, causal=causal) for causal in (False, True)
        )
        speed = f"{speeds[arm]['tokens_ratio']['median']:.2f}" if arm in speeds else "not measured"
        lines.append(
            f"| {arm} | {best[0]['parameters']:,} | {square / 1e6:.1f} ({causal / 1e6:.1f}) "
            f"| {best[0]['learning_rate']:g} | {bits.mean():.3f}{spread} | {len(best)} "
            f"| {distance(rows, arm)} | {speed} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], file: Path) -> None:
    """Bits per byte of every run against learning rate, and of every seed at the best rate against compute."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for marker, arm in zip(itertools.cycle("osD^sD^v"), dict.fromkeys(row["arm"] for row in rows)):
        matched = arm.endswith("-compute")
        style = {"marker": marker, "fillstyle": "none" if matched else "full", "linestyle": ":" if matched else "-"}
        runs = [row for row in rows if row["arm"] == arm]
        grid = sorted((row["learning_rate"], row["bits_per_byte"]) for row in runs if row["seed"] == runs[0]["seed"])
        left.plot(*zip(*grid), label=arm, **style)
        best = at_best_rate(rows, "bits_per_byte", min, arm=arm)
        flops = [row["training_flops_per_token"] / 1e6 for row in best]
        right.plot(flops, [row["bits_per_byte"] for row in best], **{**style, "linestyle": "none"})
    left.set(xscale="log", xlabel="peak learning rate", ylabel="validation bits per byte", title="Grid, first seed")
    right.set(
        xlabel="training MFLOPs a token", ylabel="validation bits per byte", title="Best learning rate, every seed"
    )
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ExperimentArguments).parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    rows = run_arms(arguments)
    results = Path(arguments.results_dir)
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    speeds = {}
    if (results / "throughput.json").is_file():
        speeds = json.loads((results / "throughput.json").read_text(encoding="utf-8"))["phases"]["training"]
    table = make_table(rows, speeds)
    (results / "table.md").write_text(table, encoding="utf-8")
    plot(rows, results / "bits_per_byte.png")
    print(table)


if __name__ == "__main__":
    main()
