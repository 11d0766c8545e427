"""From the rows of finished runs to the table, the figure and the numbers of the README."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from transformers import AutoConfig

from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, GREY, HOLLOW, LIGHT, label
from training.experiments.common.jobs import read_results
from training.experiments.common.readme import Claim, make_table, wrap
from training.experiments.common.statistics import at_best_rate, by_arm, mean_and_spread
from training.experiments.prism_vs_baselines.arms import COMPUTE_MATCHED, N_GRAMS
from training.flops import training_flops_per_token


HERE = Path(__file__).parent
MODELS = HERE.parents[2] / "configuration/models"
PRISM = "prism-tiny"


def at_best(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm at its best learning rate, one per seed."""
    return {arm: at_best_rate(rows, "bits_per_byte", min, arm=arm) for arm in by_arm(rows)}


def bits(rows: list[dict]) -> list[float]:
    return [row["bits_per_byte"] for row in rows]


def distance(rows: list[dict], arm: str) -> str:
    """Bits per byte by which Prism is above `arm`, with Welch's 95 % confidence interval over seeds."""
    best = at_best(rows)
    if arm == PRISM or PRISM not in best or min(len(best[PRISM]), len(best[arm])) < 2:
        return ""
    prism, other = bits(best[PRISM]), bits(best[arm])
    interval = stats.ttest_ind(prism, other, equal_var=False).confidence_interval()
    return f"{np.mean(prism) - np.mean(other):.3f} ({interval.low:.3f} to {interval.high:.3f})"


def at_the_edge(rows: list[dict]) -> list[str]:
    """The arms that do best at an end of their grid of learning rates."""
    edges = {
        arm: {f([row["learning_rate"] for row in runs]) for f in (min, max)} for arm, runs in by_arm(rows).items()
    }
    return [arm for arm, best in at_best(rows).items() if best[0]["learning_rate"] in edges[arm]]


def flops_of(arm: str) -> tuple[float, float]:
    """Training FLOPs per token, with the full square of attention and with its causal half."""
    config = AutoConfig.from_pretrained(MODELS / arm)
    length = config.max_position_embeddings
    return tuple(training_flops_per_token(config, length, causal=causal) for causal in (False, True))


def make_tables(rows: list[dict]) -> str:
    """One row per arm, mean and standard deviation over seeds; speeds are ratios to llama-tiny, of throughput.json."""
    file = HERE / "throughput.json"
    speeds = json.loads(file.read_text(encoding="utf-8"))["phases"]["training"] if file.is_file() else {}
    heads = [
        "arm",
        "parameters",
        "training MFLOPs a token (causal)",
        "best learning rate",
        "bits per byte, mean ± std",
    ]
    heads += ["seeds", "Prism is worse by (95 % interval)", "tokens a second / Llama's"]
    cells = []
    for arm, best in at_best(rows).items():
        square, causal = flops_of(arm)
        speed = f"{speeds[arm]['tokens_ratio']['median']:.2f}" if arm in speeds else "not measured"
        cells.append([arm, f"{best[0]['parameters']:,}", f"{square / 1e6:.1f} ({causal / 1e6:.1f})"])
        cells[-1] += [f"{best[0]['learning_rate']:g}", mean_and_spread(bits(best)), len(best)]
        cells[-1] += [distance(rows, arm), speed]
    return make_table(heads, cells)


