"""From the rows of finished arms to the tables and plots of the README."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from training.experiments.grokking.arms import ARMS, COMPARISONS


# Epochs to grok, mean ± std over ten seeds (arXiv 2603.05228), by results folder and arm.
PUBLISHED = {
    "addition-lr0.0001": {
        "layer_norm": "54,160 ± 13,490",
        "rms_norm": "51,240 ± 11,200",
        "sphere": "2,400 ± 353",
        "sphere-wd0": "2,480 ± 464",
    },
    "addition-lr0.0006": {
        "layer_norm": "7,800 ± 1,095",
        "rms_norm": "7,300 ± 925",
        "sphere": "1,560 ± 853",
        "sphere-wd0": "820 ± 199",
    },
    "multiplication-lr0.0006": {
        "layer_norm": "28,220 ± 3,676",
        "rms_norm": "31,360 ± 4,056",
        "sphere": "2,320 ± 223",
        "sphere-wd0": "2,200 ± 253",
    },
    "s5-lr0.001": {
        "layer_norm": "39,900 ± 11,942 (2 of 10 fail)",
        "rms_norm": "38,250 ± 23,600 (2 of 10 fail)",
        "sphere": "10 of 10 fail",
        "sphere-wd0": "10 of 10 fail",
    },
}


# Best test accuracy with uniform attention, and how many seeds reach 100 % (s5: 99 %), where given.
PUBLISHED_UNIFORM = {
    "addition-lr0.0001": {
        "uniform-layer_norm-beta2-0.98": "100 %, 10 of 10",
        "uniform-sphere-unbounded-beta2-0.98": "97.65 %, 6 of 10",
        "uniform-sphere-wd0-beta2-0.98": "100 %, 10 of 10",
    },
    "s5-lr0.001": {
        "uniform-layer_norm-beta2-0.98": "99.12 %",
        "uniform-rms_norm-beta2-0.98": "99.65 %",
        "uniform-sphere-unbounded-beta2-0.98": "2.84 %",
        "uniform-sphere-wd0-beta2-0.98": "2.41 %",
    },
}

# What the figures show: the curves of two columns, and how the y axis reads.
FIGURES = {
    "": (("train_accuracy", "test_accuracy"), "accuracy (dotted: training split; solid: test split)", "linear"),
    "-loss": (("train_loss", "test_loss"), "loss, nats (dotted: training split; solid: test split)", "log"),
    "-norms": (("weight_norm", "logit_norm"), "length (dotted: all weights; solid: logits, mean over pairs)", "log"),
}


def read_results(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """Rows by results folder and arm, arms in the order of the experiment's list."""
    results = {}
    for part in sorted(path for path in (folder / "results").iterdir() if path.is_dir()):
        files = sorted(part.glob("*.jsonl"), key=lambda file: list(ARMS).index(file.stem))
        results[part.name] = {
            file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files
        }
    return results


def mean_and_spread(rows: list[dict], key: str) -> str:
    """Mean ± standard deviation of the seeds that got there."""
    reached = [row[key] for row in rows if row[key] is not None]
    if not reached:
        return f"not in {max(row['epochs'] for row in rows):,}"
    spread = f" ± {np.std(reached, ddof=1):,.0f}" if len(reached) > 1 else ""
    return f"{np.mean(reached):,.0f}{spread}"


def make_overview(results: dict[str, dict[str, list[dict]]]) -> str:
    """A Markdown table of all published figures, ours beside them or "not run"."""
    lines = ["| results | arm | measured | published | here |", "| --- | --- | --- | ---: | ---: |"]
    for measured, published in (("epochs to grok", PUBLISHED), ("best test accuracy", PUBLISHED_UNIFORM)):
        for name, arms in published.items():
            for arm, figure in arms.items():
                rows = results.get(name, {}).get(arm, [])
                if not rows:
                    here = "not run"
                elif published is PUBLISHED:
                    grokked = sum(row["test_onset"] is not None for row in rows)
                    here = f"{mean_and_spread(rows, 'test_onset')} ({grokked} of {len(rows)})"
                else:
                    # The published runs went on to their end; ours stop `settle_epochs` after they have grokked.
                    grokked = sum(row["test_onset"] is not None for row in rows)
                    best = 100 * np.mean([row["peak_test_accuracy"] for row in rows])
                    after = rows[0]["settings"]["settle_epochs"]
                    here = f"{best:.2f} % within {after} epochs of grokking ({grokked} of {len(rows)})"
                lines.append(f"| {name} | {arm} | {measured} | {figure} | {here} |")
    return "\n".join(lines) + "\n"


