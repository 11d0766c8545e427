"""From the rows of finished runs to the tables, the figure and the numbers of prose.md."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.banks.arms import CHANGES, NUM_MIXED
from training.experiments.common.figures import DARK, DOT, HOLLOW, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import by_arm


KINDS = ("every token", "known pair, near", "known pair, far")
CONTROLS = ("", ", banks shuffled", ", random dictionary")


def of_banks(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of models that have banks, by arm."""
    return by_arm([row for row in rows if "raised" in row])


def sets_of(bank: str) -> list[str]:
    """The sets of heads that a line of the tables stands for: a bank, or all mixed ones."""
    return [f"mixed {number}" for number in range(1, NUM_MIXED + 1)] if bank == "mixed" else [bank]


def each_raised(runs: list[dict], bank: str, change: str, kind: str) -> list[float]:
    """Nats per token that a change adds, for every seed and set of heads."""
    return [run["raised"][f"{name}: {change}"].get(kind, [np.nan])[0] for run in runs for name in sets_of(bank)]


def raised(runs: list[dict], bank: str, change: str, kind: str) -> float:
    """Their mean."""
    return float(np.mean(each_raised(runs, bank, change, kind)))


def shown(runs: list[dict], bank: str, change: str, kind: str) -> str:
    """Their mean, and the extremes where there are several."""
    found = each_raised(runs, bank, change, kind)
    extremes = f" [{min(found):+.3f}, {max(found):+.3f}]" if len(found) > 1 else ""
    return f"{np.mean(found):+.3f}{extremes}"


def cosines(runs: list[dict], name: str, state: str = "") -> np.ndarray:
    """The cosine in each layer, averaged over seeds."""
    return np.mean([run[f"cosines{state}"][name] for run in runs], axis=0)


def make_bank_table(rows: list[dict]) -> str:
    """Nats per token that each change to each bank adds, by kind of token."""
    heads = ["model, seeds", "what its heads get", "heads", *(f"added, {kind}" for kind in KINDS)]
    cells = []
    for arm, runs in of_banks(rows).items():
        for change in CHANGES:
            for bank in ("signal", "noise", "mixed"):
                found = [shown(runs, bank, change, kind) for kind in KINDS]
                what = "their mean output" if change == "mean" else f"the last {change}"
                cells.append([f"`{arm}`, {len(runs)}", what, bank, *found])
    return make_table(heads, cells, text=3)


def make_layer_table(rows: list[dict]) -> str:
    """Nats per token that the mean output of a bank in one layer adds."""
    arms = of_banks(rows)
    layers = len(next(iter(arms.values()))[0]["cosines"]["plain, whole"])
    cells = [
        [f"`{arm}`", bank]
        + [f"{raised(runs, bank, f'mean, layer {layer}', 'every token'):+.3f}" for layer in range(layers)]
        for arm, runs in arms.items()
        for bank in ("signal", "noise")
    ]
    return make_table(["model", "heads", *(f"layer {layer}" for layer in range(layers))], cells, text=2)


def make_ascent_table(rows: list[dict]) -> str:
    """Cosines of attention's update with the parts of the gradient, by layer."""
    parts = {
        "whole": "the whole gradient",
        "alone": "its term of the token alone, reversed",
        "meeting": "the rest, in which tokens meet",
    }
    cells = []
    for arm, runs in by_arm(rows).items():
        objective = "rotated" if "raised" in runs[0] else "plain"
        for part, meaning in parts.items():
            for control in CONTROLS:
                if f"{objective}, {part}{control}" not in runs[0]["cosines"]:
                    continue
                states = [cosines(runs, f"{objective}, {part}{control}", state) for state in ("", ", untrained")]
                shown = [", ".join(f"{value:.2f}" for value in found) for found in states]
                cells.append([f"`{arm}`", meaning + control, *shown])
    return make_table(["model", "update of attention against", "trained, by layer", "untrained"], cells, text=2)


def make_tables(rows: list[dict]) -> str:
    return "\n".join(
        (
            "Nats per token that a change to a bank adds.\n",
            make_bank_table(rows),
            "\nThe mean output of a bank in one layer, every token.\n",
            make_layer_table(rows),
            "\nCosines of attention's update.\n",
            make_ascent_table(rows),
        )
    )


@styled
def plot_banks(rows: list[dict]) -> Figure:
    """Nats per token added where heads see the last 64 tokens, on pairs of tokens seen before, near and far."""
    arms = of_banks(rows)
    lines = [(arm, bank) for arm in arms for bank in ("signal", "noise", "mixed")]
    figure, (ax,) = new_figure(height=0.32 * len(lines) + 1)
    for line, (arm, bank) in enumerate(lines):
        color = LIGHT if bank == "mixed" else DARK
        near, far = (raised(arms[arm], bank, "64 tokens", kind) for kind in KINDS[1:])
        ax.plot([near, far], [line, line], color=color, linewidth=1)
        ax.plot(near, line, **{**HOLLOW, "color": color})
        ax.plot(far, line, **{**DOT, "color": color})
        if (arm, bank) == ("prism-stepped", "signal"):
            label(ax, near, line, "near", xytext=(0, 7), ha="center")
            label(ax, far, line, "far", xytext=(0, 7), ha="center")
    ax.axvline(0, color="0.7", linewidth=0.8)
    ax.set_yticks(range(len(lines)), [f"{arm}: {bank}" for arm, bank in lines])
    ax.set_ylim(len(lines) - 0.5, -0.9)
    ax.margins(x=0.1)
    ax.set_xlabel("nats per token that a window of 64 tokens adds")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"windows": plot_banks(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    return {"table": make_bank_table(rows), "ascent": make_ascent_table(rows)}


def numbers_of(runs: list[dict]) -> dict[str, str]:
    """What prose.md says of one arm."""
    found = {
        f"{bank} {change} {kind}": f"{raised(runs, bank, change, kind):.3f}"
        for bank in ("signal", "noise", "mixed")
        for change in CHANGES
        for kind in KINDS
    }
    for part in ("whole", "alone", "meeting"):
        values = cosines(runs, f"rotated, {part}")
        found[part] = f"{values.min():.2f} to {values.max():.2f}"
    return {**found, "random": f"{cosines(runs, 'rotated, meeting, random dictionary').max():.2f}"}


def numbers(rows: list[dict]) -> dict:
    """What prose.md needs."""
    arms = of_banks(rows)
    seeds = {arm: len(runs) for arm, runs in arms.items()}
    return {"seeds": seeds, "published": numbers_of(arms["prism"]), "stepped": numbers_of(arms["prism-stepped"])}