@styled
def plot_bits_per_byte(rows: list[dict]) -> Figure:
    """Every seed of every arm at its best rate, beside the n-gram models of the same tokens."""
    best = at_best(rows)
    arms = sorted(best, key=lambda arm: (arm in COMPUTE_MATCHED, np.mean(bits(best[arm]))))
    figure, (ax,) = new_figure(height=0.3 * len(arms) + 1)
    for line, arm in enumerate(arms):
        style = {**(HOLLOW if arm in COMPUTE_MATCHED else DOT), "color": LIGHT if arm == PRISM else DARK}
        ax.plot(bits(best[arm]), [line] * len(best[arm]), **style)
        label(ax, max(bits(best[arm])), line, f"{np.mean(bits(best[arm])):.3f}", xytext=(7, 0))
    for name, floor in N_GRAMS.items():
        ax.axvline(floor, color=GREY, linestyle=":")
        side = {"xytext": (-3, 0), "ha": "right"} if floor == min(N_GRAMS.values()) else {"xytext": (3, 0)}
        label(ax, floor, -0.5, name, "0.35", fontsize=7, **side)
    names = [arm.replace("-tiny-compute", ", Prism's FLOPs").replace("-tiny", ", Prism's size") for arm in arms]
    ax.set_yticks(range(len(arms)), [name if not name.startswith("prism") else "prism" for name in names])
    ax.set_ylim(len(arms) - 0.5, -0.8)
    ax.set_xlim(1.19, max(map(max, map(bits, best.values()))) + 0.04)
    ax.set_xlabel("validation bits per byte, every seed")
    ax.grid(axis="y", visible=False)
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    return {"bits_per_byte": plot_bits_per_byte(rows)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """What the README shows of the results, by block."""
    best = at_best(rows)
    means = {arm: np.mean(bits(runs)) for arm, runs in best.items()}
    baselines = {arm: mean for arm, mean in means.items() if arm != PRISM}
    behind = [means[PRISM] - mean for mean in baselines.values()]
    unclear = [arm for arm in baselines if "(-" in distance(rows, arm)]
    edge = at_the_edge(rows)
    heads = by_arm(read_results(HERE.parent / "head_specialisation"))
    gained = np.mean(bits(heads["default"])) - np.mean(bits(heads["R-1"]))
    speeds = json.loads((HERE / "throughput.json").read_text(encoding="utf-8"))["phases"]["training"]
    cost = {arm: flops_of(arm) for arm in (PRISM, "llama-tiny", "llama-tiny-compute")}

    verdict = f"""
**Behind every baseline, early in training.** After 0.52 M tokens Prism is worse than every baseline, by
{min(behind):.2f} to {max(behind):.2f} bits per byte, at equal parameters and at equal compute. But no arm has learned
much: the best has {min(means.values()):.3f} bits per byte, an interpolated Kneser-Ney bigram of the same tokens
{N_GRAMS["bigram"]:.3f}. So this measures early training speed and nothing more. It neither confirms nor refutes the
published claim.
"""
    table = make_table(
        ["arm", "parameters", "best learning rate", "bits per byte, mean ± std", "Prism is worse by (95 % interval)"],
        [
            [arm, f"{runs[0]['parameters']:,}", f"{runs[0]['learning_rate']:g}"]
            + [mean_and_spread(bits(runs)), distance(rows, arm)]
            for arm, runs in best.items()
        ]
        + [[f"Kneser-Ney {name}", "", "", f"{floor:.3f}", ""] for name, floor in N_GRAMS.items()],
    )
    findings = f"""
- **Every arm is worse than a bigram.** Longer n-grams have {N_GRAMS["trigram"]:.3f} (trigram) and
  {N_GRAMS["4-gram"]:.3f} bits per byte. They were scored on every eighth block of the same validation text.
- **The body does not explain the distance.** `gpt-neox-tiny` is Prism's body with ordinary attention in place of the
  dictionary, and does as well as GPT-2: {means["gpt-neox-tiny"]:.3f} against {means["gpt2-tiny"]:.3f}.
- **Some baselines could do better.** Of the baselines, {len(edge)} do best at an edge of the grid of learning rates
  ({", ".join(f"`{arm}`" for arm in edge)}). A wider grid could only widen the distance, as Prism's best rate lies
  inside.
- **One interval includes zero**, that of {" and ".join(f"`{arm}`" for arm in unclear)}. One of its seeds went badly;
  its other two are the best runs of all.
- **Overcompleteness does not help at this budget.** In the data of
  [head_specialisation](../head_specialisation/README.md), a smaller Prism with R = 1 is better than one with R = 2,
  by {gained:.3f} bits per byte.
- **Equal compute** counts the full square of attention. Counted with the causal half, Prism costs
  {100 * (1 - cost[PRISM][1] / cost["llama-tiny-compute"][1]):.0f} % less than its compute-matched baselines.
- **Speed.** Prism trains at {speeds[PRISM]["tokens_ratio"]["median"]:.2f} of Llama's tokens per second, because a
  token costs it {cost[PRISM][0] / cost["llama-tiny"][0]:.1f} times the FLOPs. `throughput.json` has all speeds, the
  hardware and the versions.
- The published setting, 50 M parameters and 655 M tokens, has not been run.
  `configuration/recipes/tinystories_50m.yaml` is that run, and `--model_config configuration/models/gpt-neox-50m` its
  control.
"""
    return {"verdict": wrap(verdict), "table": table, "findings": wrap(findings)}


def claims(rows: list[dict]) -> list[Claim]:
    means = {arm: np.mean(bits(runs)) for arm, runs in at_best(rows).items()}
    behind = [means[PRISM] - mean for arm, mean in means.items() if arm != PRISM]
    return [
        Claim(
            "Prism predicts better than standard attention of equal size",
            "behind, early in training",
            f"{min(behind):.2f} to {max(behind):.2f} bits per byte worse; so far a bigram beats every arm",
            "prism_vs_baselines",
        )
    ]
