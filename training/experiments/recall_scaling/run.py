"""
Which gamma is best at which depth? Momentum models of several depths and gammas on multi-query associative recall,
several seeds, each at the best of the same learning rates; the best gamma of each depth, and the power law through
them. All models of a depth are one stack. A stopped experiment goes on from its last checkpoint.

```bash
python -m training.experiments.recall_scaling
python -m training.experiments.recall_scaling --depths 1 2 4 8 --vocab_size 8192 --length 128 --num_pairs 8 \
    --hidden_size 128 --batch_size 256 --max_steps 5000 --device cuda --jobs 1 --output_dir outputs/recall_large
```
"""

import functools
import itertools
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from transformers import HfArgumentParser

from training.experiments.small_runs import (
    SmallRunArguments,
    at_best_rate,
    run_jobs,
    small_momentum,
    train_stack,
    write_results,
)
from training.tasks.recall import draw_recall


PUBLISHED_FACTOR, PUBLISHED_EXPONENT = 4.17, -0.74
RESAMPLES = 2000


@dataclass
class RecallScalingArguments(SmallRunArguments):
    """The experiment's own options."""

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Initialisation and data. All but the first run at their arm's best learning rate."},
    )
    max_steps: int = field(default=600, metadata={"help": "Steps of every run."})
    depths: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Numbers of layers."})
    gammas: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], metadata={"help": "Of both streams, post-RoPE."}
    )
    vocab_size: int = field(default=128, metadata={"help": "Tokens of the task; as published: 8192."})
    length: int = field(default=32, metadata={"help": "Tokens a sequence."})
    num_pairs: int = field(default=6, metadata={"help": "Pairs, and questions, a sequence."})
    power: float = field(default=0.01, metadata={"help": "Exponent parameter of the gaps."})
    output_dir: str = field(default="outputs/recall_scaling", metadata={"help": "Where finished depths are kept."})
    results_dir: str = field(
        default=str(Path(__file__).parent), metadata={"help": "Where results.jsonl, the tables and the plot go."}
    )

    def __post_init__(self):
        super().__post_init__()
        if len(self.gammas) != len(set(self.gammas)) or sum(gamma > 0 for gamma in self.gammas) < 3:
            raise ValueError(f"`gammas` must hold at least three different positive numbers, got {self.gammas}.")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"`depths` must be one or more numbers of at least 1, got {self.depths}.")
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


def run_depth(arguments: RecallScalingArguments, depth: int, stem: Path) -> list[dict]:
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


def find_best_gamma(gammas: np.ndarray, scores: np.ndarray) -> float:
    """
    Where the score is highest: the vertex of the parabola through the best positive gamma and its two neighbours, in
    log gamma; at an end of the grid, that end.

    Args:
        gammas: positive, ascending, (G,).
        scores: (G,).
    """
    best = int(np.argmax(scores))
    if best in (0, len(gammas) - 1):
        return float(gammas[best])
    around = slice(best - 1, best + 2)
    curvature, slope, _ = np.polyfit(np.log(gammas[around]), scores[around], 2)
    return float(np.exp(-slope / (2 * curvature)))


def fit_law(depths: list[int], best: np.ndarray) -> tuple[float, float, float]:
    """Factor, exponent and R^2 of gamma = factor * N ** exponent, least squares in logarithms."""
    line = stats.linregress(np.log(depths), np.log(best))
    return float(np.exp(line.intercept)), float(line.slope), float(line.rvalue**2)


def analyse(rows: list[dict], metric: str = "mean_accuracy") -> dict:
    """
    The best gamma of each depth and the law through them, with 95 % intervals from seeds drawn again with replacement,
    for each gamma and depth apart.
    """
    depths = sorted({row["layers"] for row in rows})
    gammas = np.array(sorted({row["gamma"] for row in rows if row["gamma"] > 0}))
    scores = np.array(
        [
            [[row[metric] for row in at_best_rate(rows, layers=depth, gamma=gamma)] for gamma in gammas]
            for depth in depths
        ]
    )
    best = np.array([find_best_gamma(gammas, seeds.mean(-1)) for seeds in scores])
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, scores.shape[-1], size=(RESAMPLES, *scores.shape))
    resampled = np.take_along_axis(scores[None], drawn, axis=-1).mean(-1)
    bests = np.array([[find_best_gamma(gammas, row) for row in sample] for sample in resampled])

    def interval(values):
        return [float(value) for value in np.percentile(values, (2.5, 97.5))]

    analysis = {
        "metric": metric,
        "best_gamma": {depth: float(value) for depth, value in zip(depths, best)},
        "best_gamma_interval": {depth: interval(bests[:, index]) for index, depth in enumerate(depths)},
        "published_gamma": {depth: PUBLISHED_FACTOR * depth**PUBLISHED_EXPONENT for depth in depths},
    }
    if len(depths) > 2:
        laws = np.array([fit_law(depths, sample)[:2] for sample in bests])
        factor, exponent, r_squared = fit_law(depths, best)
        analysis["law"] = {
            "factor": factor,
            "factor_interval": interval(laws[:, 0]),
            "exponent": exponent,
            "exponent_interval": interval(laws[:, 1]),
            "r_squared": r_squared,
        }
    return analysis


