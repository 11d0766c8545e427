"""What is done to which heads. Signal heads come first."""

import random


# Tokens that a head may still look back; None: its output is replaced by its mean.
CHANGES = {"mean": None, "64 tokens": 64, "16 tokens": 16}
NUM_MIXED = 3


def banks_of(num_heads: int, num_signal_heads: int) -> dict[str, list[int]]:
    """The two banks and, as control, sets of as many heads as the signal bank, drawn from all heads."""
    heads = list(range(num_heads))
    banks = {"signal": heads[:num_signal_heads], "noise": heads[num_signal_heads:]}
    for seed in range(1, NUM_MIXED + 1):
        banks[f"mixed {seed}"] = sorted(random.Random(seed).sample(heads, num_signal_heads))
    return banks
