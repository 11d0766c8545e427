"""From the rows of finished runs to the table, the figure and the numbers of the README."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, LIGHT, label
from training.experiments.common.readme import Claim, make_table, wrap
from training.experiments.common.statistics import at_best_rate, by_arm, mean_and_spread
from training.experiments.prism_steps.arms import ARMS


BODY = "gpt-neox"


def at_best(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm at the rate that is best on the first half of the validation stories, best arms first."""
    best = {
        arm: runs if ARMS[arm].ngram else at_best_rate(runs, "bits_per_byte", min)
        for arm, runs in by_arm(rows).items()
    }
    return dict(sorted(best.items(), key=lambda item: np.mean(bits(item[1]))))


def bits(rows: list[dict]) -> list[float]:
    """Bits per byte of the second half, which chooses nothing."""
    return [row["bits_per_byte_to_report"] for row in rows]


def make_tables(rows: list[dict]) -> str:
    """One row per arm, the best first."""
    best = at_best(rows)
    heads = ["arm", "objective of the update", "parameters", "tokens", "best learning rate"]
    heads += ["bits per byte, mean ± std", f"above {BODY}", "attention / stream at the start, by layer"]
    cells = []
    for arm, runs in best.items():
        row = runs[0]
        above = f"{np.mean(bits(runs)) - np.mean(bits(best[BODY])):+.3f}" if BODY in best else ""
        cells.append([f"`{arm}`", ARMS[arm].objective.replace("|", "\\|")])
        cells[-1] += [f"{row['parameters']:,}" if "parameters" in row else "", f"{row['tokens_seen']:,}"]
        cells[-1] += [
            f"{row['learning_rate']:g}" if "learning_rate" in row else "",
            mean_and_spread(bits(runs)),
            above,
        ]
        cells[-1].append(", ".join(f"{ratio:.2f}" for ratio in row.get("branch_ratio", [])))
    return make_table(heads, cells, text=2)


@styled
def plot_bits_per_byte(rows: list[dict]) -> Figure:
    """Every seed of every arm, the best on top; floors as lines."""
    best = at_best(rows)
    arms = [arm for arm in best if not ARMS[arm].ngram]
    figure, (ax,) = new_figure(height=0.22 * len(arms) + 0.8)
    for line, arm in enumerate(arms):
        ax.plot(bits(best[arm]), [line] * len(best[arm]), **{**DOT, "color": DARK if ARMS[arm].preset else LIGHT})
        label(ax, max(bits(best[arm])), line, f"{np.mean(bits(best[arm])):.3f}", xytext=(6, 0), fontsize=7)
    for arm, runs in best.items():
        if ARMS[arm].ngram:
            ax.axvline(np.mean(bits(runs)), color=GREY, linestyle=":")
            label(ax, np.mean(bits(runs)), len(arms) - 0.7, arm, "0.35", xytext=(3, 0), fontsize=7)
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.5, -0.6)
    ax.set_xlabel("bits per byte (dark: ordinary attention)")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"bits_per_byte": plot_bits_per_byte(rows)}


def verdict(rows: list[dict]) -> str:
    """What the search has found so far; every number is computed."""
    best = {arm: float(np.mean(bits(runs))) for arm, runs in at_best(rows).items()}
    body, floor = best[BODY], best["4-gram"]
    ours = {arm: value for arm, value in best.items() if ARMS[arm].preset is None and ARMS[arm].ngram is None}
    closest = min(ours, key=ours.get)
    step = "step-0.2"
    text = f"""
        **Not settled.** No Prism reaches `{BODY}` yet: the closest, `{closest}`, is {ours[closest] - body:+.3f} bits
        per byte above it. A smaller step alone, `{step}`, leaves {ours[step] - body:+.3f}.

        Every arm is {"above" if min(ours[closest], body) > floor else "not above"} the 4-gram of the same tokens
        ({floor:.3f}), `{BODY}` included ({body:.3f}).
        """
    return wrap(text)


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    return {"verdict": verdict(rows), "table": make_tables(rows)}


def claims(rows: list[dict]) -> list[Claim]:
    """None: a search has no row in the project's table of results."""
    return []
