"""
Whether Prism's banks differ, and whether training made the difference: one rule for the table and the sentences.

A metric differs between banks if its adjusted p is below `SIGNIFICANT` and its size is notable. A published difference
holds if, moreover, its direction is the published one and untrained copies do not show it as well.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats

from .reducers import HEAD_METRICS


# A difference is notable above this share of all attention or, for metrics that are not shares, of the larger mean.
SIGNIFICANT, NOTABLE = 0.05, 0.05
# The claims of arXiv 2601.15540 about the banks, which it makes in words only.
PUBLISHED_BANKS = {"distance": "signal > noise", "centroid": "signal < noise"}


def number(value: float) -> str:
    """Three significant digits, with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def probability(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


@dataclass(frozen=True)
class Training:
    """What training did to a difference: in a sentence, in a table cell, and whether the difference is its work."""

    sentence: str
    cell: str
    made: bool


@dataclass(frozen=True)
class BankRow:
    """A head metric in both banks, and what to make of it."""

    name: str
    published: str  # "" if nothing is published
    signal: float
    noise: float
    delta: float
    p: float  # adjusted
    untrained: tuple[float, ...]  # signal minus noise in each untrained copy
    differs: bool
    training: Training
    verdict: str

    @property
    def untrained_range(self) -> str:
        if not self.untrained:
            return ""
        least, most = number(min(self.untrained)), number(max(self.untrained))
        return least if least == most else f"{least} to {most}"


def copies_of(control: dict, name: str) -> list[dict]:
    """The head metrics of the untrained copies that have this one; copies read few texts and may lack it."""
    return [heads for heads in control.get("copies", []) if name in heads]


def bank_gaps(control: dict, name: str) -> list[float]:
    """Mean over signal heads minus mean over noise heads, per untrained copy (without copies, of the control)."""
    H_S = control["prism"]["signal heads"]
    metrics = [heads[name] for heads in copies_of(control, name) or [control.get("heads", {})] if name in heads]
    return [(metric[:, :H_S].mean() - metric[:, H_S:].mean()).item() for metric in metrics]


def least_notable(name: str, split: dict) -> float:
    """The smallest notable difference in a head metric, in its unit."""
    return NOTABLE * (1 if HEAD_METRICS[name] == "share" else max(abs(split["signal"]), abs(split["noise"])))


def work_of_training(gap: float, before: Sequence[float], least: float) -> Training:
    """
    What training did to a difference between banks.

    Args:
        gap: the difference in the trained model.
        before: the differences in untrained copies.
        least: the smallest notable change.
    """
    if len(before) < 2:
        return Training("a single copy cannot show what training did", "only one untrained copy", False)
    mean, error = statistics.fmean(before), statistics.stdev(before) / math.sqrt(len(before))
    # Prediction interval of one more untrained copy, widened (Bonferroni) because a metric may be picked for being
    # large in this model.
    t = scipy.stats.t.ppf(1 - SIGNIFICANT / len(HEAD_METRICS) / 2, len(before) - 1)
    if abs(gap - mean) <= t * error * math.sqrt(len(before) + 1):
        said = "training changed it by no more than untrained copies vary"
        return Training(said, "within the spread of untrained copies", False)
    if abs(gap - mean) <= least:
        return Training("it is built in, not learned", "built in", False)
    # Architecture builds in what the copies share.
    share = mean / gap if abs(mean) > t * error else 0.0
    if share < -0.1:
        return Training("training reversed it", "reversed by training", True)
    if share < 0.1:
        return Training("training made it", "learned", True)
    if share > 1:
        return Training("it is built in, and training reduced it", "built in, reduced by training", False)
    said = f"{share:.0%} of it is built in, and training added the rest"
    return Training(said, f"{share:.0%} built in, rest learned", True)


def bank_rows(findings: dict, control: dict) -> list[BankRow]:
    """Every head metric of a Prism, judged."""
    rows = []
    for name, split in findings["prism"].get("banks", {}).items():
        gap, least, p = split["signal"] - split["noise"], least_notable(name, split), split["adjusted_p"]
        untrained = tuple(bank_gaps(control, name))
        differs = p < SIGNIFICANT and abs(gap) > least
        training, published = work_of_training(gap, untrained, least), PUBLISHED_BANKS.get(name, "")
        if not differs:
            verdict = f"not shown: {probability(p)}" if p >= SIGNIFICANT else "not shown: too small"
        elif not published:
            verdict = f"differs: {training.cell}"
        elif published != ("signal > noise" if gap > 0 else "signal < noise"):
            verdict = f"reversed: {training.cell}"
        elif len(untrained) < 2:
            verdict = f"undecided: {training.cell}"
        else:
            verdict = f"{'holds' if training.made else 'does not hold'}: {training.cell}"
        rows.append(
            BankRow(
                name,
                published,
                split["signal"],
                split["noise"],
                split["cliffs_delta"],
                p,
                untrained,
                differs,
                training,
                verdict,
            )
        )
    return rows


def strongest(rows: Sequence[BankRow]) -> BankRow | None:
    """The row with the largest effect among those that differ."""
    return max((row for row in rows if row.differs), key=lambda row: abs(row.delta), default=None)
