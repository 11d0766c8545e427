"""From the rows of finished arms to the tables, the figure and the numbers of the README."""

import json
import re
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from scipy import stats

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, HOLLOW, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import by_arm, interval_of_mean, mean_and_spread
from training.experiments.grokking.arms import ARMS, COMPARISONS, name_of


HERE = Path(__file__).parent
PUBLISHED, PUBLISHED_UNIFORM = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8")).values()
# The table that the README and its figure are about.
MAIN = "addition-lr0.0006"


def by_table(rows: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Rows by table and arm, arms in the order of `ARMS`."""
    tables = {}
    for row in sorted(rows, key=lambda row: (name_of(row["table"], row["lr"], row["settings"]), row["seed"])):
        tables.setdefault(name_of(row["table"], row["lr"], row["settings"]), []).append(row)
    return {
        name: dict(sorted(by_arm(rows).items(), key=lambda arm: list(ARMS).index(arm[0])))
        for name, rows in tables.items()
    }


def epochs_to(rows: list[dict], key: str) -> str:
    """Mean ± standard deviation of the seeds that got there."""
    reached = [row[key] for row in rows if row[key] is not None]
    return mean_and_spread(reached, ",.0f") if reached else f"not in {max(row['epochs'] for row in rows):,}"


def grokked(rows: list[dict]) -> str:
    return f"{sum(row['test_onset'] is not None for row in rows)} of {len(rows)}"


def make_overview(results: dict[str, dict[str, list[dict]]]) -> str:
    """Everything that is published, with the result here or "not run"."""
    cells = []
    for measured, published in (("epochs to grok", PUBLISHED), ("best test accuracy", PUBLISHED_UNIFORM)):
        for name, arms in published.items():
            for arm, figure in arms.items():
                rows = results.get(name, {}).get(arm, [])
                if not rows:
                    here = "not run"
                elif published is PUBLISHED:
                    here = f"{epochs_to(rows, 'test_onset')} ({grokked(rows)})"
                else:
                    # The published runs went on to their end; ours stop `settle_epochs` after they have grokked.
                    best = 100 * np.mean([row["peak_test_accuracy"] for row in rows])
                    after = rows[0]["settings"]["settle_epochs"]
                    here = f"{best:.2f} % within {after} epochs of grokking ({grokked(rows)})"
                cells.append([name, arm, measured, figure, here])
    return make_table(["results", "arm", "measured", "published", "here"], cells, text=3)


def make_arm_table(arms: dict[str, list[dict]], published: dict[str, str]) -> str:
    """One row per arm."""
    heads = ["arm", "published", "epochs to grok", "seeds that grokked", "epochs to learn the training split"]
    heads += ["delay between the two", "best test accuracy so far", "epochs run, at most"]
    cells = []
    for arm, rows in arms.items():
        columns = [epochs_to(rows, key) for key in ("test_onset", "train_onset", "delay")]
        peak = 100 * np.mean([row["peak_test_accuracy"] for row in rows])
        cells.append([arm, published.get(arm, ""), columns[0], grokked(rows), *columns[1:], f"{peak:.2f} %"])
        cells[-1].append(f"{max(row['epochs'] for row in rows):,}")
    return make_table(heads, cells)


def ratio_of_means(ones: list[float], others: list[float]) -> str:
    """
    Ratio of the geometric means of two sets of numbers, a pair a seed, with the 95 % interval of the paired t-test of
    their logarithms; "not defined" where a number is missing, or is none above 0.
    """
    if any(value is None or value <= 0 for value in (*ones, *others)):
        return "not defined"
    ones, others = np.log(ones), np.log(others)
    ratio = f"{np.exp(ones.mean() - others.mean()):.2f}"
    if len(ones) < 2:
        return ratio
    interval = stats.ttest_rel(ones, others).confidence_interval()
    return f"{ratio} ({np.exp(interval.low):.2f} to {np.exp(interval.high):.2f})"


def compare(arms: dict[str, list[dict]], one: str, other: str) -> list[str]:
    """Seeds in common, ratio of the epochs to grok, and ratio of the delays; or how many seeds have not grokked."""
    # A seed has the same split and, where shapes agree, the same initial weights in both.
    by_seed = [{row["seed"]: row for row in arms[arm]} for arm in (one, other)]
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    if not common:
        return [0, "", ""]
    pairs = {arm: [rows[seed] for seed in common] for arm, rows in zip((one, other), by_seed)}
    failed = {arm: sum(row["test_onset"] is None for row in rows) for arm, rows in pairs.items()}
    if any(failed.values()):
        told = ", ".join(
            f"{arm}: {count} of {len(common)} not in {max(row['epochs'] for row in pairs[arm]):,}"
            for arm, count in failed.items()
            if count
        )
        return [len(common), told, ""]
    ratios = [
        ratio_of_means(*([row[key] for row in rows] for rows in pairs.values())) for key in ("test_onset", "delay")
    ]
    return [len(common), *ratios]


def make_comparisons(arms: dict[str, list[dict]]) -> str:
    """One row for each pair of `COMPARISONS` that shares a seed; "" without any."""
    cells = []
    for (one, other), change in COMPARISONS.items():
        if one in arms and other in arms and (found := compare(arms, one, other))[0]:
            cells.append([change, one, other, *found])
    heads = ["what is changed", "arm", "instead of", "seeds", "epochs to grok, ratio (95 %)", "delay, ratio (95 %)"]
    return make_table(heads, cells, text=3) if cells else ""


def make_spectrum_table(arms: dict[str, list[dict]]) -> str:
    """
    The spectral check of the seeds that grokked, one row per arm: medians, because a seed may have fallen out of its
    solution at the epoch of the check.
    """
    cells = []
    for arm, rows in arms.items():
        spectra = [row["spectrum"] for row in rows if row.get("spectrum") and row["test_onset"] is not None]
        if not spectra:
            continue
        cells.append([arm])
        for name in ("unembedding", "logits"):
            found = [spectrum[f"{name}_top5_variance"] for spectrum in spectra]
            cells[-1].append("not measured" if None in found else f"{np.median(found):.3f}")
        kept = [np.median([spectrum["accuracy_by_top_k"][k] for spectrum in spectra]) for k in ("1", "3", "5", "10")]
        then = np.median([row["curves"]["test_accuracy"][-1] for row in rows if row["test_onset"] is not None])
        cells[-1] += [", ".join(f"{value:.3f}" for value in kept), f"{then:.3f}"]
    heads = ["arm", "variance of W_U W_out in its five strongest frequencies", "of the logits"]
    heads += ["accuracy on all pairs with 1, 3, 5, 10 kept", "test accuracy, nothing removed"]
    return make_table(heads, cells) if cells else ""


def make_tables(rows: list[dict]) -> str:
    """Everything that is published, then each table that has been run."""
    results = by_table(rows)
    parts = []
    if {*PUBLISHED, *PUBLISHED_UNIFORM} & results.keys():
        parts += ["### All that is published\n", make_overview(results)]
    for name, arms in results.items():
        table = make_arm_table(arms, PUBLISHED.get(name, {}))
        parts += [f"### {name}\n", table, make_comparisons(arms), make_spectrum_table(arms)]
    return "\n".join(filter(None, parts))


@styled
def plot_onsets(arms: dict[str, list[dict]]) -> Figure:
    """When every seed has learned the training split and the test split: one line per arm, the earliest on top."""

    def mean_log(arm: str) -> float:
        onsets = [row["test_onset"] for row in arms[arm]]
        return np.inf if None in onsets else np.log(onsets).mean()

    order = sorted(arms, key=mean_log)
    figure, (ax,) = new_figure(height=0.24 * len(order) + 1)
    for line, arm in enumerate(order):
        rows, color = arms[arm], DARK if "sphere" in arm else LIGHT
        learned = [row["train_onset"] for row in rows if row["train_onset"] is not None]
        onsets = [row["test_onset"] for row in rows if row["test_onset"] is not None]
        ax.plot(learned, [line] * len(learned), **{**HOLLOW, "color": color, "markersize": 3.5, "alpha": 0.7})
        ax.plot(onsets, [line] * len(onsets), **{**DOT, "color": color, "markersize": 3.5, "alpha": 0.5})
        if len(onsets) < len(rows):
            tried = max(row["epochs"] for row in rows)
            ax.plot(tried, line, marker=">", color=color, markersize=6)
            label(
                ax, tried, line, f"{len(rows) - len(onsets)} of {len(rows)} have not", color, fontsize=7, xytext=(8, 0)
            )
        elif interval := interval_of_mean(list(np.log(onsets))):
            ax.plot(np.exp(np.mean(np.log(onsets))), line, marker="|", color=color, markersize=11, markeredgewidth=2)
            ax.plot(np.exp(interval), [line, line], color=color, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -1.6)
    first = arms[order[0]]
    if all(row["train_onset"] is not None and row["test_onset"] is not None for row in first):
        learned, onset = (
            np.exp(np.mean(np.log([row[key] for row in first]))) for key in ("train_onset", "test_onset")
        )
        label(ax, learned, -0.9, "training split\nlearned", "0.3", fontsize=7, ha="right", xytext=(0, 0))
        label(ax, onset, -0.9, "test split learned\n(bar: mean, 95 % interval)", "0.3", fontsize=7, xytext=(0, 0))
    ticks = [t for t in (200, 500, 1000, 2000, 5000, 10000) if ax.get_xlim()[0] < t]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("epochs (dark: sphere; light: LayerNorm and RMSNorm)")
    return figure


@styled
def plot_curves(curves: list[dict], eval_epochs: int, title: str) -> Figure:
    """Accuracies, losses and lengths of one arm against epochs, every seed: a run to look at while it goes on."""
    figure, axes = new_figure(1, 3, height=2.6)
    figure.set_figwidth(9)
    for ax, (dotted, solid), text, scale in zip(
        axes,
        (("train_accuracy", "test_accuracy"), ("train_loss", "test_loss"), ("weight_norm", "logit_norm")),
        (
            "accuracy (dotted: training split)",
            "loss, nats (dotted: training split)",
            "length (dotted: weights; solid: logits)",
        ),
        ("linear", "log", "log"),
    ):
        for seed in curves:
            epochs = np.arange(len(seed[solid])) * eval_epochs
            ax.plot(epochs, seed[dotted], color=GREY, linestyle=":", linewidth=0.8)
            ax.plot(epochs, seed[solid], color=DARK, linewidth=0.8)
        ax.set(xscale="symlog", yscale=scale, xlabel="epochs", title=text)
    figure.suptitle(title, fontsize=9)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    results = by_table(rows)
    return {"onsets": plot_onsets(results.get(MAIN) or next(iter(results.values())))}


def welch(rows: list[dict], published: str) -> float:
    """p of Welch's test between the seeds here and a published mean ± std over ten."""
    mean, std = (float(part.replace(",", "")) for part in re.match(r"([\d,]+) ± ([\d,]+)", published).groups())
    onsets = [row["test_onset"] for row in rows]
    here = np.mean(onsets), np.std(onsets, ddof=1), len(onsets)
    return stats.ttest_ind_from_stats(*here, mean, std, 10, equal_var=False).pvalue


def blocks(rows: list[dict]) -> dict[str, str]:
    """The table of the README."""
    heads = ["arm", "published", "epochs to grok", "seeds that grokked", "delay after the training split"]
    cells = []
    for arm, runs in by_table(rows)[MAIN].items():
        cells.append([f"`{arm}`", PUBLISHED[MAIN].get(arm, ""), epochs_to(runs, "test_onset"), grokked(runs)])
        cells[-1].append(epochs_to(runs, "delay"))
    return {"table": make_table(heads, cells)}


def last_accuracies(rows: list[dict]) -> str:
    """Test accuracy at the last epoch, from the worst seed to the best."""
    last = [row["curves"]["test_accuracy"][-1] for row in rows]
    return f"{min(last):.2f} to {max(last):.2f}"


def lengths(rows: list[dict]) -> str:
    """Mean length of the weights, before training and at the onset."""
    norms = [(row["curves"]["weight_norm"], row["test_onset"] // row["settings"]["eval_epochs"]) for row in rows]
    return " to ".join(f"{mean:.0f}" for mean in np.mean([(norm[0], norm[onset]) for norm, onset in norms], axis=0))


def numbers(rows: list[dict]) -> dict:
    """What prose.md speaks of: addition at 6e-4, where it names no other table."""
    results = by_table(rows)
    arms = results[MAIN]
    spheres = ("sphere", "sphere-wd0")
    pairs = zip(arms["sphere"], arms["sphere-nudged"])
    moved = [abs(one["test_onset"] - other["test_onset"]) for one, other in pairs if one["seed"] == other["seed"]]
    own = [row["test_onset"] for row in arms["layer_norm"]]
    kept = {
        arm: np.median([row["spectrum"]["accuracy_by_top_k"]["5"] for row in runs])
        for arm, runs in arms.items()
        if all(row["test_onset"] is not None for row in runs)
    }
    kept_unbounded = kept.pop("sphere-unbounded")
    trainer = json.loads((HERE / "trainer.json").read_text(encoding="utf-8"))
    curve = trainer["trainer_float32"]["curve"]

    def epochs(arms: dict[str, list[dict]], key: str = "test_onset") -> dict[str, str]:
        return {arm: epochs_to(runs, key) for arm, runs in arms.items()}

    return {
        "published": PUBLISHED[MAIN],
        "onset": epochs(arms),
        "learned": epochs(arms, "train_onset"),
        "delay": epochs(arms, "delay"),
        "grokked": {arm: grokked(runs) for arm, runs in arms.items()},
        "ratio": {
            f"{one} / {other}": compare(arms, one, other)[1]
            for one, other in COMPARISONS
            if one in arms and other in arms
        },
        "layer_norm": (min(own), max(own)),
        "stand": {arm: last_accuracies(runs) for arm, runs in arms.items()},
        "length": {arm: lengths(arms[arm]) for arm in spheres},
        "welch": {
            f"{arm} / {column}": welch(arms[arm], PUBLISHED[MAIN][column]) for arm in spheres for column in spheres
        },
        "product": epochs(results["multiplication-lr0.0006"]),
        "published_product": PUBLISHED["multiplication-lr0.0006"],
        "low_rate": epochs(results["addition-lr0.0001"]),
        "moved": (np.mean(moved), max(moved)),
        "seed_1": {
            "trainer": next(step for step, accuracy in curve if accuracy >= 0.95),
            "sphere": next(row["test_onset"] for row in arms["sphere"] if row["seed"] == 1),
        },
        "kept": (min(kept.values()), max(kept.values())),
        "kept_unbounded": kept_unbounded,
    }
