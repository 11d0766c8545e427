"""From the rows of finished runs to the tables, the figures and the numbers of the README."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from modeling_prism.analysis.momentum import rotary_frequencies
from modeling_prism.analysis.prism import rope_kernel
from modeling_prism.analysis.reducers import HEAD_METRICS
from training.experiments.common.figures import DARK, DOT, HOLLOW, LIGHT, label, plot_rows
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import by_arm, mean_and_spread, with_interval
from training.experiments.head_specialisation.arms import ARMS
from training.experiments.head_specialisation.effects import Effect, effect_of, slopes
from training.experiments.head_specialisation.measure import METRICS_WITHOUT_FIRST, WITHOUT_FIRST


# What the claim says of signal - noise.
CLAIMED = {"distance": "above 0", "centroid": "below 0"}
# Decimals shown, by unit.
DECIMALS = {"tokens": 2, "nats": 3, "cycles / token": 4, "share": 4}
# What arms are compared with, seed by seed: all with the default; with `lambda-fixed` those that differ from it in
# lambda alone, and as it does keep theirs from the first step to the last.
COMPARED = {"default": [name for name in ARMS if name != "default"], "lambda-fixed": ["lambda-0", "lambda-1"]}
# What the arms are called in the figures.
NAMES = {
    "default": "as published",
    "equal-bases": "equal bases",
    "swapped-bases": "bases exchanged",
    "ratio-3": "3 for pi",
    "ratio-golden": "golden ratio for pi",
    "lambda-0": "lambda 0",
    "lambda-fixed": "lambda 0.1 throughout",
    "lambda-1": "lambda 1",
    "R-1": "R = 1",
}


def in_table_order(arms: dict[str, list[dict]]) -> list[str]:
    """The metrics that all rows have, each followed by itself without the first token."""
    names = [
        name
        for metric in HEAD_METRICS
        for name in ((metric, f"{metric}, {WITHOUT_FIRST}") if metric in METRICS_WITHOUT_FIRST else (metric,))
    ]
    states = ("untrained", "trained", "trained, equal bases")
    rows = [row[state] for rows in arms.values() for row in rows for state in states]
    return [name for name in names if all(name in row for row in rows)]


def unit_of(metric: str) -> str:
    return HEAD_METRICS[metric.split(", ")[0]]


def make_arm_table(arms: dict[str, list[dict]]) -> str:
    """What the arms are and how well they predict, one row per arm."""
    cells = []
    for name, rows in arms.items():
        fields = ARMS[name].fields
        cells.append([name, f"{fields['signal_rope_theta']:,.0f}", f"{fields['noise_rope_theta']:,.0f}"])
        cells[-1] += [
            f"{ARMS[name].lambda_start:g} to {ARMS[name].lambda_end:g}",
            fields.get("dictionary_expansion", 2),
        ]
        cells[-1] += [f"{rows[0]['parameters']:,}", mean_and_spread(bits(rows)), len(rows)]
    heads = ["arm", "signal base", "noise base", "lambda", "R", "parameters", "bits per byte, mean ± std", "seeds"]
    return make_table(heads, cells)


def make_effect_table(effects: dict[str, Effect], decimals: int) -> str:
    """One metric, one row per arm; differences are signal - noise."""
    heads = ["arm", "untrained: signal, noise", "trained: signal, noise", "difference, trained (95 %)"]
    heads += ["added by training (95 %)", "added, each seed", "trained weights, both bases 10000 (95 %)"]
    heads += ["Cliff's delta: untrained, trained, both bases 10000"]
    heads += [f"added, less {reference}'s (95 %)" for reference in COMPARED]
    signed = f"+.{decimals}f"
    cells = []
    for name, effect in effects.items():
        row = [name]
        for state in ("untrained", "trained"):
            row.append(", ".join(f"{effect.mean(state, bank):.{decimals}f}" for bank in ("signal", "noise")))
        row += [with_interval(effect.differences(state), signed) for state in ("trained", "added")]
        row.append(", ".join(f"{value:{signed}}" for value in effect.added))
        row.append(with_interval(effect.differences("equal_bases"), signed))
        states = ("untrained", "trained", "equal_bases")
        row.append(", ".join(f"{effect.mean(state, 'cliffs_delta'):+.2f}" for state in states))
        for reference, others in COMPARED.items():
            compared = name in others and reference in effects
            row.append(with_interval(effect.added_less(effects[reference]), signed) if compared else "")
        cells.append(row)
    return make_table(heads, cells)


def base_slopes(effects: dict[str, Effect], state: str) -> tuple[list[str], list[float]]:
    """The arms that differ in bases only, and by seed the slope of signal - noise over the log ratio of the bases."""
    default = ARMS["default"]
    ratios = {
        name: math.log(arm.fields["signal_rope_theta"] / arm.fields["noise_rope_theta"])
        for name, arm in ((name, ARMS[name]) for name in effects)
        if (arm.lambda_start, arm.lambda_end) == (default.lambda_start, default.lambda_end)
        and arm.fields.keys() == default.fields.keys()
    }
    if len(set(ratios.values())) < 3:
        return [], []
    return list(ratios), slopes(list(ratios.values()), [effects[name] for name in ratios], state)


def make_base_line(effects: dict[str, Effect], decimals: int) -> str:
    """A sentence on `base_slopes`; '' without them."""
    signed = f"+.{decimals}f"
    told = []
    states = {"trained": "as trained", "added": "added by training"}
    states["equal_bases"] = "trained weights, both bases 10000"
    for state, text in states.items():
        names, by_seed = base_slopes(effects, state)
        if not by_seed:
            return ""
        each = ", ".join(f"{value:{signed}}" for value in by_seed)
        told.append(f"{text} {with_interval(by_seed, signed)}, each seed {each}")
    return (
        f"Per unit of ln(signal base / noise base), over the {len(names)} arms that differ in bases only, a slope "
        f"a seed (95 % over seeds): {'; '.join(told)}.\n"
    )


def effects_on(arms: dict[str, list[dict]], metric: str) -> dict[str, Effect]:
    return {arm: effect_of(rows, metric) for arm, rows in arms.items()}


def make_tables(rows: list[dict]) -> str:
    """The arms, and every metric by arm."""
    arms = by_arm(rows)
    parts = [make_arm_table(arms)]
    for metric in in_table_order(arms):
        effects = effects_on(arms, metric)
        claimed = CLAIMED.get(metric.split(", ")[0])
        claim = f"; claimed: signal - noise {claimed}" if claimed else ""
        decimals = DECIMALS[unit_of(metric)]
        parts += [f"### {metric} ({unit_of(metric)}{claim})\n", make_effect_table(effects, decimals)]
        if claimed:
            parts += filter(None, [make_base_line(effects, decimals)])
    parts += ["### What the bases impose without training\n", make_construction_table()]
    return "\n".join(parts)


def by_layer(row: dict, state: str = "trained") -> np.ndarray:
    """Signal - noise of the mean distance, layer by layer (L,)."""
    signal, noise = np.split(np.array(row[state]["distance"]), [row["num_signal_heads"]], axis=1)
    return signal.mean(1) - noise.mean(1)


def reversed_first(rows: list[dict]) -> str:
    """The runs in whose first layer noise heads look further."""
    return f"{sum(by_layer(row)[0] < 0 for row in rows)} of {len(rows)}"


@styled
def plot_differences(rows: list[dict]) -> Figure:
    """Signal - noise of the mean distance by arm: every seed, untrained, trained, and read at one base."""
    effects = effects_on(by_arm(rows), "distance")
    figure, (ax,) = new_figure(height=0.32 * len(effects) + 1)
    styles = {
        "untrained": ("untrained", -0.25, {**HOLLOW, "color": "0.4"}),
        "trained": ("trained", -0.08, DOT),
        "equal_bases": ("trained, read at one base", 0.25, {**DOT, "color": LIGHT, "marker": "x"}),
    }
    for state, (_, shift, style) in styles.items():
        plot_rows(ax, {NAMES[arm]: effect.differences(state) for arm, effect in effects.items()}, shift, **style)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_ylim(len(effects) - 0.5, -1.1)
    first = next(iter(effects.values()))
    for state, (text, shift, style) in styles.items():
        x, side = max(first.differences(state)), {"xytext": (7, 0)}
        if state == "untrained":
            side = {"xytext": (-14, 0), "ha": "right"}
        label(ax, x, shift, text, style["color"], fontsize=7, **side)
    ax.set_xlim(right=61)
    ax.set_xlabel("mean attention distance: signal heads - noise heads (tokens)")
    return figure


@styled
def plot_layers(rows: list[dict]) -> Figure:
    """The same difference of trained models, layer by layer, for three weights of the noise heads."""
    arms = by_arm(rows)
    figure, (ax,) = new_figure(height=3)
    for arm, color, marker in (("lambda-fixed", DARK, "o"), ("lambda-1", LIGHT, "^"), ("lambda-0", "0.5", "s")):
        if arm not in arms:
            continue
        values = np.array([by_layer(row) for row in arms[arm]])
        layers = range(values.shape[1])
        ax.plot(layers, values.mean(0), color=color, linewidth=1)
        for row in values:
            ax.plot(layers, row, color=color, marker=marker, linestyle="", markersize=4)
        label(ax, layers[-1], values[:, -1].mean(), NAMES[arm].removesuffix(" throughout"), color, xytext=(8, 0))
    ax.axhline(0, color="black", linewidth=0.6)
    layers = np.arange(len(by_layer(rows[0])))
    ax.set_xticks(layers)
    ax.set_xlim(-0.2, layers[-1] + 0.7)
    ax.set(xlabel="layer", ylabel="distance: signal - noise (tokens)")
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"differences": plot_differences(rows), "layers": plot_layers(rows)}


def make_construction_table() -> str:
    """What a base imposes without training: its RoPE kernel, and how far a query looks over 256 equal vectors."""
    cells = []
    for name, base in (("10000 pi (signal)", 1e4 * math.pi), ("10000", 1e4), ("10000 / pi (noise)", 1e4 / math.pi)):
        kernel = rope_kernel(rotary_frequencies(64, base), torch.arange(256))
        distances = [(torch.softmax(score * kernel, 0) * torch.arange(256)).sum() for score in (2, 4, 8)]
        cells.append([name, *(f"{kernel[lag]:.2f}" for lag in (1, 16, 64, 128)), *(f"{x:.1f}" for x in distances)])
    heads = ["base", "kernel at lag 1", "16", "64", "128", "mean distance: score with itself 2", "4", "8"]
    return make_table(heads, cells)


def bits(rows: list[dict]) -> list[float]:
    return [row["bits_per_byte"] for row in rows]


def blocks(rows: list[dict]) -> dict[str, str]:
    """The table of the README."""
    arms = by_arm(rows)
    heads = ["arm", "what it changes", "distance, trained: signal, noise", "added by training (95 %)"]
    heads += ["difference read at one base (95 %)", "bits per byte"]
    cells = []
    for arm, effect in effects_on(arms, "distance").items():
        banks = ", ".join(f"{effect.mean('trained', bank):.1f}" for bank in ("signal", "noise"))
        intervals = (with_interval(effect.differences(state), ".1f") for state in ("added", "equal_bases"))
        cells.append([f"`{arm}`", NAMES[arm], banks, *intervals, mean_and_spread(bits(arms[arm]))])
    return {"table": make_table(heads, cells, text=2)}


def numbers(rows: list[dict]) -> dict:
    """What prose.md speaks of."""
    arms = by_arm(rows)
    effects = effects_on(arms, "distance")
    default, fixed, one = (effects[arm] for arm in ("default", "lambda-fixed", "lambda-1"))
    others = {metric: effect_of(arms["default"], metric).mean for metric in ("centroid", "entropy", "previous token")}
    centroids = effects_on(arms, "centroid")
    return {
        "untrained": default.mean("untrained", "signal"),
        "default": {bank: default.mean("trained", bank) for bank in ("signal", "noise")},
        "reversed_first": reversed_first(rows),
        "added": {arm: with_interval(effect.added, ".1f") for arm, effect in effects.items()},
        "one_base": {arm: with_interval(effect.differences("equal_bases"), ".1f") for arm, effect in effects.items()},
        "fixed_less_one": with_interval(fixed.added_less(one), ".1f"),
        "slope": {
            state: with_interval(base_slopes(effects, state)[1], ".2f")
            for state in ("trained", "added", "equal_bases")
        },
        "signal": {metric: mean("trained", "signal") for metric, mean in others.items()},
        "noise": {metric: mean("trained", "noise") for metric, mean in others.items()},
        "centroid": {arm: with_interval(effect.differences("trained"), ".3f") for arm, effect in centroids.items()},
        "gained": np.mean(bits(arms["default"])) - np.mean(bits(arms["R-1"])),
        "cliffs_delta": default.mean("trained", "cliffs_delta"),
    }
