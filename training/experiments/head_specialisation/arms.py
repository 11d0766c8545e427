"""The arms: Prism as published, and what could make its banks differ, one change at a time."""

import math
from dataclasses import dataclass, field


def bases(factor: float) -> dict[str, float]:
    """RoPE bases of signal and noise heads, a factor of `factor ** 2` apart around 10000."""
    return {"signal_rope_theta": 10000 * factor, "noise_rope_theta": 10000 / factor}


@dataclass(frozen=True)
class Arm:
    """
    Args:
        fields: of `PrismConfig`, on top of the model that all arms share.
        lambda_start, lambda_end: the weight of the subtracted noise heads, at the first and the last step.
    """

    fields: dict[str, float] = field(default_factory=lambda: bases(math.pi))
    lambda_start: float = 0.01
    lambda_end: float = 0.10


ARMS = {
    "default": Arm(),
    # The bases
    "equal-bases": Arm(bases(1)),
    "swapped-bases": Arm(bases(1 / math.pi)),
    "ratio-3": Arm(bases(3)),
    "ratio-golden": Arm(bases((1 + math.sqrt(5)) / 2)),
    # The weight of the noise heads: none, the published end from the start, as strong as the signal heads
    "lambda-0": Arm(lambda_start=0.0, lambda_end=0.0),
    "lambda-fixed": Arm(lambda_start=0.1),
    "lambda-1": Arm(lambda_start=1.0, lambda_end=1.0),
    # Heads of half the width: no overcomplete banks
    "R-1": Arm({**bases(math.pi), "dictionary_expansion": 1}),
}
