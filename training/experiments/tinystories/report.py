"""From the rows of finished runs to the tables, the figure and the numbers of prose.md."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, HOLLOW, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import mean_and_spread, with_interval
from training.experiments.common.stories import above, at_best, best_rate, bits, standing
from training.experiments.tinystories.arms import ARMS, FLOORS
from training.experiments.tinystories.kinds import KINDS


# The ideas whose gain is taken apart by kind of token.
TAKEN_APART = ("momentum", "prism-stepped", "prism", "spherical-radius")


def above_control(best: dict[str, list[dict]], arm: str) -> list[float]:
    """Bits per byte above the arm's control, paired by seed, each at its best rate."""
    control = ARMS[arm].control
    return above(best[arm], best[control]) if control in best else []


def make_tables(rows: list[dict]) -> str:
    """One row per arm, the best first."""
    best = at_best(rows)
    heads = ["arm", "parameters", "FLOPs a token / Llama's", "best rate", "seeds", "bits per byte, mean ± std"]
    heads += ["above its control, same seeds"]
    cells = []
    for arm, runs in best.items():
        cells.append([f"`{arm}`"])
        if arm in FLOORS:
            cells[-1] += ["", "", "", "", f"{bits(runs)[0]:.3f}", ""]
            continue
        llama = best["llama"][0]["training_flops_per_token"] if "llama" in best else np.nan
        distance = with_interval(above_control(best, arm), "+.3f")
        cells[-1] += [f"{runs[0]['parameters']:,}", f"{runs[0]['training_flops_per_token'] / llama:.2f}"]
        cells[-1] += [best_rate(rows, arm), len(runs), mean_and_spread(bits(runs))]
        cells[-1] += [f"{distance} (`{ARMS[arm].control}`)" if distance else ""]
    return make_table(heads, cells)


def gains(best: dict[str, list[dict]], arm: str, kind: str) -> list[float]:
    """Nats per token of one kind above the control's, paired by seed."""
    control = {row["seed"]: row["nats"][kind] for row in best[ARMS[arm].control]}
    return [row["nats"][kind] - control[row["seed"]] for row in best[arm] if row["seed"] in control]


def make_kinds(rows: list[dict]) -> str:
    """One row per kind of token: nats above the control's."""
    best = at_best(rows)
    arms = [arm for arm in TAKEN_APART if arm in best and ARMS[arm].control in best]
    if not arms:
        return "No arm has run beside its control yet."
    shares = best[arms[0]][0]["shares"]
    heads = ["token", "share", *(f"`{arm}` above `{ARMS[arm].control}`" for arm in arms)]
    cells = [
        [f"{kind}: {meaning}", f"{100 * shares[kind]:.0f} %"]
        + [with_interval(gains(best, arm, kind), "+.3f") for arm in arms]
        for kind, meaning in KINDS.items()
        if kind in shares
    ]
    return make_table(heads, cells)


@styled
def plot_bits_per_byte(rows: list[dict]) -> Figure:
    """Every seed of every arm at its best rate, beside the n-gram models of the same tokens."""
    best = at_best(rows)
    arms = [arm for arm in best if arm not in FLOORS]
    figure, (ax,) = new_figure(height=0.3 * len(arms) + 1)
    for line, arm in enumerate(arms):
        style = {**(HOLLOW if arm.endswith("-compute") else DOT), "color": LIGHT if ARMS[arm].control else DARK}
        ax.plot(bits(best[arm]), [line] * len(best[arm]), **style)
        label(ax, max(bits(best[arm])), line, f"{np.mean(bits(best[arm])):.3f}", xytext=(7, 0))
    for arm in FLOORS:
        if arm in best:
            ax.axvline(bits(best[arm])[0], color=GREY, linestyle=":")
            side = {"xytext": (-3, 0), "ha": "right"} if arm == "4-gram" else {"xytext": (3, 0)}
            label(ax, bits(best[arm])[0], -0.6, arm, "0.35", fontsize=7, **side)
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.5, -0.9)
    ax.margins(x=0.12)
    ax.set_xlabel("bits per byte of every seed (dark: ordinary attention)")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"bits_per_byte": plot_bits_per_byte(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    return {"table": make_tables(rows), "kinds": make_kinds(rows)}


def verdict(distances: list[float], spread: float) -> str:
    """In a word or two, for the project's table of claims; one seed shows no distance below the spread of seeds."""
    if len(distances) == 1 and abs(distances[0]) < spread:
        return "no difference shown, one seed"
    seeds = f", {len(distances)} seeds" if len(distances) > 1 else ", one seed"
    return standing(distances).removesuffix(" of") + seeds


def numbers(rows: list[dict]) -> dict:
    """What prose.md needs."""
    best = at_best(rows)
    compared = [arm for arm in best if ARMS[arm].control in best and above_control(best, arm)]
    spread = max(bits(best["gpt-neox"])) - min(bits(best["gpt-neox"]))
    flops = {arm: runs[0].get("training_flops_per_token") for arm, runs in best.items()}
    return {
        "above": {arm: with_interval(above_control(best, arm), "+.3f") for arm in compared},
        "verdict": {arm: verdict(above_control(best, arm), spread) for arm in compared},
        "cost": {arm: flops[arm] / flops[ARMS[arm].control] for arm in compared},
        "seeds": len(best["gpt-neox"]),
        "spread": spread,
        "tokens": best["4-gram"][0]["tokens_seen"] / 1e6,
    }
