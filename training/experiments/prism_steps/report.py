"""From the rows of finished runs to the table, the figure and the numbers of the README."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, LIGHT, label
from training.experiments.common.readme import Claim, make_table, wrap
from training.experiments.common.statistics import mean_and_spread, with_interval
from training.experiments.common.stories import above, at_best, best_rate, bits, standing
from training.experiments.prism_steps.arms import ARMS


BODY = "gpt-neox"
# What each arm leaves out of `all`.
PARTS = {
    "all-no-key-shift": "the key shift",
    "all-step-1": "the smaller step",
    "all-no-query-gain": "the query gain",
    "all-plain-values": "rotary values",
    "all-lambda": "adding the noise heads",
}


def is_like(row: dict, other: dict) -> bool:
    """Whether two rows have the same rate and seed."""
    return all(row.get(name) == other[name] for name in ("learning_rate", "seed"))


def make_tables(rows: list[dict]) -> str:
    """One row per arm, the best first."""
    best = at_best(rows)
    heads = ["arm", "objective of the update", "parameters", "best rate", "seeds", "bits per byte, mean ± std"]
    heads += [f"above {BODY}, same seeds", "attention / stream at the start, by layer"]
    cells = []
    for arm, runs in best.items():
        row, is_floor = runs[0], ARMS[arm].ngram is not None
        cells.append([f"`{arm}`", ARMS[arm].objective.replace("|", "\\|")])
        cells[-1] += ["", "", ""] if is_floor else [f"{row['parameters']:,}", best_rate(rows, arm), len(runs)]
        cells[-1] += [mean_and_spread(bits(runs))]
        is_other = BODY in best and not is_floor and arm != BODY
        cells[-1] += [with_interval(above(runs, best[BODY]), "+.3f") if is_other else ""]
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


def winner(best: dict[str, list[dict]]) -> str:
    """Of Prism's arms those with the most seeds; of these the best."""
    ours = [arm for arm in best if ARMS[arm].preset is None and ARMS[arm].ngram is None]
    return max(ours, key=lambda arm: (len(best[arm]), -np.mean(bits(best[arm]))))


def cost(best: dict[str, list[dict]]) -> float:
    """FLOPs of the winner, as a multiple of the body's."""
    return best[winner(best)][0]["training_flops_per_token"] / best[BODY][0]["training_flops_per_token"]


def verdict(rows: list[dict]) -> str:
    """What the search has found; every number is computed."""
    best = at_best(rows)
    body, floor, ours = best[BODY], np.mean(bits(best["4-gram"])), winner(best)
    distances = above(best[ours], body)
    unseen = [row for row in best[ours] if row["seed"] != 0]
    # At one rate and seed, so that only the part differs.
    single = {row["arm"]: row["bits_per_byte_to_report"] for row in rows if is_like(row, best["all"][0])}
    costs = [f"{single[arm] - single['all']:.3f} ({part})" for arm, part in PARTS.items() if arm in single]
    side = "are above" if min(np.mean(bits(best[ours])), np.mean(bits(body))) > floor else "are not both above"
    text = f"""
        **Its step and its circuits, not its dictionary.** With one dictionary and equal parameters, `{ours}` is
        {standing(distances)} `{BODY}`, its own body with ordinary attention: {with_interval(distances, "+.3f")} bits
        per byte over {len(distances)} paired seeds, at {cost(best):.1f} times the FLOPs. Without seed 0, by which this
        arm was chosen, it is {with_interval(above(unseen, body), "+.3f")}.

        What `all` loses when one part is left out, at its rate and for one seed: {", ".join(costs)}.

        Both {side} the 4-gram of the same tokens: {np.mean(bits(best[ours])):.3f} and {np.mean(bits(body)):.3f}
        against {floor:.3f}. So this is how fast they learn, not yet how well they predict.
        """
    return wrap(text)


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    return {"verdict": verdict(rows), "table": make_tables(rows)}


def claims(rows: list[dict]) -> list[Claim]:
    best = at_best(rows)
    distances = above(best[winner(best)], best[BODY])
    number = (
        f"{with_interval(distances, '+.3f')} bits per byte at {cost(best):.1f} times the FLOPs; a 4-gram beats both"
    )
    claim = "... and the same at 0.5 M parameters"
    return [Claim(claim, f"{standing(distances).removesuffix(' of')}, early in training", number, "prism_steps")]
