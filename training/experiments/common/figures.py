"""What the experiments' figures share. Series differ in lightness and marker, so that they survive greyscale."""

from matplotlib.axes import Axes


DARK, LIGHT, GREY = "#12355b", "#e08a1e", "0.55"
DOT = {"linestyle": "", "marker": "o", "color": DARK, "markersize": 5}
HOLLOW = {**DOT, "markerfacecolor": "white"}


def plot_rows(ax: Axes, rows: dict[str, list[float]], shift: float = 0, **style) -> None:
    """One line of dots per name, the first on top; `shift` moves them down by a share of a line."""
    for line, values in enumerate(rows.values()):
        ax.plot(values, [line + shift] * len(values), **{**DOT, **style})
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def label(ax: Axes, x: float, y: float, text: str, color: str = "black", **options) -> None:
    """Text beside the data, in place of a legend."""
    defaults = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    ax.annotate(text, (x, y), color=color, **{**defaults, **options})
