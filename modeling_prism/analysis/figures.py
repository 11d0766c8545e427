"""
Figures of any model: from findings (`examine`) to matplotlib figures, for a notebook or the report.

All figures survive greyscale: series differ in marker and line, and colour maps are perceptually uniform. `control`
holds the findings of an untrained copy, for comparison.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from torch import Tensor

from .heads import BANDS
from .reducers import HEAD_METRICS


# Inches. The page shows no figure narrower than this.
WIDTH = 5.6
MAP = "cividis"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
TRAINED = {"color": "black", "marker": "o", "linestyle": "-", "markersize": 4}
CONTROL = {"color": "0.55", "marker": "s", "linestyle": "--", "markersize": 4, "markerfacecolor": "white"}
BANKS = {
    "signal": {"color": "#12355b", "marker": "o", "linestyle": "-", "markersize": 4},
    "noise": {"color": "#e08a1e", "marker": "^", "linestyle": "--", "markersize": 4},
}
# Fonts with Chinese, Japanese and Korean characters, which the default font lacks; those that are installed are used.
CJK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei")
INSTALLED_FONTS = {font.name for font in fontManager.ttflist}
STYLE = {
    "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in INSTALLED_FONTS), "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    # Text stays text in SVG: searchable, and readable by screen readers.
    "svg.fonttype": "none",
    # A "$" in a model's name is a dollar sign.
    "text.parse_math": False,
    "svg.hashsalt": "modeling_prism",
}


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and the caption a reader needs."""

    name: str
    caption: str
    figure: Figure


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Applies the style of this package to a plotting function, whatever the notebook's style."""

    @functools.wraps(plot)
    def wrapper(*args, **kwargs):
        with plt.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapper


# Which findings hold a key.
WHOSE = {
    "prism": "a Prism model (`examine`)",
    "momentum": "a Momentum model (`examine`)",
    "task": "a task modulo a number (`examine_cyclic`)",
    "heads": "a model that gives attention maps, on texts of 16 tokens or more (`examine`)",
    "repeats": "a model that gives attention maps (`examine`)",
    "loss": "a model on texts (`examine`)",
}


def check_findings(plot: str, findings: dict, path: str) -> None:
    """Raises `ValueError` if findings lack the key that a figure draws, such as `"prism"` or `"prism/banks"`."""
    family, _, part = path.partition("/")
    if not isinstance(findings, dict):
        raise ValueError(
            f"`{plot}` draws findings, the dictionary that `examine` returns; got {type(findings).__name__}."
        )
    own = f"the findings of {findings.get('name')!r}, a {findings.get('family')} model,"
    if family not in findings:
        raise ValueError(f"`{plot}` draws findings of {WHOSE[family]}; {own} are not.")
    if part and part not in findings[family]:
        raise ValueError(f"`{plot}` draws {part!r}, but {own} lack it: see their `notes`, and give longer texts.")


def drawing(path: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Makes a plotting function refuse findings that lack `path` (see `check_findings`)."""

    def decorate(plot):
        @functools.wraps(plot)
        def wrapper(findings, *args, **kwargs):
            check_findings(plot.__name__, findings, path)
            return plot(findings, *args, **kwargs)

        return wrapper

    return decorate


def check_several(plot: str, all_findings: list[dict], path: str) -> None:
    """Runs `check_findings` on each; raises `ValueError` for a dictionary instead of a list."""
    if isinstance(all_findings, dict) or not len(all_findings):
        raise ValueError(f"`{plot}` draws a list of findings: give [found, other].")
    for findings in all_findings:
        check_findings(plot, findings, path)


def new_figure(rows: int = 1, columns: int = 1, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of standard width with `rows * columns` axes; `height` per row in inches."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False)
    # Otherwise a notebook draws it twice.
    plt.close(figure)
    return figure, list(axes.flat)


def label_of(findings: dict) -> str:
    """A model's name as a label: printable, and with an ellipsis in the middle if it is long."""
    name = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in findings["name"]
    )
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"