def make_table(arms: dict[str, list[dict]], published: dict[str, str]) -> str:
    """A Markdown table, a row an arm."""
    lines = [
        "| arm | published | epochs to grok | seeds that grokked | epochs to learn the training split "
        "| delay between the two | best test accuracy so far | epochs run, at most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, rows in arms.items():
        grokked = sum(row["test_onset"] is not None for row in rows)
        peaks = np.array([row["peak_test_accuracy"] for row in rows])
        columns = [mean_and_spread(rows, key) for key in ("test_onset", "train_onset", "delay")]
        lines.append(
            f"| {arm} | {published.get(arm, '')} | {columns[0]} | {grokked} of {len(rows)} | {columns[1]} "
            f"| {columns[2]} | {100 * peaks.mean():.2f} % | {max(row['epochs'] for row in rows):,} |"
        )
    return "\n".join(lines) + "\n"


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


def make_comparisons(arms: dict[str, list[dict]]) -> str:
    """A Markdown table, a row for each pair of `COMPARISONS` that has been run."""
    lines = [
        "| what is changed | arm | instead of | seeds | epochs to grok, ratio (95 %) | delay, ratio (95 %) |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for (one, other), change in COMPARISONS.items():
        if one not in arms or other not in arms:
            continue
        # A seed has the same split and, where shapes agree, the same initial weights in both.
        by_seed = [{row["seed"]: row for row in arms[arm]} for arm in (one, other)]
        common = sorted(by_seed[0].keys() & by_seed[1].keys())
        if not common:
            continue
        pairs = {arm: [rows[seed] for seed in common] for arm, rows in zip((one, other), by_seed)}
        failed = {arm: sum(row["test_onset"] is None for row in rows) for arm, rows in pairs.items()}
        if any(failed.values()):
            told = ", ".join(
                f"{arm}: {count} of {len(common)} not in {max(row['epochs'] for row in pairs[arm]):,}"
                for arm, count in failed.items()
                if count
            )
            ratios = [told, ""]
        else:
            ratios = [
                ratio_of_means(*([row[key] for row in rows] for rows in pairs.values()))
                for key in ("test_onset", "delay")
            ]
        lines.append(f"| {change} | {one} | {other} | {len(common)} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def make_spectrum_table(arms: dict[str, list[dict]]) -> str:
    """
    The spectral check of the seeds that grokked, a row an arm: medians, as a seed may have fallen out of its solution
    at the very epoch that is looked at.
    """
    lines = [
        "| arm | variance of W_U W_out in its five strongest frequencies | of the logits "
        "| accuracy on all pairs with 1, 3, 5, 10 kept | test accuracy, nothing removed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for arm, rows in arms.items():
        spectra = [row["spectrum"] for row in rows if row.get("spectrum") and row["test_onset"] is not None]
        if not spectra:
            continue
        shares = []
        for name in ("unembedding", "logits"):
            found = [spectrum[f"{name}_top5_variance"] for spectrum in spectra]
            shares.append("not measured" if None in found else f"{np.median(found):.3f}")
        kept = [np.median([spectrum["accuracy_by_top_k"][k] for spectrum in spectra]) for k in ("1", "3", "5", "10")]
        then = np.median([row["curves"]["test_accuracy"][-1] for row in rows if row["test_onset"] is not None])
        lines.append(
            f"| {arm} | {shares[0]} | {shares[1]} | {', '.join(f'{value:.3f}' for value in kept)} | {then:.3f} |"
        )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def plot(arms: dict[str, dict[int, dict]], title: str, stem: Path) -> None:
    """Writes the `FIGURES` of the curves of every seed against epochs, a panel an arm, to `<stem>[-...].png`."""
    columns = min(4, len(arms))
    lines = -(-len(arms) // columns)
    for ending, ((dotted, solid), label, scale) in FIGURES.items():
        figure, axes = plt.subplots(
            lines, columns, figsize=(max(5, 3 * columns), max(3, 2.3 * lines)), sharex=True, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(arms) :]:
            axis.set_visible(False)
        for index, (axis, (arm, curves)) in enumerate(zip(axes.flat, arms.items())):
            for seed_curves in curves.values():
                # The measurements are as far apart as the experiment's `eval_epochs`, kept with the curves.
                epochs = np.arange(len(seed_curves[solid])) * seed_curves["every"]
                axis.plot(epochs, seed_curves[dotted], color="grey", linestyle=":", linewidth=0.8)
                axis.plot(epochs, seed_curves[solid], color="black", linewidth=0.8)
            axis.set_xscale("symlog", linthresh=100)
            axis.set_yscale(scale)
            if scale == "linear":
                axis.set_ylim(0, 1.02)
            axis.set_title(f"{arm} ({len(curves)} seeds)", fontsize=9)
            # The lowest panel of each column, also where the last line is not full.
            axis.tick_params(labelbottom=index + columns >= len(arms))
        figure.suptitle(title, fontsize=10)
        figure.supxlabel("epochs", fontsize=9)
        figure.supylabel(label, fontsize=9)
        figure.tight_layout()
        figure.savefig(f"{stem}{ending}.png", dpi=150)
        plt.close(figure)


def write_report(folder: Path) -> str:
    """Writes tables.md and a plot for each results folder; returns the tables."""
    results = read_results(folder)
    published = {*PUBLISHED, *PUBLISHED_UNIFORM} & results.keys()
    parts = ["### All that is published\n", make_overview(results)] if published else []
    for name, arms in results.items():
        curves = {
            arm: {row["seed"]: {**row["curves"], "every": row["settings"]["eval_epochs"]} for row in rows}
            for arm, rows in arms.items()
        }
        plot(curves, name, folder / name)
        table = make_table(arms, PUBLISHED.get(name, {}))
        parts += [f"### {name}\n", table, make_comparisons(arms), make_spectrum_table(arms)]
    tables = "\n".join(filter(None, parts))
    (folder / "tables.md").write_text(tables, encoding="utf-8")
    return tables
