"""Figures and tables of Prism: its two banks, its objective, its positions."""

import math

import torch
from matplotlib.figure import Figure

from .figures import BANKS, CONTROL, TRAINED, Picture, drawing, from_zero, log_scale, new_figure, styled, whole_numbers
from .momentum import rotary_frequencies
from .prism import PUBLISHED_ROPE_BASES, rope_kernel
from .reducers import HEAD_METRICS
from .verdicts import bank_rows, number, probability


def jitter(count: int) -> torch.Tensor:
    """Small fixed shifts that keep points apart."""
    return torch.linspace(-0.18, 0.18, count)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


@styled
@drawing("prism/banks")
def plot_banks(findings: dict, control: dict | None = None) -> Figure:
    """Every head metric by bank, trained and untrained: one point per head, a bar for the mean."""
    names = [name for name in HEAD_METRICS if name in findings["prism"]["banks"]]
    figure, axes = new_figure((len(names) + 1) // 2, 2, height=2.0)
    for ax, name in zip(axes, names):
        ticks = []
        for group, (found, label) in enumerate(((findings, "trained"), (control, "untrained"))):
            if found is None or name not in found.get("heads", {}):
                continue
            split = found["prism"]["signal heads"]
            for bank, values in (
                ("signal", found["heads"][name][:, :split]),
                ("noise", found["heads"][name][:, split:]),
            ):
                x = 2.4 * group + (bank == "noise")
                values = values.flatten()
                style = {**BANKS[bank], "linestyle": "", "alpha": 0.7}
                ax.plot(x + jitter(len(values)), values, label=f"{bank} heads", **style)
                ax.plot([x - 0.3, x + 0.3], [values.mean()] * 2, color="black", linewidth=1.5)
            ticks.append((2.4 * group + 0.5, label))
        split = findings["prism"]["banks"][name]
        effect = f"δ = {split['cliffs_delta']:+.2f}, {probability(split['adjusted_p'])}"
        ax.set_title(f"{name}\n{effect}", fontsize=8)
        ax.set_xticks([x for x, _ in ticks], [label for _, label in ticks])
        ax.set_ylabel(HEAD_METRICS[name])
        ax.margins(y=0.2)
    for ax in axes[len(names) :]:
        ax.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper center", ncols=2)
    return figure


@styled
@drawing("prism")
def plot_bank_compression(findings: dict, control: dict | None = None) -> Figure:
    """R_c of each bank by layer, and the subspace signal-to-noise ratio of its heads."""
    figure, axes = new_figure(1, 2, height=2.8)
    for ax, (key, unit, title) in zip(
        axes,
        (("compression", "nats per head", "R_c(Z | U)"), ("snr", "amplitude ratio", "subspace SNR per head")),
    ):
        for bank, style in BANKS.items():
            values = findings["prism"][f"{key} {bank}"]
            x = torch.arange(len(values))
            ax.plot(x, values, label=bank, **style)
            if control is not None:
                faint = {**style, "markerfacecolor": "white", "alpha": 0.5}
                ax.plot(x, control["prism"][f"{key} {bank}"], label=f"{bank}, untrained", **faint)
        ax.set(title=title, xlabel="layer", ylabel=unit)
        from_zero(ax)
        ax.set_xticks(x[:: max(1, len(x) // 6)])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
@drawing("prism/cosines")
def plot_update_cosines(findings: dict, control: dict | None = None) -> Figure:
    """Cosine between attention's update and the ascent direction of J, by layer; bars: std over texts."""
    figure, axes = new_figure(1, 2, height=2.8)
    for ax, kind in zip(axes, ("plain", "tangential")):
        rows = [
            (kind, findings, TRAINED, "trained"),
            (f"{kind} (banks shuffled)", findings, CONTROL, "banks shuffled"),
        ]
        if control is not None and "cosines" in control["prism"]:
            rows.append((kind, control, {**BANKS["noise"], "linestyle": ":"}, "untrained"))
        for key, found, style, label in rows:
            values = found["prism"]["cosines"][key]
            x = torch.arange(values.shape[1])
            ax.errorbar(x, values.mean(0), values.std(0, correction=0), label=label, capsize=2, **style)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set(title=f"{kind} cosine", xlabel="layer", ylabel="cosine")
        ax.set_xticks(x[:: max(1, len(x) // 6)])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
@drawing("prism")
def plot_rope_bands(findings: dict) -> Figure:
    """Wavelengths of the two RoPE bases, and the score that each gives two equal vectors by lag."""
    figure, axes = new_figure(1, 2, height=2.8)
    lags = torch.arange(0, findings["max length"])
    for bank, style in BANKS.items():
        rope = findings["prism"]["rope"][bank]
        every = {"markevery": max(1, len(rope["wavelengths"]) // 10)}
        planes = range(len(rope["wavelengths"]))
        label = f"{bank} heads, base {rope['base']:,.0f}"
        axes[0].plot(planes, rope["wavelengths"], label=label, **every, **style)
        published = 2 * math.pi / rotary_frequencies(2 * len(planes), PUBLISHED_ROPE_BASES[bank])
        label = "published bases" if bank == "noise" else None
        axes[0].plot(planes, published, color="0.6", linestyle=":", linewidth=3, zorder=1, label=label)
        kernel = rope_kernel(rope["frequencies"] * 2 * math.pi, lags)
        axes[1].plot(lags, kernel, label=bank, markevery=0.1, **style)
    axes[0].set(title="wavelength by plane", xlabel="plane", ylabel="wavelength (tokens)")
    log_scale(axes[0], "y")
    whole_numbers(axes[0])
    axes[0].axhline(findings["max length"], color="black", linewidth=0.6, linestyle=":")
    axes[0].text(0, findings["max length"], " window", va="bottom", fontsize=8)
    axes[1].set(title="score of equal vectors", xlabel="lag (tokens)", ylabel="relative to lag 0")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def prism_section(found: dict, control: dict) -> list[Picture]:
    """The figures of a Prism, with captions."""
    pictures = []
    if "banks" in found["prism"]:
        pictures.append(
            Picture(
                "banks",
                "Every head by bank, trained and untrained; bars are means, δ is Cliff's delta, p is adjusted. One "
                "model from one seed. Published (arXiv 2601.15540): signal heads attend far and at low frequency, "
                "noise heads near and at high frequency.",
                plot_banks(found, control),
            )
        )
    pictures.append(
        Picture(
            "bank_compression",
            "Left: coding rate of the layer-normed tokens on each bank's subspaces, per head (eps^2 = 0.5). Right: "
            "the part of the tokens inside a head's subspace, relative to the part outside; a random subspace of half "
            "the dimensions has 1.",
            plot_bank_compression(found, control),
        )
    )
    if "cosines" in found["prism"]:
        pictures.append(
            Picture(
                "update_cosines",
                "Cosine between attention's update and the ascent direction of J(Z) = lambda R_c(Z | U_noise) - "
                "R_c(Z | U_signal). Left: in full. Right: without the component along each token, which the "
                "derivation leaves to the residual connection. Controls: heads assigned to banks at random, and an "
                "untrained copy.",
                plot_update_cosines(found, control),
            )
        )
    pictures.append(
        Picture(
            "rope_bands",
            "The two RoPE bases, before any training. Left: wavelength of each rotary plane (dotted: the published "
            "bases, arXiv 2601.15540). Right: score of two equal vectors by their distance.",
            plot_rope_bands(found),
        )
    )
    return pictures


def bank_table(found: dict, control: dict) -> dict:
    """Both banks, metric by metric, with a verdict on each difference."""
    header = [
        "metric",
        "published",
        "signal",
        "noise",
        "delta",
        "p (adjusted)",
        "untrained: signal - noise",
        "verdict",
    ]
    rows = []
    for row in bank_rows(found, control):
        p = probability(row.p).removeprefix("p ").removeprefix("= ")
        cells = [f"{row.name} ({HEAD_METRICS[row.name]})", row.published, number(row.signal), number(row.noise)]
        rows.append([*cells, f"{row.delta:+.2f}", p, row.untrained_range, row.verdict])
    return {"title": "Signal heads against noise heads", "header": header, "rows": rows}


def coherence_table(found: dict, control: dict) -> dict:
    """Overlap of the banks' dictionaries, layer by layer; untrained in brackets."""
    columns = {
        "coherence max": "largest |cosine|",
        "coherence rms": "rms cosine",
        "coherence spectral": "||U_S U_N^T|| (spectral)",
        "coherence frobenius": "(Frobenius)",
        "affinity": "affinity of heads",
    }
    rows = []
    for layer in range(found["layers"]):
        row = [str(layer)]
        for name in columns:
            trained, untrained = (number(float(each["prism"][name][layer])) for each in (found, control))
            row.append(f"{trained} ({untrained})")
        rows.append(row)
    title = "Coherence of signal and noise dictionary (in brackets: untrained)"
    return {"title": title, "header": ["layer", *columns.values()], "rows": rows}
