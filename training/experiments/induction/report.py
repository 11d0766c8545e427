"""From the rows of finished runs to the table, the figure and the numbers of the README."""

import numpy as np
from matplotlib.figure import Figure

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, HOLLOW, LIGHT, label
from training.experiments.common.readme import Claim, make_table, wrap
from training.experiments.common.statistics import at_best_rate, by_arm, mean_and_spread


# The arms in the order of the figure, and what they are called there.
GROUPS = {
    "no shear": {"one-layer": "one layer", "two-layers": "two layers"},
    "keys sheared": {
        "keys-1": "gamma 1",
        "keys-4.17": "gamma 4.17",
        "keys-1-pre-rope": "gamma 1, before RoPE",
        "keys-negative": "gamma -0.5: a low-pass filter",
        "keys-learned": "gamma learned per head",
        "keys-smeared": "learned average of two keys",
    },
    "queries and keys sheared": {
        "both-0.3": "gamma 0.3",
        "both-1": "gamma 1",
        "both-4.17": "gamma 4.17",
        "both-1-pre-rope": "gamma 1, before RoPE",
        "both-negative": "gamma -0.5: a low-pass filter",
    },
    "no previous token in the keys": {
        "queries-1": "queries alone, gamma 1",
        "keys-wrong-lag": "keys, the token before the last",
        "keys-shuffled": "keys, a token at random",
    },
}


