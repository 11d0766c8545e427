"""
From the rows of finished runs to the tables and plots of the README. To make them anew from results.jsonl alone:

```bash
python -m training.experiments.head_specialisation.report
```
"""

import json
import math
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import BANKS, styled
from modeling_prism.analysis.reducers import HEAD_METRICS
from training.experiments.head_specialisation.arms import ARMS
from training.experiments.head_specialisation.effects import (
    Effect,
    effect_of,
    interval_of_mean,
    slopes,
)
from training.experiments.head_specialisation.measure import FIGURES_WITHOUT_FIRST, LAG_EDGES, WITHOUT_FIRST
from training.experiments.small_runs import mean_and_spread


# What the claim says of signal - noise.
CLAIMED = {"distance": "above 0", "centroid": "below 0"}
# Decimals shown, by unit.
DECIMALS = {"tokens": 2, "nats": 3, "cycles / token": 4, "share": 4}
LAG_ARMS = ("default", "equal-bases", "swapped-bases")
# What arms are compared with, seed by seed: all with the default; with `lambda-fixed` those that differ from it in
# lambda alone, and as it does keep theirs from the first step to the last.
COMPARED = {"default": [name for name in ARMS if name != "default"], "lambda-fixed": ["lambda-0", "lambda-1"]}


def read_rows(file: Path) -> dict[str, list[dict]]:
    """The rows of results.jsonl, by arm."""
    arms: dict[str, list[dict]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        arms.setdefault(row["arm"], []).append(row)
    return arms


def in_table_order(arms: dict[str, list[dict]]) -> list[str]:
    """The figures that all rows have, each followed by itself without the first token."""
    names = [
        name
        for figure in HEAD_METRICS
        for name in ((figure, f"{figure}, {WITHOUT_FIRST}") if figure in FIGURES_WITHOUT_FIRST else (figure,))
    ]
    states = ("untrained", "trained", "trained, equal bases")
    rows = [row[state] for rows in arms.values() for row in rows for state in states]
    return [name for name in names if all(name in row for row in rows)]


def unit_of(figure: str) -> str:
    return HEAD_METRICS[figure.split(", ")[0]]


def with_interval(values: list[float], decimals: int) -> str:
    """'mean (low to high)' over seeds."""
    if not values:
        return ""
    text, interval = f"{fmean(values):+.{decimals}f}", interval_of_mean(values)
    return f"{text} ({interval[0]:+.{decimals}f} to {interval[1]:+.{decimals}f})" if interval else text


def make_arm_table(arms: dict[str, list[dict]]) -> str:
    """What the arms are and how well they predict, a row an arm."""
    lines = [
        "| arm | signal base | noise base | lambda | R | parameters | bits per byte, mean ± std | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in arms.items():
        arm = ARMS[name]
        bits = [row["bits_per_byte"] for row in rows]
        lines.append(
            f"| {name} | {arm.fields['signal_rope_theta']:,.0f} | {arm.fields['noise_rope_theta']:,.0f} "
            f"| {arm.lambda_start:g} to {arm.lambda_end:g} | {arm.fields.get('dictionary_expansion', 2)} "
            f"| {rows[0]['parameters']:,} | {mean_and_spread(bits)} | {len(bits)} |"
        )
    return "\n".join(lines) + "\n"


def make_effect_table(effects: dict[str, Effect], decimals: int) -> str:
    """One figure, a row an arm; differences are signal - noise."""
    headings = [f"added, less {reference}'s (95 %)" for reference in COMPARED]
    lines = [
        "| arm | untrained: signal, noise | trained: signal, noise | difference, trained (95 %) "
        "| added by training (95 %) | added, each seed | trained weights, both bases 10000 (95 %) "
        "| Cliff's delta: untrained, trained, both bases 10000 "
        f"| {' | '.join(headings)} |",
        f"| --- |{' ---: |' * (7 + len(COMPARED))}",
    ]
    for name, effect in effects.items():
        banks = [
            ", ".join(f"{effect.mean(state, bank):.{decimals}f}" for bank in ("signal", "noise"))
            for state in ("untrained", "trained")
        ]
        added, weights_alone = effect.added, effect.differences("equal_bases")
        states = ("untrained", "trained", "equal_bases")
        deltas = ", ".join(f"{effect.mean(state, 'cliffs_delta'):+.2f}" for state in states)
        compared = [
            with_interval(effect.added_less(effects[reference]), decimals)
            if name in others and reference in effects
            else ""
            for reference, others in COMPARED.items()
        ]
        lines.append(
            f"| {name} | {banks[0]} | {banks[1]} "
            f"| {with_interval(effect.differences('trained'), decimals)} | {with_interval(added, decimals)} "
            f"| {', '.join(f'{value:+.{decimals}f}' for value in added)} | {with_interval(weights_alone, decimals)} "
            f"| {deltas} | {' | '.join(compared)} |"
        )
    return "\n".join(lines) + "\n"


def make_base_line(effects: dict[str, Effect], decimals: int) -> str:
    """A sentence: signal - noise against ln(signal base / noise base), a slope a seed; arms that differ in bases."""
    default = ARMS["default"]
    ratios = {}
    for name in effects:
        arm = ARMS[name]
        if (arm.lambda_start, arm.lambda_end, arm.fields.keys()) == (
            default.lambda_start,
            default.lambda_end,
            default.fields.keys(),
        ):
            ratios[name] = math.log(arm.fields["signal_rope_theta"] / arm.fields["noise_rope_theta"])
    if len(set(ratios.values())) < 3:
        return ""
    told = []
    for state, label in (("trained", "as trained"), ("equal_bases", "trained weights, both bases 10000")):
        by_seed = slopes(list(ratios.values()), [effects[name] for name in ratios], state)
        if not by_seed:
            return ""
        each = ", ".join(f"{value:+.{decimals}f}" for value in by_seed)
        told.append(f"{label} {with_interval(by_seed, decimals)}, each seed {each}")
    return (
        f"Per unit of ln(signal base / noise base), over the {len(ratios)} arms that differ in bases only, a slope "
        f"a seed (95 % over seeds): {'; '.join(told)}.\n"
    )


def grid(count: int, columns: int, width: float, height: float, **options) -> tuple[Figure, list]:
    """A figure of `count` panels in rows of `columns`, and their axes."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    figsize = (max(4, width * columns), max(3, height * lines))
    figure, axes = plt.subplots(lines, columns, figsize=figsize, squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def state_style(bank: str, state: str) -> dict:
    """Untrained: hollow."""
    return {**BANKS[bank], **({"markerfacecolor": "white"} if state == "untrained" else {})}


@styled
def plot_heads(arms: dict[str, list[dict]]) -> Figure:
    """Each head a point, a panel an arm: distance and spectral centroid without the first token, all seeds."""
    figure, axes = grid(len(arms), 3, 2.9, 2.5, sharex=True, sharey=True)
    for axis, (name, rows) in zip(axes, arms.items()):
        for state in ("untrained", "trained"):
            # (figures, seeds, L, H)
            points = np.array([[row[state][f"{key}, {WITHOUT_FIRST}"] for row in rows] for key in CLAIMED])
            for bank, heads in zip(BANKS, np.split(points, [rows[0]["num_signal_heads"]], axis=-1)):
                style = {**state_style(bank, state), "linestyle": "", "markersize": 3.5, "markeredgewidth": 0.7}
                axis.plot(*heads.reshape(len(CLAIMED), -1), label=f"{bank}, {state}", alpha=0.8, **style)
        axis.set_title(name)
    figure.supxlabel(f"distance, {WITHOUT_FIRST} (tokens)", fontsize=9)
    figure.supylabel(f"centroid, {WITHOUT_FIRST} (cycles / token)", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def plot_differences(effects: dict[str, dict[str, Effect]]) -> Figure:
    """
    Signal - noise by arm, a panel a figure: a point a seed, hollow untrained, filled trained, and a cross for trained
    weights measured with equal bases.
    """
    names = list(effects)
    figure, axes = grid(len(names), 2, 3.6, 0.28 * len(effects[names[0]]) + 0.9, sharey=True)
    for axis, name in zip(axes, names):
        for line, effect in enumerate(effects[name].values()):
            for state, label, shift, face, marker in (
                ("untrained", "untrained", -0.2, "white", "o"),
                ("trained", "trained", 0, "black", "o"),
                ("equal_bases", "trained, both bases 10000", 0.2, "black", "x"),
            ):
                values = effect.differences(state)
                style = {"color": "black", "markerfacecolor": face, "marker": marker, "markersize": 4, "linestyle": ""}
                axis.plot(values, [line + shift] * len(values), label=label if line == 0 else None, **style)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_yticks(range(len(effects[name])), list(effects[name]))
        axis.set_title(name)
        axis.set_xlabel(f"signal - noise ({unit_of(name)})")
    # The first arm on top; the axis is shared.
    axes[0].set_ylim(len(effects[names[0]]) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def plot_lags(arms: dict[str, list[dict]]) -> Figure:
    """Mean attention to a token by its lag, a panel an arm, mean over heads, layers and seeds."""
    shown = [arm for arm in LAG_ARMS if arm in arms] or list(arms)[:3]
    figure, axes = grid(len(shown), 3, 3.1, 2.8, sharey=True)
    for axis, name in zip(axes, shown):
        for state in ("untrained", "trained"):
            curves = np.mean([row[state]["lags by bank"] for row in arms[name]], axis=0)
            edges = np.array(LAG_EDGES[: curves.shape[1] + 1])
            for bank, curve in zip(BANKS, curves):
                style = {**state_style(bank, state), **({"alpha": 0.6} if state == "untrained" else {})}
                axis.plot((edges[:-1] + edges[1:] - 1) / 2, curve, label=f"{bank}, {state}", **style)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_yscale("log")
        axis.set_title(name)
        axis.set_xlabel("lag (tokens)")
    axes[0].set_ylabel("mean attention (share)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def write_report(folder: Path) -> str:
    """Writes table.md and the three plots beside the results.jsonl of `folder`; returns the tables."""
    arms = read_rows(folder / "results.jsonl")
    effects = {name: {arm: effect_of(rows, name) for arm, rows in arms.items()} for name in in_table_order(arms)}
    parts = [make_arm_table(arms)]
    for name, by_arm in effects.items():
        claimed = CLAIMED.get(name.split(", ")[0])
        claim = f"; claimed: signal - noise {claimed}" if claimed else ""
        decimals = DECIMALS[unit_of(name)]
        parts += [f"### {name} ({unit_of(name)}{claim})\n", make_effect_table(by_arm, decimals)]
        if claimed:
            parts += filter(None, [make_base_line(by_arm, decimals)])
    tables = "\n".join(parts)
    (folder / "table.md").write_text(tables, encoding="utf-8")
    shown = {name: by_arm for name, by_arm in effects.items() if name.split(", ")[0] in CLAIMED}
    for stem, figure in (
        ("heads", plot_heads(arms)),
        ("differences", plot_differences(shown)),
        ("lag", plot_lags(arms)),
    ):
        figure.savefig(folder / f"{stem}.png", dpi=150)
        plt.close(figure)
    return tables


if __name__ == "__main__":
    print(write_report(Path(__file__).parent))