def series_style(index: int, count: int) -> dict:
    """Colour, marker and line of series `index` out of `count`, from dark to light."""
    shade = plt.get_cmap(MAP)(0.25 + 0.6 * index / max(count - 1, 1))
    return {"color": shade, "marker": MARKERS[index % 8], "linestyle": LINES[index % 4], "markersize": 4}


def whole_numbers(ax: Axes):
    """Puts the ticks of the x axis at whole numbers, for planes, layers and heads."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_scale(ax: Axes, axes: str):
    """Log scale for `axes` ("x", "y" or "xy"), with plain numbers as tick labels."""
    for name in axes:
        getattr(ax, f"set_{name}scale")("log")
        axis = getattr(ax, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def from_zero(ax: Axes):
    """Starts the y axis at 0 and ends it just above the data."""
    # The signal-to-noise ratio of a subspace that spans everything is infinite and not drawn.
    values = torch.cat([torch.as_tensor(line.get_ydata(), dtype=torch.float64) for line in ax.lines])
    top = values[values.isfinite()].max().item() if values.isfinite().any() else 0
    ax.set_ylim(0, 1.08 * top if top > 0 else 1)


def bank_means(metric: Tensor, findings: dict) -> list[tuple[str, Tensor, dict]]:
    """
    Labelled series of a head metric (L, H, ...): for Prism the mean of each bank, otherwise the mean of each layer, or
    of six layers from the first to the last.
    """
    if "prism" in findings:
        H_S = findings["prism"]["signal heads"]
        banks = (("signal", metric[:, :H_S]), ("noise", metric[:, H_S:]))
        return [(f"{bank} heads", values.flatten(0, 1).mean(0), BANKS[bank]) for bank, values in banks]
    chosen = torch.linspace(0, len(metric) - 1, min(len(metric), 6)).round().int().tolist()
    return [(f"layer {i}", metric[i].mean(0), series_style(n, len(chosen))) for n, i in enumerate(chosen)]


@styled
@drawing("heads")
def plot_heads(findings: dict) -> Figure:
    """Every head metric as a map of layers and heads."""
    names = [name for name in HEAD_METRICS if name in findings["heads"]]
    L, H = findings["heads"][names[0]].shape
    figure, axes = new_figure((len(names) + 1) // 2, 2, height=max(1.5, min(0.27 * L + 0.75, 4)))
    for ax, name in zip(axes, names):
        values = findings["heads"][name]
        # One scale, 0 to 1, makes shares comparable; its root shows small ones.
        limits = {"norm": PowerNorm(0.5, 0, 1)} if HEAD_METRICS[name] == "share" else {"vmin": 0}
        image = ax.imshow(values, cmap=MAP, aspect="auto", **limits)
        ax.grid(False)
        ax.set(title=f"{name} ({HEAD_METRICS[name]})", xlabel="head", ylabel="layer")
        ax.set_xticks(range(0, H, math.ceil(H / 8)))
        ax.set_yticks(range(0, L, math.ceil(L / 8)))
        figure.colorbar(image, ax=ax, shrink=0.9)
        # Room for three characters of 8 pt per cell.
        if L * H <= 64 and H <= 4:
            write_values(ax, values, image)
        if "prism" in findings:
            ax.axvline(findings["prism"]["signal heads"] - 0.5, color="white", linewidth=2)
            ax.axvline(findings["prism"]["signal heads"] - 0.5, color="black", linewidth=0.8)
    for ax in axes[len(names) :]:
        ax.remove()
    return figure


def two_sided(energies: Tensor, frequencies: Tensor) -> Tensor:
    """Energies (..., F) as a density: frequencies 0 and Nyquist, which have no negative, count twice."""
    weight = 1.0 + (frequencies == 0) + (frequencies == 0.5)
    return energies * weight


def write_values(ax: Axes, values: Tensor, image):
    """Writes each value into its cell, dark on light and light on dark, in shades that no page replaces."""
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = (
                f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}".removeprefix("0")
            )
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="#fefefe" if dark else "#010101")


@styled
@drawing("heads")
def plot_attention_over_lag(findings: dict, control: dict | None = None) -> Figure:
    """Mean attention by lag, its energy spectrum, and its energy by band."""
    figure, axes = new_figure(3, 1, height=2.5)
    found = findings["heads"]
    # Few queries reach large lags: their means are noise.
    lags = torch.arange(1, max(2, int((found["reach"] >= 0.1 * found["reach"][0]).sum())))
    for label, values, style in bank_means(found["lags"], findings):
        axes[0].plot(lags, values[lags], label=label, markevery=0.1, **style)
    for label, values, style in bank_means(found["spectrum"], findings):
        axes[1].plot(
            found["frequencies"], two_sided(values, found["frequencies"]), label=label, markevery=0.1, **style
        )
    if control is not None and "heads" in control:
        other = control["heads"]
        axes[0].plot(lags, other["lags"].mean((0, 1))[lags], label="untrained, all heads", markevery=0.1, **CONTROL)
        spectrum = two_sided(other["spectrum"].mean((0, 1)), other["frequencies"])
        axes[1].plot(other["frequencies"], spectrum, label="untrained, all heads", markevery=0.1, **CONTROL)
    log_scale(axes[0], "xy")
    axes[0].set(xlabel="lag (tokens)", ylabel="mean attention (share)", title="attention over the lag")
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], 1e-6))
    log_scale(axes[1], "y")
    axes[1].set(xlabel="frequency (cycles / token)", ylabel="share of a query's energy", title="its energy spectrum")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

    groups = bank_means(found["bands"], findings)
    if control is not None and "heads" in control:
        groups.append(("untrained", control["heads"]["bands"].mean((0, 1)), CONTROL))
    left = torch.zeros(len(groups))
    names = ["above 64", "16 to 64", "4 to 16", "2 to 4"]
    for band in range(len(BANDS) - 1):
        widths = torch.stack([values[band] for _, values, _ in groups])
        style = {"color": plt.get_cmap(MAP)(band / 3), "edgecolor": "black", "hatch": ("", "//", "..", "xx")[band]}
        axes[2].barh([label for label, _, _ in groups], widths, left=left, label=names[band], linewidth=0.5, **style)
        left += widths
    axes[2].invert_yaxis()
    axes[2].set(xlim=(0, 1), xlabel="share of the energy")
    axes[2].set_title("its energy by period, in tokens", pad=20)
    axes[2].legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 0.97))
    return figure


@styled
def plot_residual(findings: dict, control: dict | None = None) -> Figure:
    """Norm, effective rank, entropy, coding rate and turn of the residual stream, layer by layer."""
    figure, axes = new_figure(3, 2, height=2.0)
    panels = [
        ("norm", "mean norm", "norm of the residual stream"),
        ("effective rank", "dimensions", "effective rank"),
        ("entropy", "nats", "matrix entropy"),
        ("coding rate", "nats", "coding rate R(Z)"),
        ("angle", "degrees", "angle turned by a layer"),
    ]
    handles = []
    for ax, (name, unit, title) in zip(axes, panels):
        values = findings["residual"][name]
        x = torch.arange(len(values))
        handles = ax.plot(x, values, label=label_of(findings), **TRAINED)
        if control is not None:
            handles += ax.plot(x, control["residual"][name], label="untrained copy", **CONTROL)
        ax.set(title=title, xlabel="layer" if name == "angle" else "layers passed", ylabel=unit)
        ax.set_xticks(range(0, len(values), math.ceil(len(values) / 7)))
        if name == "norm" and values.max() > 30 * values.clamp(min=1e-9).min():
            log_scale(ax, "y")
        else:
            from_zero(ax)
    axes[5].axis("off")
    axes[5].legend(handles=handles, loc="center")
    return figure


@styled
@drawing("repeats")
def plot_induction(findings: dict, control: dict | None = None) -> Figure:
    """Prefix-matching score of every head on random repeats."""
    figure, (ax,) = new_figure(height=2.6)
    for found, style, label, shift in (
        (findings, TRAINED, label_of(findings), -0.12),
        (control, CONTROL, "untrained copy", 0.12),
    ):
        if found is None or "repeats" not in found:
            continue
        scores = found["repeats"]["induction"]
        for layer, row in enumerate(scores.tolist()):
            style = {**style, "linestyle": ""}
            ax.plot([layer + shift] * len(row), row, label=label if layer == 0 else None, alpha=0.8, **style)
    ax.set(xlabel="layer", ylabel="prefix matching (share)")
    from_zero(ax)
    ax.set_xticks(range(findings["layers"]))
    ax.set_title("induction on random repeats, one point per head")
    ax.legend()
    return figure


@styled
def plot_maps(view: dict) -> Figure:
    """The attention map of every head on one text (`view_text`), layers from top to bottom, on a square-root scale."""
    maps = view["maps"][view["trained"]]
    L, H, S, _ = maps.shape
    edge = max(1, S // 24)
    # (L, S, H, S): one image, with a gap between maps.
    tiles = torch.nn.functional.pad(maps, (0, edge, 0, edge)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    figure, (ax,) = new_figure(height=min(8, WIDTH * L / H + 0.6))
    ax.imshow(tiles, cmap="Greys", vmin=0, vmax=255, aspect="auto", interpolation="none")
    ax.grid(False)
    ax.set(xlabel="head", ylabel="layer")
    ax.set_xticks([(head + 0.5) * (S + edge) for head in range(H)], range(H))
    ax.set_yticks([(layer + 0.5) * (S + edge) for layer in range(L)], range(L))
    return figure


@styled
def plot_comparison(all_findings: list[dict]) -> Figure:
    """Bits per byte of several models, which may have different tokenizers."""
    check_several("plot_comparison", all_findings, "loss")
    figure, (ax,) = new_figure(height=1.2 + 0.35 * len(all_findings))
    names = [f"{label_of(found)} ({found['parameters'] / 1e6:.1f} M)" for found in all_findings]
    values = [found["loss"]["bits per byte"] for found in all_findings]
    bars = ax.barh(names, values, color="0.8", edgecolor="black", height=0.6)
    bars[0].set(hatch="//", label="the model of this report")
    ax.bar_label(bars, fmt=" %.3f")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="bits per byte (lower is better)")
    figure.legend(handles=[bars[0]], loc="outside lower center")
    return figure


@styled
def plot_head_comparison(all_findings: list[dict]) -> Figure:
    """Every head of several models with the same tokenizer, one panel per metric; bars are means."""
    if not isinstance(all_findings, dict):
        # A model without attention maps has no heads to draw.
        all_findings = [found for found in all_findings if "heads" in found] or all_findings
    check_several("plot_head_comparison", all_findings, "heads")
    names = [name for name in HEAD_METRICS if all(name in found["heads"] for found in all_findings)]
    figure, axes = new_figure((len(names) + 1) // 2, 2, height=0.9 + 0.28 * len(all_findings))
    for ax, name in zip(axes, names):
        for row, found in enumerate(all_findings):
            values = found["heads"][name].flatten()
            style = {**series_style(row, len(all_findings)), "linestyle": ""}
            ax.plot(values, torch.full_like(values, row), alpha=0.7, **style)
            ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color="black")
        labels = [label_of(found) for found in all_findings] if ax in axes[::2] else [""] * len(all_findings)
        ax.set_yticks(range(len(all_findings)), labels)
        ax.set(title=f"{name} ({HEAD_METRICS[name]})", ylim=(len(all_findings) - 0.5, -0.5))
    for ax in axes[len(names) :]:
        ax.remove()
    return figure
