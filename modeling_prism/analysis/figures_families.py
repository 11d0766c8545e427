"""Figures of one family each: Prism's banks, Momentum's filter, the Fourier spectra of cyclic tasks."""

import math

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import momentum, prism
from .figures import (
    BANKS,
    CONTROL,
    TRAINED,
    drawing,
    from_zero,
    new_figure,
    series_style,
    styled,
    whole_numbers,
)
from .reducers import HEAD_FIGURES
from .sentences import probability


def jitter(count: int) -> torch.Tensor:
    """Small shifts that keep points apart, the same at every call."""
    return torch.linspace(-0.18, 0.18, count)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


# Prism


@styled
@drawing("prism/banks")
def plot_banks(findings: dict, control: dict | None = None) -> Figure:
    """Every head figure by bank, trained and untrained: a point a head, a bar for the mean."""
    names = [name for name in HEAD_FIGURES if name in findings["prism"]["banks"]]
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
                ax.plot(x + jitter(len(values)), values, **style)
                ax.plot([x - 0.3, x + 0.3], [values.mean()] * 2, color="black", linewidth=1.5)
                ticks.append((x, bank))
            ax.text(
                2.4 * group + 0.5, 1.0, label, transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=8
            )
        split = findings["prism"]["banks"][name]
        # Of random permutations, the smallest p is only a bound.
        effect = f"$\\delta$ = {split['cliffs_delta']:+.2f}, {probability(split['adjusted_p'])}"
        ax.set_title(f"{name}\n{effect}", fontsize=8)
        ax.set_xticks([x for x, _ in ticks], [bank for _, bank in ticks])
        ax.set_ylabel(HEAD_FIGURES[name])
        ax.margins(y=0.2)
    for ax in axes[len(names) :]:
        ax.remove()
    return figure


