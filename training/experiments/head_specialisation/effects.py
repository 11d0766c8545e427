"""
How far the banks of a model are apart, before and after training, over seeds.

A seed is one observation: the heads of one model share its data, its other weights and its initial draw, and are no
sample of anything beyond it.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from scipy import stats

from modeling_prism.analysis.prism import cliffs_delta


@dataclass(frozen=True)
class BankMetric:
    """A metric of heads in both banks of one model: means over the heads of all layers, and their effect size."""

    signal: float
    noise: float
    cliffs_delta: float

    @property
    def difference(self) -> float:
        return self.signal - self.noise


def bank_metric(metric: list[list[float]], num_signal_heads: int) -> BankMetric:
    """Splits a metric (L, H), signal heads first, by bank."""
    signal, noise = torch.tensor(metric, dtype=torch.float64).tensor_split((num_signal_heads,), dim=1)
    return BankMetric(signal.mean().item(), noise.mean().item(), cliffs_delta(signal, noise))


@dataclass(frozen=True)
class Effect:
    """
    A metric of one arm: the banks of the models, one a seed; untrained, trained, and trained but measured with equal
    bases.
    """

    seeds: list[int]
    untrained: list[BankMetric]
    trained: list[BankMetric]
    equal_bases: list[BankMetric]

    def differences(self, state: str) -> list[float]:
        """Signal - noise of each seed; `state` is "untrained", "trained", "equal_bases" or "added"."""
        if state == "added":
            return self.added
        return [bank.difference for bank in getattr(self, state)]

    @property
    def added(self) -> list[float]:
        """What training adds to signal - noise: trained less untrained, paired by seed."""
        return [after - before for before, after in zip(*map(self.differences, ("untrained", "trained")))]

    def added_less(self, other: "Effect") -> list[float]:
        """What training adds here less what it adds in `other`, for each seed that both have."""
        others = dict(zip(other.seeds, other.added))
        return [value - others[seed] for seed, value in zip(self.seeds, self.added) if seed in others]

    def mean(self, state: str, field: str) -> float:
        """Mean over seeds of a field of `BankMetric`."""
        return fmean(getattr(bank, field) for bank in getattr(self, state))


def effect_of(rows: list[dict], metric: str) -> Effect:
    """The effect on one metric in the rows of one arm."""
    states = ("untrained", "trained", "trained, equal bases")
    return Effect(
        [row["seed"] for row in rows],
        *([bank_metric(row[state][metric], row["num_signal_heads"]) for row in rows] for state in states),
    )


def slopes(x: list[float], effects: list[Effect], state: str) -> list[float]:
    """
    The slope of the regression line of signal - noise on x, for each seed that all effects have.

    One line through the models of all seeds would count each of them as an observation; those of a seed share its
    weights and its data.

    Args:
        x: a number an effect.
        state: as in `Effect.differences`.
    """
    seeds = [seed for seed in effects[0].seeds if all(seed in effect.seeds for effect in effects)]
    y = [[effect.differences(state)[effect.seeds.index(seed)] for effect in effects] for seed in seeds]
    return [float(stats.linregress(x, differences).slope) for differences in y]
