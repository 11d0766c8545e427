"""From rows of results to numbers, and how numbers are written. The unit is the seed."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats


def first_step_at(values: list[float], threshold: float, eval_steps: int) -> int | None:
    """The first tested step at which the value is at least `threshold`; None: never."""
    return next((index * eval_steps for index, value in enumerate(values) if value >= threshold), None)


def by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm, in their order."""
    return {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}


def at_best_rate(rows: list[dict], metric: str = "mean_accuracy", best: Callable = max, **arm) -> list[dict]:
    """
    The rows of an arm at the learning rate that won the grid, one per seed.

    Args:
        rows (`list[dict]`): within an arm, the grid comes first, all of one seed.
        metric (`str`): what the grid is judged by; the `best` (`max` or `min`) wins.
        arm: keys and values that all rows of the arm have.
    """
    rows = [row for row in rows if all(row[key] == value for key, value in arm.items())]
    winner = best((row for row in rows if row["seed"] == rows[0]["seed"]), key=lambda row: row[metric])
    return [row for row in rows if row["learning_rate"] == winner["learning_rate"]]


def interval_of_mean(values: list[float]) -> tuple[float, float] | None:
    """Student's 95 % confidence interval of the mean; None: fewer than two values."""
    if len(values) < 2:
        return None
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(mean - half), float(mean + half)


def mean_and_spread(values: list[float], form: str = ".3f") -> str:
    """Mean ± standard deviation, each in the format `form`; of a single value, the value."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def with_interval(values: list[float], form: str = "+.2f") -> str:
    """'mean (low to high)', the 95 % interval over seeds, each in the format `form`; '' of nothing."""
    if not values:
        return ""
    interval = interval_of_mean(values)
    bounds = f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""
    return f"{np.mean(values):{form}}{bounds}"


def rounded(values: torch.Tensor, digits: int = 5) -> list:
    """Nested lists of so many significant digits: results are kept as text."""
    if values.ndim:
        return [rounded(value, digits) for value in values]
    return float(f"{values.item():.{digits}g}")
