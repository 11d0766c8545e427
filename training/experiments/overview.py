"""
The picture at the top of the README: each mechanism as vectors, and below it one stored result.

```bash
python -m training.experiments.overview
```
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from training.experiments.head_specialisation.measure import LAG_EDGES


HERE = Path(__file__).parent
BLUE, ORANGE, GREY = "#12355b", "#e08a1e", "0.55"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def read_arm(experiment: str, arm: str, **fields) -> list[dict]:
    """The stored rows of one arm that have these values."""
    files = (HERE / experiment).rglob("*.jsonl")
    rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    found = [row for row in rows if row["arm"] == arm and fields.items() <= row.items()]
    assert found, f"{experiment} has no rows of {arm}"
    return found


def draw_arrow(axes: Axes, start, end, color: str, line: str = "-") -> None:
    style = {"arrowstyle": "-|>", "color": color, "linestyle": line, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def draw_prism(axes: Axes) -> None:
    z, signal, noise = np.array([1.0, 0.35]), np.array([0.75, 0.65]), np.array([0.9, -0.35])
    end = z + signal - 0.4 * noise
    draw_arrow(axes, (0, 0), z, "black")
    draw_arrow(axes, z, z + signal, BLUE)
    draw_arrow(axes, z + signal, end, ORANGE)
    draw_arrow(axes, (0, 0), end, "black", ":")
    axes.text(0.65, 0.02, "token $z$", ha="left")
    axes.text(*(z + 0.5 * signal + (0.1, -0.05)), "+ signal heads", color=BLUE, va="top")
    axes.text(*(end + (0.1, 0.12)), r"$-\,\lambda\,\times$ noise heads", color=ORANGE, ha="left")
    axes.text(*(0.5 * end + (-0.1, 0.08)), "next $z$", ha="right")
    axes.set(xlim=(-0.2, 2.6), ylim=(-0.25, 1.5))


def draw_momentum(axes: Axes) -> None:
    previous, now = np.array([0.3, 0.95]), np.array([1.15, 0.75])
    sheared = now + 1.1 * (now - previous)
    for end, color in ((previous, GREY), (now, "black"), (sheared, BLUE)):
        draw_arrow(axes, (0, 0), end, color)
    draw_arrow(axes, now, sheared, ORANGE)
    axes.text(*(previous + (0, 0.07)), "$k_{t-1}$", color=GREY, ha="center")
    axes.text(*(now + (0, 0.07)), "$k_t$", ha="center")
    axes.text(*(0.5 * (now + sheared) + (0.1, 0.1)), r"$\gamma\,(k_t - k_{t-1})$", color=ORANGE)
    axes.text(0.75, 0.08, "the key that attention reads", color=BLUE, va="top")
    axes.set(xlim=(-0.2, 2.6), ylim=(-0.25, 1.5))


def draw_spherical(axes: Axes) -> None:
    now, update = np.array([np.cos(1.95), np.sin(1.95)]), np.array([1.0, 0.25])
    end = (now + update) / np.linalg.norm(now + update)
    axes.add_patch(Circle((0, 0), 1, fill=False, color=GREY))
    draw_arrow(axes, (0, 0), now, "black")
    draw_arrow(axes, now, now + update, ORANGE)
    draw_arrow(axes, now + update, end, GREY, ":")
    draw_arrow(axes, (0, 0), end, BLUE)
    axes.text(*(0.5 * now + (-0.08, 0)), "$h$", ha="right")
    axes.text(*(now + update + (-0.15, 0.1)), "attention or MLP", color=ORANGE, ha="center")
    axes.text(*(0.5 * end + (0.1, -0.05)), "next $h$", color=BLUE, va="top")
    axes.text(1.05, 0.45, "length 1", color=GREY)
    axes.set(xlim=(-1.4, 1.6), ylim=(-0.1, 1.5))


def plot_lags(axes: Axes) -> None:
    rows = read_arm("head_specialisation", "default")
    middles = [(a + b - 1) / 2 for a, b in zip(LAG_EDGES, LAG_EDGES[1:])]
    for bank, name, color, line, at in ((0, "signal heads", BLUE, "-", 8), (1, "noise heads", ORANGE, "--", 2)):
        lags = np.mean([row["trained"]["lags by bank"][bank] for row in rows], axis=0)
        # Lag 0 has no place on a logarithmic axis.
        axes.loglog(middles[1:], lags[1:], color=color, linestyle=line)
        heads = slice(None, rows[0]["num_signal_heads"]) if bank == 0 else slice(rows[0]["num_signal_heads"], None)
        distance = np.mean([np.array(row["trained"]["distance"])[:, heads] for row in rows])
        label = f"{name}: {distance:.0f} tokens\nback on average"
        axes.annotate(label, (middles[at], lags[at]), xytext=(4, 4), textcoords="offset points", color=color)
    axes.set(xlabel="tokens back", ylabel="attention per token", title="Noise heads look near, signal heads far")


def plot_induction(axes: Axes) -> None:
    shown = (
        ("keys-1", "one layer,\nsheared keys", BLUE, "-", 170, -0.2),
        ("two-layers", "two layers", "black", "--", 620, -0.35),
        ("one-layer", "one layer", GREY, "-", 1150, 0.04),
    )
    for arm, name, color, line, x, dy in shown:
        rows = read_arm("induction", arm)
        rates = {row["learning_rate"] for row in rows}
        # The rate that all seeds ran at is the one that won the grid.
        curves = max(([r["curve"] for r in rows if r["learning_rate"] == rate] for rate in rates), key=len)
        mean = np.mean(curves, axis=0)
        steps = 1200 / (len(mean) - 1) * np.arange(len(mean))
        axes.plot(steps, mean, color=color, linestyle=line)
        axes.text(x, np.interp(x, steps, mean) + dy, name, color=color, ha="right" if x > 1000 else "left")
    axes.set(xlabel="training steps", ylabel="answers right", ylim=(0, 1.03), title="One layer does induction")


def plot_grokking(axes: Axes) -> None:
    shown = (("sphere", "sphere", BLUE, "-", 360), ("layer_norm", "LayerNorm", ORANGE, "--", 5800))
    for arm, name, color, line, x in shown:
        rows = read_arm("grokking", arm, table="addition", lr=0.0006)
        for row in rows:
            every = row["settings"]["eval_epochs"]
            accuracy = row["curves"]["test_accuracy"][: row["test_onset"] // every + 1]
            epochs = every * np.arange(len(accuracy))
            axes.plot(epochs[1:], accuracy[1:], color=color, linestyle=line, linewidth=0.8)
            axes.plot(epochs[-1], accuracy[-1], "o", color=color, markersize=3)
        label = f"{name}:\n{np.mean([row['test_onset'] for row in rows]):,.0f} epochs"
        axes.text(x, 0.5, label, color=color, ha="right")
    axes.set(xscale="log", xlim=(70, 12000), ylim=(0, 1.03))
    axes.set(xlabel="epochs", ylabel="test accuracy", title="The sphere groks sooner")


def plot_overview() -> Figure:
    """The mechanisms above, what was measured below."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), height_ratios=(1, 1.15))
        names = ("Prism: subtract noise", "Momentum: add the change", "Spherical: stay at length 1")
        for axis, name, draw in zip(axes[0], names, (draw_prism, draw_momentum, draw_spherical)):
            draw(axis)
            axis.set_title(name, fontweight="bold")
            axis.set_aspect("equal")
            axis.axis("off")
        for axis, plot in zip(axes[1], (plot_lags, plot_induction, plot_grokking)):
            plot(axis)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    plot_overview().savefig(HERE / "overview.png", dpi=130)