def at_best(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm at its best learning rate, one per seed."""
    return {arm: at_best_rate(rows, arm=arm) for arm in by_arm(rows)}


def steps_of(rows: list[dict], key: str) -> str:
    """Median and extremes of the steps of the seeds that got there."""
    steps = [row[key] for row in rows if row[key] is not None]
    if not steps:
        return "never"
    missing = f" ({len(steps)} of {len(rows)})" if len(steps) < len(rows) else ""
    return f"{np.median(steps):.0f} [{min(steps)}, {max(steps)}]{missing}"


def locked_in(rows: list[dict]) -> str:
    return f"{sum(row['steps_to_lock_in'] is not None for row in rows)} of {len(rows)}"


def final(rows: list[dict]) -> str:
    """Accuracy after the last step, mean ± std over seeds."""
    return mean_and_spread([row["accuracy"] for row in rows])


def make_tables(rows: list[dict]) -> str:
    """All that is measured, one row per arm."""
    heads = ["arm", "best learning rate", "locked in", "steps to 50 %, median [extremes]", "steps to 90 %"]
    heads += ["final accuracy, mean ± std", "prefix matching of the best head", "loss on repeats, nats"]
    cells = []
    for arm, best in at_best(rows).items():
        prefix = np.mean([max(max(layer) for layer in row["prefix_matching"]) for row in best])
        repeats = np.mean([row["repeats_loss"] for row in best])
        cells.append([arm, f"{best[0]['learning_rate']:g}", locked_in(best), steps_of(best, "steps_to_lock_in")])
        cells[-1] += [steps_of(best, "steps_to_master"), final(best), f"{prefix:.2f}", f"{repeats:.2f}"]
    return make_table(heads, cells)


@styled
def plot_accuracy(rows: list[dict]) -> Figure:
    """Final accuracy of every seed, one line per arm, the arms in groups."""
    best = at_best(rows)
    figure, (ax,) = new_figure(height=0.21 * (len(best) + len(GROUPS)) + 0.6)
    line, ticks = 0, {}
    for group, arms in GROUPS.items():
        shown = [arm for arm in arms if arm in best]
        if not shown:
            continue
        at = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8}
        ax.text(-0.02, line, group, fontweight="bold", **at)
        for arm in shown:
            line += 1
            ticks[line] = arms[arm]
            accuracies = [row["accuracy"] for row in best[arm]]
            style = {**(HOLLOW if group.startswith("no") else DOT), "color": LIGHT if "both" in arm else DARK}
            ax.plot(accuracies, [line] * len(accuracies), **style)
            label(ax, max(accuracies), line, f"{np.mean(accuracies):.3f}", xytext=(7, 0), fontsize=7)
        line += 1.4
    ax.axvline(1 / 32, color=GREY, linestyle=":")
    label(ax, 1 / 32, 2.6, "a guess among the tokens shown", color="0.35", fontsize=7)
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylim(line - 0.4, -0.7)
    ax.set_xlim(0, 1.1)
    ax.set_xlabel("share of answers right after the last step, every seed")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"accuracy": plot_accuracy(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    best = at_best(rows)
    acc = {arm: final(runs) for arm, runs in best.items()}

    def steps(arm: str) -> str:
        return f"{np.median([row['steps_to_lock_in'] for row in best[arm]]):.0f}"

    def mean(arm: str) -> str:
        return f"{np.mean([row['accuracy'] for row in best[arm]]):.3f}"

    def prefix(arm: str) -> float:
        return np.mean([max(max(layer) for layer in row["prefix_matching"]) for row in best[arm]])

    fixed = [prefix(arm) for arm in ("keys-1", "keys-4.17", "keys-1-pre-rope", "keys-negative")]
    names = {arm: (group, text) for group, arms in GROUPS.items() for arm, text in arms.items()}
    table = make_table(
        [
            "what is changed",
            "arm",
            "seeds that lock in",
            "steps to 50 %, median [extremes]",
            "final accuracy, mean ± std",
        ],
        [
            [f"{group}: {text}", f"`{arm}`", locked_in(best[arm]), steps_of(best[arm], "steps_to_lock_in"), acc[arm]]
            for arm, (group, text) in names.items()
        ],
        text=2,
    )
    verdict = f"""
**Confirmed, but the high-pass filter is not the reason.** One layer whose keys carry the previous token does
induction in {locked_in(best["keys-1"])} seeds. Without the shear it does so in {locked_in(best["one-layer"])}. With
gamma 1, keys alone end at {acc["keys-1"]} of the answers. A low-pass filter, gamma -0.5, does no worse:
{acc["keys-negative"]}.
"""
    findings = f"""
- **The key has to carry the token before it, and nothing else matters as much.** A learned average of two keys
  (Olsson et al. 2022) is the best one-layer arm: {acc["keys-smeared"]}. A learned gamma (Xu et al. 2024) reaches
  {acc["keys-learned"]}. With the token before the last or one at random, the layer learns nothing:
  {mean("keys-wrong-lag")} and {mean("keys-shuffled")}.
- **Queries alone do nothing** ({mean("queries-1")}): a query's own predecessor does not tell it where to look.
- **Keys alone beat both streams**, as the follow-up paper says. At gamma 1 they reach {mean("keys-1")}, both streams
  {mean("both-1")}.
- **The shear need not follow RoPE.** Before RoPE, keys alone reach {mean("keys-1-pre-rope")} and both streams
  {mean("both-1-pre-rope")}.
- **Momentum buys an early start, not a better answer.** Keys alone have half of the answers after {steps("keys-1")}
  steps, two plain layers after {steps("two-layers")}. In the end the two layers are better: {acc["two-layers"]}.
- The published gamma of one layer, 4.17, is too large for both streams ({mean("both-4.17")}). For keys it is the best
  gamma of those tried.
- Prefix matching stays well below accuracy in one layer with a fixed shift: {min(fixed):.2f} to {max(fixed):.2f}. The
  heads also attend elsewhere, and the answers still come out right.
"""
    return {"verdict": wrap(verdict), "table": table, "findings": wrap(findings)}


def claims(rows: list[dict]) -> list[Claim]:
    acc = {arm: final(runs) for arm, runs in at_best(rows).items()}
    return [
        Claim(
            "One layer with momentum does induction",
            "confirmed",
            f"{acc['keys-1']} of the answers right; without momentum {acc['one-layer']}",
            "induction",
        ),
        Claim(
            "... because momentum is a high-pass filter",
            "refuted",
            f"a low-pass filter reaches {acc['keys-negative']}",
            "induction",
        ),
    ]