def make_tables(rows: list[dict], analysis: dict) -> str:
    """The Markdown tables of the README: accuracies, a column a gamma; best gammas; the law."""
    depths = sorted({row["layers"] for row in rows})
    gammas = sorted({row["gamma"] for row in rows})
    lines = ["| layers | " + " | ".join(f"gamma {gamma:g}" for gamma in gammas) + " |"]
    lines.append("| --- |" + " ---: |" * len(gammas))
    for depth in depths:
        cells = []
        for gamma in gammas:
            best = at_best_rate(rows, layers=depth, gamma=gamma)
            mean, final = ([row[key] for row in best] for key in ("mean_accuracy", "accuracy"))
            spread = f" ± {np.std(mean, ddof=1):.3f}" if len(mean) > 1 else ""
            cells.append(f"{np.mean(mean):.3f}{spread} ({np.mean(final):.3f})")
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    lines += ["", "| layers | best gamma (95 % interval) | published law |", "| ---: | ---: | ---: |"]
    for depth in depths:
        low, high = analysis["best_gamma_interval"][depth]
        lines.append(
            f"| {depth} | {analysis['best_gamma'][depth]:.2f} ({low:.2f} to {high:.2f}) "
            f"| {analysis['published_gamma'][depth]:.2f} |"
        )
    if "law" in analysis:
        law = analysis["law"]
        lines += [
            "",
            "| | factor | exponent | R^2 |",
            "| --- | ---: | ---: | ---: |",
            f"| fitted here (95 % interval) | {law['factor']:.2f} ({law['factor_interval'][0]:.2f} to "
            f"{law['factor_interval'][1]:.2f}) | {law['exponent']:.2f} ({law['exponent_interval'][0]:.2f} to "
            f"{law['exponent_interval'][1]:.2f}) | {law['r_squared']:.2f} |",
            f"| published | {PUBLISHED_FACTOR} | {PUBLISHED_EXPONENT} | not published |",
        ]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], analysis: dict, file: Path) -> None:
    """Accuracy against gamma for each depth, and the best gamma against depth beside the published law."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
    depths = sorted({row["layers"] for row in rows})
    gammas = sorted({row["gamma"] for row in rows if row["gamma"] > 0})
    for marker, depth in zip(itertools.cycle("osD^v*"), depths):
        seeds = [[row["mean_accuracy"] for row in at_best_rate(rows, layers=depth, gamma=gamma)] for gamma in gammas]
        (line,) = left.plot(
            gammas, [np.mean(values) for values in seeds], marker=marker, label=f"{depth} layer{'s' * (depth > 1)}"
        )
        for gamma, values in zip(gammas, seeds):
            left.plot([gamma] * len(values), values, marker, color=line.get_color(), alpha=0.3, markersize=4)
        plain = [row for row in rows if row["layers"] == depth and row["gamma"] == 0]
        if plain:
            mean = np.mean([row["mean_accuracy"] for row in at_best_rate(rows, layers=depth, gamma=0)])
            left.axhline(mean, color=line.get_color(), linestyle=":", linewidth=1)
    left.set(xscale="log", xlabel="gamma", ylabel="accuracy, mean over training (dotted: gamma 0)")
    left.set_xticks(gammas, [f"{gamma:g}" for gamma in gammas])
    left.minorticks_off()
    left.legend(fontsize=8)

    best = np.array([analysis["best_gamma"][depth] for depth in depths])
    low, high = np.array([analysis["best_gamma_interval"][depth] for depth in depths]).T
    errors = np.maximum(np.stack((best - low, high - best)), 0)
    right.errorbar(depths, best, yerr=errors, fmt="o", color="black", capsize=3, label="best here, 95 % interval")
    published = [analysis["published_gamma"][depth] for depth in depths]
    right.plot(depths, published, "--", color="grey", label="published, 4.17 N^-0.74")
    if "law" in analysis:
        fitted = analysis["law"]["factor"] * np.array(depths) ** analysis["law"]["exponent"]
        right.plot(depths, fitted, "-", color="black", linewidth=0.8, label="fitted here")
    right.set(xscale="log", yscale="log", xlabel="layers N", ylabel="best gamma")
    right.set_xticks(depths, [str(depth) for depth in depths])
    # The gammas tried, as far as they are in sight.
    right.set_yticks(gammas, [f"{gamma:g}" for gamma in gammas])
    right.minorticks_off()
    right.set_ylim(min(*gammas[:2], *low) / 1.2, 1.2 * max(*high, *published))
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(RecallScalingArguments).parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    apart = ("depths", "output_dir", "results_dir", "jobs", "device", "torch_compile", "save_steps")
    settings = {key: value for key, value in asdict(arguments).items() if key not in apart}
    # The longest first: it is the last to end.
    depths = sorted(arguments.depths, reverse=True)
    jobs = {f"{depth}-layers": depth for depth in depths}
    run = functools.partial(run_depth, arguments)
    rows = run_jobs(run, jobs, Path(arguments.output_dir), settings, arguments.jobs)
    # Stable: the grid of a gamma, in its own order, stays before the other seeds.
    rows.sort(key=lambda row: (row["layers"], row["gamma"]))

    results = Path(arguments.results_dir)
    write_results(results, rows, settings)
    analysis = analyse(rows)
    (results / "analysis.json").write_text(json.dumps(analysis, indent=2) + "\n", encoding="utf-8")
    tables = make_tables(rows, analysis)
    (results / "tables.md").write_text(tables, encoding="utf-8")
    plot(rows, analysis, results / "best_gamma.png")
    print(tables)


if __name__ == "__main__":
    main()
