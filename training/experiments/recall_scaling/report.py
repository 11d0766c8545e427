"""From the rows of finished runs to the tables, the figure and the numbers of the README."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import at_best_rate, mean_and_spread
from training.experiments.recall_scaling.arms import PUBLISHED_EXPONENT, PUBLISHED_FACTOR


RESAMPLES = 2000


def find_best_gamma(gammas: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Where the score is highest: the vertex of the parabola through the best positive gamma and its two neighbours, in
    log gamma; at an end of the grid, that end.

    Args:
        gammas: positive, ascending, (G,).
        scores: (..., G).

    Returns:
        (...).
    """
    best = scores.argmax(-1)
    inner = best.clip(1, len(gammas) - 2)
    x = [np.log(gammas)[inner + step] for step in (-1, 0, 1)]
    y = [np.take_along_axis(scores, inner[..., None] + step, axis=-1)[..., 0] for step in (-1, 0, 1)]
    left, right = (x[1] - x[0]) * (y[1] - y[2]), (x[1] - x[2]) * (y[1] - y[0])
    # Where the best is at an end, there is no vertex.
    with np.errstate(all="ignore"):
        vertex = x[1] - ((x[1] - x[0]) * left - (x[1] - x[2]) * right) / (2 * (left - right))
        return np.where(best == inner, np.exp(vertex), gammas[best])


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
    best = find_best_gamma(gammas, scores.mean(-1))
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, scores.shape[-1], size=(RESAMPLES, *scores.shape))
    resampled = np.take_along_axis(scores[None], drawn, axis=-1).mean(-1)
    bests = find_best_gamma(gammas, resampled)

    def interval(values):
        return [float(value) for value in np.percentile(values, (2.5, 97.5))]

    analysis = {
        "metric": metric,
        "best_gamma": {depth: float(value) for depth, value in zip(depths, best)},
        "best_gamma_interval": {depth: interval(bests[:, index]) for index, depth in enumerate(depths)},
        "published_gamma": {depth: PUBLISHED_FACTOR * depth**PUBLISHED_EXPONENT for depth in depths},
    }
    if len(depths) > 2:
        exponents, log_factors = np.polyfit(np.log(depths), np.log(bests).T, 1)
        factor, exponent, r_squared = fit_law(depths, best)
        analysis["law"] = {
            "factor": factor,
            "factor_interval": interval(np.exp(log_factors)),
            "exponent": exponent,
            "exponent_interval": interval(exponents),
            "r_squared": r_squared,
        }
    return analysis


def grid_of(rows: list[dict]) -> tuple[list[int], list[float]]:
    """Depths and gammas, ascending."""
    return sorted({row["layers"] for row in rows}), sorted({row["gamma"] for row in rows})


def make_accuracy_table(rows: list[dict]) -> str:
    """Accuracy over training, and in brackets in the end: one row per depth, one column per gamma."""
    depths, gammas = grid_of(rows)
    cells = []
    for depth in depths:
        cells.append([depth])
        for gamma in gammas:
            best = at_best_rate(rows, layers=depth, gamma=gamma)
            mean, final = ([row[key] for row in best] for key in ("mean_accuracy", "accuracy"))
            cells[-1].append(f"{mean_and_spread(mean)} ({np.mean(final):.3f})")
    return make_table(["layers", *(f"gamma {gamma:g}" for gamma in gammas)], cells)


def make_gamma_table(analysis: dict) -> str:
    """The best gamma of each depth beside the published law's."""
    cells = [
        [depth, f"{best:.2f} ({low:.2f} to {high:.2f})", f"{analysis['published_gamma'][depth]:.2f}"]
        for (depth, best), (low, high) in zip(analysis["best_gamma"].items(), analysis["best_gamma_interval"].values())
    ]
    return make_table(["layers", "best gamma (95 % interval over seeds)", "published law"], cells, text=0)


def law_of(analysis: dict) -> dict[str, str]:
    """Factor, exponent and R^2 of the fitted law, as text; empty without one."""
    law = analysis.get("law")
    if law is None:
        return {}
    texts = {
        name: f"{law[name]:.2f} ({law[f'{name}_interval'][0]:.2f} to {law[f'{name}_interval'][1]:.2f})"
        for name in ("factor", "exponent")
    }
    return {**texts, "r_squared": f"{law['r_squared']:.2f}"}


