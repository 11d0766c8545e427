"""Figures and tables of cyclic tasks, in the Fourier basis."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from .figures import BANKS, CONTROL, TRAINED, Picture, drawing, label_of, new_figure, styled, whole_numbers
from .sentences import FAMILIES


@styled
@drawing("task")
def plot_fourier(findings: dict, control: dict | None = None) -> Figure:
    """Fourier spectra of a model's tables and logits, and the accuracy of its strongest frequencies."""
    labels = list(findings["explained by top 5"])
    figure, axes = new_figure((len(labels) + 2) // 2, 2, height=2.3)
    for ax, label in zip(axes, labels):
        x = torch.arange(1, len(findings[label]))
        ax.bar(x, findings[label][1:], color=BANKS["signal"]["color"], width=0.8, label=label_of(findings))
        if control is not None:
            ax.plot(x, control[label][1:], color="0.55", linestyle="--", label="untrained copy")
        share = findings["explained by top 5"][label]
        ax.set(
            title=f"{label}\ntop 5 hold {share:.1%}",
            xlabel=f"turns in {findings['residues']} residues",
            ylabel="share of energy",
        )
        whole_numbers(ax)
    ax = axes[len(labels)]
    for found, style in ((findings, TRAINED), (control, CONTROL)):
        if found is not None:
            ax.plot(list(found["accuracy by k"]), list(found["accuracy by k"].values()), **style)
    if findings["task"] == "add mod 113":
        # arXiv 2603.05228, with the five strongest frequencies.
        ax.plot([5], [0.999], "x", color="black", markersize=9, label="published (add mod 113)")
    ax.set_xticks(list(findings["accuracy by k"]))
    ax.axhline(findings["accuracy"], color="black", linewidth=0.6, linestyle=":", label="all frequencies")
    ax.set(title="accuracy of kept frequencies", xlabel="frequencies kept", ylabel="accuracy", ylim=(-0.02, 1.05))
    handles, names = (above + below for above, below in zip(*(a.get_legend_handles_labels() for a in (axes[0], ax))))
    if len(axes) > len(labels) + 1:
        axes[-1].axis("off")
        axes[-1].legend(handles, names, loc="center")
    else:
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


@styled
@drawing("task")
def plot_clock(findings: dict) -> Figure:
    """The residues as the embedding places them, in the plane of each of the strongest frequencies."""
    clock = findings["clock"]
    figure, axes = new_figure((len(clock["frequencies"]) + 1) // 2, 2, height=2.4)
    for ax, frequency, circle in zip(axes, clock["frequencies"].tolist(), clock["circles"]):
        x, y = circle.T
        ax.plot(x, y, "o", color=BANKS["signal"]["color"], markersize=3)
        for index in range(0, len(x), max(1, len(x) // 12)):
            ax.annotate(
                str(clock["residues"][index].item()), 1.15 * circle[index], ha="center", va="center", fontsize=8
            )
        ax.set(title=f"k = {frequency}", aspect="equal", xlabel="cosine", ylabel="sine")
    for ax in axes[len(clock["frequencies"]) :]:
        ax.remove()
    return figure


def task_table(found: dict, control: dict, others: Sequence[dict]) -> dict:
    """Accuracy of all models, and the variance of each table in its five strongest frequencies."""
    top = len(found["top frequencies"])
    count = found["residues"] // 2
    labels = list(dict.fromkeys(label for each in (found, *others) for label in each["explained by top 5"]))
    header = ["model", "family", "parameters", "accuracy", f"with {top} frequencies", *labels]
    rows = [
        [each["name"], FAMILIES.get(each["family"], each["family"]), f"{each['parameters']:,}"]
        + [f"{each['accuracy']:.1%}", f"{each['accuracy by k'][5]:.1%}"]
        + [
            f"{each['explained by top 5'][label]:.1%}" if label in each["explained by top 5"] else ""
            for label in labels
        ]
        for each in (found, control, *others)
    ]
    title = f"Accuracy on all pairs, and the variance in {top} of {count} frequencies (equal ones: {top / count:.0%})"
    return {"title": title, "header": header, "rows": rows}


def fourier_section(found: dict, control: dict) -> list[Picture]:
    """The figure of a cyclic task, with its caption."""
    caption = (
        "Energy by frequency over the residues (for products: over powers of a primitive root), without frequency 0; "
        "and the accuracy of the logits' strongest frequencies alone. The unembedding is shown as the model uses it: "
        "a bounded one has rows of equal length. The logits exclude their mean over all inputs."
    )
    if found["task"] == "add mod 113":
        caption += " The cross marks the published accuracy with five frequencies (arXiv 2603.05228): 99.9%."
    if "W_U W_out" in found:
        caption += " W_U W_out is the contribution of the last MLP's neurons to the logits, up to the norm in between."
    return [Picture("fourier", caption, plot_fourier(found, control))]
