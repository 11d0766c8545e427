"""Figures and tables of Momentum: its filter, formula and measurement."""

import math

import torch
from matplotlib.figure import Figure

from ..configuration_momentum import MomentumConfig
from . import momentum
from .figures import CONTROL, TRAINED, Picture, drawing, from_zero, new_figure, series_style, styled, whole_numbers
from .verdicts import number


def distinct_layers(gammas: list[float]) -> list[int]:
    """The first layer of each distinct gamma, at most eight."""
    return [gammas.index(gamma) for gamma in dict.fromkeys(gammas)][:8]


@styled
@drawing("momentum")
def plot_bode(findings: dict, stream: str = "keys") -> Figure:
    """Bode plot of the shear: formula (lines) and white noise through the loaded model (points)."""
    found = findings["momentum"]
    figure, axes = new_figure(2, 1, height=2.4)
    layers = distinct_layers(found["gammas"])
    omegas = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    # For sampled signals, -pi and pi are the same frequency.
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
            ax.plot(omegas, curve, label=f"formula, γ = {gamma:.3g}", **line)
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
    """Gain of each rotary plane for several content frequencies: formula (lines) and sinusoids (points)."""
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


TERMS = ("q·k", "γ p_q·k", "γ q·p_k", "γ² p_q·p_k")


@styled
@drawing("momentum/shares")
def plot_score_terms(findings: dict) -> Figure:
    """Share of each of the four terms in the variance of the scores, by layer, mean over heads."""
    figure, (ax,) = new_figure(height=2.6)
    shares = findings["momentum"]["shares"]["variance"].mean(-1)  # (4, L)
    layers = torch.arange(shares.shape[1])
    for term, values in enumerate(shares):
        style = {"color": series_style(term, 4)["color"], "edgecolor": "black", "hatch": ("", "//", "..", "xx")[term]}
        ax.bar(layers + 0.2 * (term - 1.5), values, width=0.2, label=TERMS[term], linewidth=0.6, **style)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="layer", ylabel="share of the scores' variance", title="composition of the scores")
    ax.set_xticks(layers)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
@drawing("momentum/dc ac")
def plot_dc_ac(findings: dict, stream: str = "keys", layer: int = 0) -> Figure:
    """Effect of the shear on constant and changing content, plane by plane, with the prediction."""
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
    axes[0].legend(ncols=2, fontsize=8, loc="center right")
    for suffix, style, label in (("", CONTROL, "without the shear"), ("_sheared", TRAINED, "with the shear")):
        dc, ac = table[f"received_dc{suffix}"], table[f"received_ac{suffix}"]
        axes[1].plot(x, dc / (dc + ac), label=label, **style)
    axes[1].set(ylabel="share of the energy", xlabel="rotary plane (0 turns fastest)")
    from_zero(axes[1])
    axes[1].set_title("constant part (DC) as attention receives it")
    for ax in axes:
        whole_numbers(ax)
    axes[1].legend()
    return figure


def sheared_stream(found: dict) -> str:
    """The stream to draw: queries if only they are sheared, otherwise keys."""
    return "queries" if found["momentum"]["streams"] == "q" else "keys"


def why_these_are_drawn(found: dict) -> str:
    """States which layers and stream the figures show, and why they suffice."""
    stream, gammas = sheared_stream(found), found["momentum"]["gammas"]
    layers = distinct_layers(gammas)
    other = "queries" if stream == "keys" else "keys"
    alike = "sheared alike" if found["momentum"]["streams"] == "qk" else "not sheared"
    said = f"Drawn: the {stream} ({other} are {alike}) of layer{'s'[: len(layers) > 1]} {', '.join(map(str, layers))}"
    if len(set(gammas)) > len(layers):
        said += " (the first few distinct gammas)"
    elif len(layers) < len(gammas):
        said += ", because layers with the same gamma are the same filter"
    return said + ". report.json has the numbers of all layers."


def momentum_section(found: dict) -> list[Picture]:
    """The figures of a Momentum, with captions."""
    stream = sheared_stream(found)
    layer = next((i for i, gamma in enumerate(found["momentum"]["gammas"]) if gamma != 0), 0)
    pictures = [
        Picture(
            "bode",
            "Bode plot of the shear. Lines: H(w) = 1 + gamma (1 - e^(-jw)). Points: white noise replaces the "
            "projections of the loaded model and is recorded where attention receives it; being samples, the points "
            "scatter. Sinusoids, which do not scatter (next figure), give the deviation from the formula: at most "
            f"{found['momentum']['largest deviation']:.1g} in gain. {why_these_are_drawn(found)}",
            plot_bode(found, stream),
        ),
        Picture(
            "planes",
            "Gain of each rotary plane, by content frequency. A shear after RoPE sees content at its frequency plus "
            f"the plane's own. Points: sinusoids through the loaded model, layer {layer}.",
            plot_planes(found, stream, layer),
        ),
    ]
    if "shares" in found["momentum"]:
        pictures += [
            Picture(
                "score_terms",
                "Share of each of the four terms in the variance of a score over keys, mean over heads. The shares "
                "sum to 1; a term with a negative share counteracts the others.",
                plot_score_terms(found),
            ),
            Picture(
                "dc_ac",
                "Top: energy of the constant and the changing part of the content with the shear, relative to "
                "without, by rotary plane, and the prediction of the formula. Bottom: the constant share of what "
                "attention receives. report.json has the numbers of the other layers.",
                plot_dc_ac(found, stream, layer),
            ),
        ]
    return pictures


def filter_table(found: dict) -> dict:
    """
    The shear, one row per distinct gamma: gamma and the published law's value at this depth, then formula and
    measurement. The measurement reads the slowest plane, where the content's frequency is almost that at the shear.
    """
    stream, gammas = sheared_stream(found), found["momentum"]["gammas"]
    published = MomentumConfig(num_hidden_layers=len(gammas)).momentum_gamma
    header = ["layer", "gamma", "published"]
    for name in ("Nyquist gain", "noise gain", "lead (degrees)"):
        header += [name, "measured"]
    rows = []
    for layer in distinct_layers(gammas):
        gamma, H = gammas[layer], found["momentum"]["measured"][stream][layer, -1]
        # At the measured frequencies; the maximum lies between two of them.
        lead = momentum.phase(found["momentum"]["formula"][stream][layer, -1]).max()
        # The mean over 0 to pi, by the trapezoidal rule.
        noise_gain = torch.trapezoid(H.abs().square()) / (len(H) - 1)
        measured = (H[-1].abs(), noise_gain, momentum.phase(H).max())
        formula = (abs(1 + 2 * gamma), momentum.noise_gain(gamma), lead)
        pairs = [number(round(float(value), 4)) for pair in zip(formula, measured) for value in pair]
        rows.append([str(layer), number(gamma), number(published), *pairs])
    title = f"The shear on {stream}: formula (after arXiv 2602.04902) and measurement"
    return {"title": title, "header": header, "rows": rows}
