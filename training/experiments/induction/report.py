"""From the rows of finished runs to the table, the figure and the numbers of the README."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, HOLLOW, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import at_best_rate, by_arm, mean_and_spread


# The arms in the order of the figure, and what they are called there.
GROUPS = {
    "no shear": {"one-layer": "one layer", "two-layers": "two layers"},
    "keys sheared": {
        "keys-1": "gamma 1",
        "keys-4.17": "gamma 4.17",
        "keys-1-pre-rope": "gamma 1, before RoPE",
        "keys-negative": "gamma -0.5: a low-pass filter",
        "keys-learned": "gamma learned per head",
        "keys-smeared": "learned average of two keys",
    },
    "queries and keys sheared": {
        "both-0.3": "gamma 0.3",
        "both-1": "gamma 1",
        "both-4.17": "gamma 4.17",
        "both-1-pre-rope": "gamma 1, before RoPE",
        "both-negative": "gamma -0.5: a low-pass filter",
    },
    "no previous token in the keys": {
        "queries-1": "queries alone, gamma 1",
        "keys-wrong-lag": "keys, the token before the last",
        "keys-shuffled": "keys, a token at random",
    },
}


def at_best(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm at its best learning rate, one per seed."""
    return {arm: at_best_rate(rows, arm=arm) for arm in by_arm(rows)}


def steps_of(rows: list[dict], key: str) -> str:
    """Median and extremes of the steps of the seeds that got there."""
    steps = [row[key] for row in rows if row[key] is not None]
    if not steps:
        return "never"
    missing = f" ({len(steps)} of {len(rows)})" if len(steps) < len(rows) else ""
    return f"{np.median(steps):.0f} [{min(steps)}, {max(steps)}]{missing}"


def locked_in(rows: list[dict]) -> str:
    return f"{sum(row['steps_to_lock_in'] is not None for row in rows)} of {len(rows)}"


def final(rows: list[dict]) -> str:
    """Accuracy after the last step, mean ± std over seeds."""
    return mean_and_spread([row["accuracy"] for row in rows])


def prefix_matching(rows: list[dict]) -> float:
    """The score of the best head of any layer, mean over seeds."""
    return np.mean([max(max(layer) for layer in row["prefix_matching"]) for row in rows])


def make_tables(rows: list[dict]) -> str:
    """All that is measured, one row per arm."""
    heads = ["arm", "best learning rate", "locked in", "steps to 50 %, median [extremes]", "steps to 90 %"]
    heads += ["final accuracy, mean ± std", "prefix matching of the best head", "loss on repeats, nats"]
    cells = []
    for arm, best in at_best(rows).items():
        repeats = np.mean([row["repeats_loss"] for row in best])
        cells.append([arm, f"{best[0]['learning_rate']:g}", locked_in(best), steps_of(best, "steps_to_lock_in")])
        cells[-1] += [steps_of(best, "steps_to_master"), final(best), f"{prefix_matching(best):.2f}", f"{repeats:.2f}"]
    return make_table(heads, cells)


@styled
def plot_accuracy(rows: list[dict]) -> Figure:
    """Final accuracy of every seed, one line per arm, the arms in groups."""
    best = at_best(rows)
    figure, (ax,) = new_figure(height=0.21 * (len(best) + len(GROUPS)) + 0.6)
    line, ticks = 0, {}
    for group, arms in GROUPS.items():
        shown = [arm for arm in arms if arm in best]
        if not shown:
            continue
        at = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8}
        ax.text(-0.02, line, group, fontweight="bold", **at)
        for arm in shown:
            line += 1
            ticks[line] = arms[arm]
            accuracies = [row["accuracy"] for row in best[arm]]
            style = {**(HOLLOW if group.startswith("no") else DOT), "color": LIGHT if "both" in arm else DARK}
            ax.plot(accuracies, [line] * len(accuracies), **style)
            label(ax, max(accuracies), line, f"{np.mean(accuracies):.3f}", xytext=(7, 0), fontsize=7)
        line += 1.4
    ax.axvline(1 / 32, color=GREY, linestyle=":")
    label(ax, 1 / 32, 2.6, "a guess among the tokens shown", color="0.35", fontsize=7)
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylim(line - 0.4, -0.7)
    ax.set_xlim(0, 1.1)
    ax.set_xlabel("share of answers right after the last step, every seed")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"accuracy": plot_accuracy(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """The table of the README."""
    best = at_best(rows)
    heads = ["what is changed", "arm", "seeds that lock in", "steps to 50 %, median [extremes]"]
    cells = [
        [
            f"{group}: {text}",
            f"`{arm}`",
            locked_in(best[arm]),
            steps_of(best[arm], "steps_to_lock_in"),
            final(best[arm]),
        ]
        for group, arms in GROUPS.items()
        for arm, text in arms.items()
    ]
    return {"table": make_table([*heads, "final accuracy, mean ± std"], cells, text=2)}


def numbers(rows: list[dict]) -> dict:
    """What prose.md speaks of."""
    best = at_best(rows)
    locked = {arm: [row["steps_to_lock_in"] for row in runs] for arm, runs in best.items()}
    fixed = [prefix_matching(best[arm]) for arm in ("keys-1", "keys-4.17", "keys-1-pre-rope", "keys-negative")]
    return {
        "locked_in": {arm: locked_in(runs) for arm, runs in best.items()},
        "steps": {arm: np.median(steps) for arm, steps in locked.items() if None not in steps},
        "final": {arm: final(runs) for arm, runs in best.items()},
        "mean": {arm: np.mean([row["accuracy"] for row in runs]) for arm, runs in best.items()},
        "prefix": (min(fixed), max(fixed)),
    }