def make_tables(rows: list[dict]) -> str:
    """Accuracies, best gammas, and the law through them."""
    analysis = analyse(rows)
    tables = [make_accuracy_table(rows), make_gamma_table(analysis)]
    if law := law_of(analysis):
        cells = [["fitted here (95 % interval over seeds)", *law.values()]]
        cells.append(["published", PUBLISHED_FACTOR, PUBLISHED_EXPONENT, "not published"])
        tables.append(make_table(["", "factor", "exponent", "R^2"], cells).replace("|  |", "| |", 1))
    return "\n".join(tables)


def at_one_rate(rows: list[dict]) -> list[dict]:
    """The grid at its lowest learning rate, of the first seed."""
    rate, seed = min(row["learning_rate"] for row in rows), rows[0]["seed"]
    return [row for row in rows if (row["learning_rate"], row["seed"]) == (rate, seed)]


@styled
def plot_best_gamma(rows: list[dict]) -> Figure:
    """The best gamma against depth, beside the published law."""
    analysis, low_rate = analyse(rows), analyse(at_one_rate(rows))
    depths = np.array(grid_of(rows)[0])
    figure, (ax,) = new_figure(height=3)
    fine = np.geomspace(depths[0], depths[-1], 50)
    ax.plot(fine, PUBLISHED_FACTOR * fine**PUBLISHED_EXPONENT, "--", color=LIGHT)
    label(
        ax,
        depths[0],
        PUBLISHED_FACTOR,
        f"published law, {PUBLISHED_FACTOR} N^{PUBLISHED_EXPONENT}",
        LIGHT,
        xytext=(16, 4),
    )
    best = np.array(list(analysis["best_gamma"].values()))
    low, high = np.array(list(analysis["best_gamma_interval"].values())).T
    errors = np.maximum(np.stack((best - low, high - best)), 0)
    ax.errorbar(depths, best, yerr=errors, fmt="o-", color=DARK, capsize=3, linewidth=1)
    label(
        ax,
        depths[0],
        best[0],
        "best here, each gamma at its better rate\n(95 % interval over seeds)",
        DARK,
        xytext=(8, -16),
    )
    ax.plot(depths, list(low_rate["best_gamma"].values()), "s:", color="0.4", markerfacecolor="white")
    first = low_rate["best_gamma"][int(depths[0])]
    rate = at_one_rate(rows)[0]["learning_rate"]
    label(ax, depths[0], first, f"best here, {rate:g} for all (one seed)", "0.4", xytext=(8, 7))
    ax.set(xscale="log", yscale="log", xlabel="layers N", ylabel="best gamma")
    ax.set_xticks(depths, depths)
    ticks = [gamma for gamma in grid_of(rows)[1] if gamma > 0]
    ax.set_yticks(ticks, [f"{gamma:g}" for gamma in ticks])
    ax.minorticks_off()
    ax.set_ylim(min(0.45, *(0.8 * low)), max(6, *(1.2 * high)))
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"best_gamma": plot_best_gamma(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """The table of the README."""
    return {"table": make_gamma_table(analyse(rows))}


def numbers(rows: list[dict]) -> dict:
    """What prose.md speaks of."""
    depths, gammas = grid_of(rows)
    runs = {depth: {gamma: at_best_rate(rows, layers=depth, gamma=gamma) for gamma in gammas} for depth in depths}
    rates = sorted({row["learning_rate"] for row in rows})
    analysis = analyse(rows)
    low_rate = analyse(at_one_rate(rows))
    best, low_best = (found["best_gamma"].values() for found in (analysis, low_rate))

    def means(key: str) -> dict[int, dict[float, float]]:
        return {
            depth: {gamma: np.mean([row[key] for row in seeds]) for gamma, seeds in by_gamma.items()}
            for depth, by_gamma in runs.items()
        }

    low_only = [
        f"{gamma:g}" for gamma in gammas if all(runs[depth][gamma][0]["learning_rate"] == rates[0] for depth in depths)
    ]
    return {
        "best": (min(best), max(best)),
        "low_best": (min(low_best), max(low_best)),
        "low_exponent": low_rate["law"]["exponent"],
        "law": law_of(analysis),
        "published": PUBLISHED_EXPONENT,
        "rates": rates,
        "low_only": " and ".join(low_only),
        "mean": means("mean_accuracy"),
        "final": means("accuracy"),
        "final_exponent": analyse(rows, "accuracy")["law"]["exponent_interval"],
    }