@styled
@drawing("prism")
def plot_bank_compression(findings: dict, control: dict | None = None) -> Figure:
    """R_c of each bank through depth, and the subspace signal-to-noise ratio of its heads."""
    figure, axes = new_figure(1, 2, height=2.8)
    for ax, (key, unit, title) in zip(
        axes,
        (("compression", "nats a head", "$R_c(Z\\,|\\,U)$"), ("snr", "amplitude ratio", "subspace SNR of a head")),
    ):
        for bank, style in BANKS.items():
            values = findings["prism"][f"{key} {bank}"]
            x = torch.arange(len(values))
            ax.plot(x, values, label=f"{bank}", **style)
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
    """Cosine between what attention adds and the ascent direction of J, by layer; bars: deviation over texts."""
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
    """Analytic spectra of the two RoPE bases, and the prior over the lag that each gives equal vectors."""
    figure, axes = new_figure(1, 2, height=2.8)
    lags = torch.arange(0, findings["max length"])
    for bank, style in BANKS.items():
        rope = findings["prism"]["rope"][bank]
        every = {"markevery": max(1, len(rope["wavelengths"]) // 10)}
        planes = range(len(rope["wavelengths"]))
        label = f"{bank} heads, base {rope['base']:,.0f}"
        axes[0].plot(planes, rope["wavelengths"], label=label, **every, **style)
        published = 2 * math.pi / momentum.rotary_frequencies(2 * len(planes), prism.PUBLISHED_ROPE_BASES[bank])
        label = "published bases" if bank == "noise" else None
        axes[0].plot(planes, published, color="0.6", linestyle=":", linewidth=3, zorder=1, label=label)
        kernel = prism.rope_kernel(rope["frequencies"] * 2 * math.pi, lags)
        axes[1].plot(lags, kernel, label=bank, markevery=0.1, **style)
    axes[0].set(title="wavelength of the rotary planes", xlabel="plane", ylabel="wavelength (tokens)", yscale="log")
    whole_numbers(axes[0])
    axes[0].axhline(findings["max length"], color="black", linewidth=0.6, linestyle=":")
    axes[0].text(0, findings["max length"], " window", va="bottom", fontsize=8)
    axes[1].set(title="score of equal vectors", xlabel="lag (tokens)", ylabel="share of the score at lag 0")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# Momentum


def distinct_layers(gammas: list[float]) -> list[int]:
    """The first layer of each gamma, at most eight."""
    return [gammas.index(gamma) for gamma in dict.fromkeys(gammas)][:8]


@styled
@drawing("momentum")
def plot_bode(findings: dict, stream: str = "keys") -> Figure:
    """Bode plot of the shear: formula (lines) and what white noise through the loaded model gives (points)."""
    found = findings["momentum"]
    figure, axes = new_figure(2, 1, height=2.4)
    layers = distinct_layers(found["gammas"])
    omegas = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    # The lowest frequency, -pi, is pi: of sampled signals they are one.
    noise_omegas = torch.where(found["noise omegas"] < 1e-6 - math.pi, math.pi, found["noise omegas"])
    positive = noise_omegas >= 0
    for index, layer in enumerate(layers):
        gamma = found["gammas"][layer] if stream[0] in found["streams"] else 0.0
        style = series_style(index, len(layers))
        H = momentum.transfer_function(omegas, gamma)
        measured = found["noise"][stream][layer][positive]
        for ax, curve, points in (
            (axes[0], momentum.gain(H, decibels=True), momentum.gain(measured, decibels=True)),
            (axes[1], momentum.phase(H), momentum.phase(measured)),
        ):
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            ax.plot(omegas, curve, label=f"formula, $\\gamma$ = {gamma:.3g}", **line)
            dots = {**style, "linestyle": "", "markerfacecolor": "white"}
            ax.plot(noise_omegas[positive], points, label=f"measured, layer {layer}", **dots)
    axes[0].set(title=f"gain of the shear on {stream}", ylabel="gain (dB)")
    axes[1].set(title="its phase lead", ylabel="phase (degrees)")
    for ax in axes:
        ax.set_xlabel("frequency at the shear (radians / token)")
        ax.set_xticks([0, math.pi / 4, math.pi / 2, 3 * math.pi / 4, math.pi])
        ax.set_xticklabels(["0\n(DC)", "π/4", "π/2", "3π/4", "π\n(Nyquist)"])
    axes[0].legend(ncols=2)
    return figure


@styled
@drawing("momentum")
def plot_planes(findings: dict, stream: str = "keys", layer: int = 0) -> Figure:
    """
    Gain of each rotary plane for contents of several frequencies: formula (lines), measured by sinusoids (points).
    """
    found = findings["momentum"]
    figure, (ax,) = new_figure(height=3.0)
    picks = [0, 4, 8, 12, 16]
    names = ["0 (constant)", "π/4", "π/2", "3π/4", "π"]
    x = range(len(found["plane frequencies"]))
    for index, (pick, name) in enumerate(zip(picks, names)):
        style = series_style(index, len(picks))
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        ax.plot(x, found["formula"][stream][layer, :, pick].abs(), label=name, **line)
        dots = {**style, "linestyle": "", "markerfacecolor": "white"}
        ax.plot(x, found["measured"][stream][layer, :, pick].abs(), **dots)
    ax.set(xlabel="rotary plane (0 turns fastest)", ylabel="gain")
    whole_numbers(ax)
    ax.set_title(f"gain of {stream}, layer {layer}, by content frequency (points: measured)")
    ax.legend(ncols=5, title="radians / token", loc="upper center", columnspacing=0.8, handletextpad=0.4)
    ax.set_ylim(0, 1.35 * float(found["formula"][stream][layer].abs().max()))
    return figure


TERMS = ("$q\\cdot k$", "$\\gamma\\,p_q\\cdot k$", "$\\gamma\\,q\\cdot p_k$", "$\\gamma^2 p_q\\cdot p_k$")


@styled
@drawing("momentum/shares")
def plot_score_terms(findings: dict) -> Figure:
    """Shares of the four terms in the variance of the scores, by layer, averaged over heads."""
    figure, (ax,) = new_figure(height=2.6)
    shares = findings["momentum"]["shares"]["variance"].mean(-1)  # (4, L)
    layers = torch.arange(shares.shape[1])
    for term, values in enumerate(shares):
        style = {"color": series_style(term, 4)["color"], "edgecolor": "black", "hatch": ("", "//", "..", "xx")[term]}
        ax.bar(layers + 0.2 * (term - 1.5), values, width=0.2, label=TERMS[term], linewidth=0.6, **style)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="layer", ylabel="share of the scores' variance", title="what the scores are made of")
    ax.set_xticks(layers)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
@drawing("momentum/dc ac")
def plot_dc_ac(findings: dict, stream: str = "keys", layer: int = 0) -> Figure:
    """What the shear does to constant and to changing content, plane by plane, and what the theorem predicts."""
    found = findings["momentum"]
    table = {name: values[layer] for name, values in found["dc ac"][stream].items()}
    gamma = found["gammas"][layer] if stream[0] in found["streams"] else 0.0
    figure, axes = new_figure(2, 1, height=2.5)
    x = torch.arange(len(found["plane frequencies"]))
    predicted = momentum.plane_response(torch.zeros(1), found["plane frequencies"], gamma, found["placement"])
    axes[0].plot(x, predicted[:, 0].abs().square(), color="black", label="predicted for constant content")
    axes[0].axhline(momentum.noise_gain(gamma), color="0.5", linestyle=":", label="predicted for white noise")
    for part, style in (("dc", TRAINED), ("ac", CONTROL)):
        gains = table[f"content_{part}_sheared"] / table[f"content_{part}"]
        label = {"dc": "measured: constant part (DC)", "ac": "measured: changing part (AC)"}[part]
        axes[0].plot(x, gains, label=label, **{**style, "linestyle": ""})
    axes[0].set(ylabel="energy with / without shear", xlabel="rotary plane (0 turns fastest)")
    from_zero(axes[0])
    axes[0].set_title(f"{stream} of layer {layer}: gain in energy")
    axes[0].legend(ncols=2, fontsize=7, loc="center right")
    for suffix, style, label in (("", CONTROL, "without the shear"), ("_sheared", TRAINED, "with the shear")):
        dc, ac = table[f"received_dc{suffix}"], table[f"received_ac{suffix}"]
        axes[1].plot(x, dc / (dc + ac), label=label, **style)
    axes[1].set(ylabel="share of the energy", xlabel="rotary plane (0 turns fastest)")
    from_zero(axes[1])
    axes[1].set_title("constant part (DC) of what attention receives")
    for ax in axes:
        whole_numbers(ax)
    axes[1].legend()
    return figure


# Cyclic tasks


@styled
@drawing("task")
def plot_fourier(findings: dict, control: dict | None = None) -> Figure:
    """Fourier spectra of a model's tables and logits, and the accuracy that the strongest frequencies carry."""
    labels = list(findings["explained by top 5"])
    figure, axes = new_figure((len(labels) + 2) // 2, 2, height=2.3)
    for ax, label in zip(axes, labels):
        x = torch.arange(1, len(findings[label]))
        ax.bar(x, findings[label][1:], color="0.25", width=0.8, label=findings["name"])
        if control is not None:
            ax.plot(x, control[label][1:], color="0.55", linestyle="--", label="untrained copy")
        share = findings["explained by top 5"][label]
        ax.set(
            title=f"{label.replace('W_U W_out', '$W_U W_{out}$')}: its top 5 hold {share:.1%}",
            xlabel=f"frequency (turns in {findings['residues']} residues)",
            ylabel="share of energy",
        )
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax = axes[len(labels)]
    for found, style in ((findings, TRAINED), (control, CONTROL)):
        if found is not None:
            ax.plot(list(found["accuracy by k"]), list(found["accuracy by k"].values()), **style)
    if findings["task"] == "add mod 113":
        # With the five strongest frequencies, arXiv 2603.05228.
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
