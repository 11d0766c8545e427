"""Interpolated Kneser-Ney n-grams: the floor that a language model has to beat on the tokens it was trained on."""

import math
from dataclasses import dataclass

import numpy as np

from training.tasks import Blocks


@dataclass(frozen=True)
class _Order:
    """Counts of one order: sorted n-gram codes with counts, sorted contexts with totals and numbers of successors."""

    codes: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    successors: np.ndarray
    discount: float


def _encode(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """All n-grams of `length` in `tokens` (N,) as one number each, the last token the least significant."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), length)
    return windows @ (vocab_size ** np.arange(length - 1, -1, -1, dtype=np.int64))


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` of the `wanted` keys; 0 where a key is missing."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


class KneserNey:
    """
    An interpolated Kneser-Ney model (Chen and Goodman, 1999, eq. 19 to 22) with one discount per order.

        p(w | c) = max(n(c w) - D, 0) / n(c) + D N(c) / n(c) p(w | c without its first token)

    n counts tokens at the highest order and distinct left neighbours below it; N(c) is the number of distinct
    successors; D = n_1 / (n_1 + 2 n_2). The recursion ends in the uniform distribution.

    Args:
        tokens (`np.ndarray` of shape `(N,)`): training tokens, each from 0 to `vocab_size - 1`.
        order (`int`): n, at least 1.
        vocab_size (`int`): number of tokens in the vocabulary.

    Raises:
        ValueError: an order below 1, one whose n-grams do not fit 63 bits, or fewer tokens than the order.
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int):
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"`order`={order} must be at least 1, and `vocab_size ** order` below 2 ** 63.")
        if len(tokens) < order:
            raise ValueError(f"`tokens` holds {len(tokens)} tokens, fewer than `order`={order}.")
        self.order, self.vocab_size = order, vocab_size
        codes, counts = np.unique(_encode(tokens, order, vocab_size), return_counts=True)
        self.orders = [self._count(codes, counts)]
        for length in range(order - 1, 0, -1):
            # Distinct (length + 1)-grams that end in each n-gram of this length.
            longer = np.unique(_encode(tokens, length + 1, vocab_size))
            codes, counts = np.unique(longer % vocab_size**length, return_counts=True)
            self.orders.insert(0, self._count(codes, counts))

    def _count(self, codes: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, starts, successors = np.unique(codes // self.vocab_size, return_index=True, return_counts=True)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.0
        return _Order(codes, counts, contexts, np.add.reduceat(counts, starts), successors, discount)

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """-ln p of each of `tokens` (M,) but the first `order - 1`, which lack a full context: (M - order + 1,)."""
        probability = np.full(len(tokens) - self.order + 1, 1 / self.vocab_size)
        for length, counted in enumerate(self.orders, start=1):
            codes = _encode(tokens, length, self.vocab_size)[self.order - length :]
            contexts = codes // self.vocab_size
            count = _look_up(counted.codes, counted.counts, codes)
            total = _look_up(counted.contexts, counted.totals, contexts)
            successors = _look_up(counted.contexts, counted.successors, contexts)
            seen = np.maximum(count - counted.discount, 0) + counted.discount * successors * probability
            probability = np.where(total > 0, seen / np.maximum(total, 1), probability)
        return -np.log(probability)

    def bits_per_byte(self, blocks: Blocks) -> float:
        """Of the validation part of `blocks`."""
        nats = self.nats(np.concatenate(blocks.validation["input_ids"])).mean()
        return float(nats) / math.log(2) / blocks.validation_bytes_per_token


def count_ngrams(blocks: Blocks, order: int, num_tokens: int) -> KneserNey:
    """Counts the first `num_tokens` training tokens, or as many as there are."""
    num_blocks = num_tokens // len(blocks.train[0]["input_ids"])
    rows = blocks.train.select(range(min(num_blocks, len(blocks.train))))
    return KneserNey(np.concatenate(rows["input_ids"]), order, blocks.vocab_size)
