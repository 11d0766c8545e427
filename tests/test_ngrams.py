"""The Kneser-Ney floor against its definition, token by token."""

import math
from collections import Counter

import numpy as np
import pytest

from training.ngrams import KneserNey


VOCABULARY = 5
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 60)


def naive_probability(tokens: list[int], context: tuple, word: int, highest: bool = True) -> float:
    """Chen and Goodman's recursion, with dictionaries."""
    length = len(context) + 1
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    if not highest:
        longer = {tuple(tokens[i : i + length + 1]) for i in range(len(tokens) - length)}
        grams = [gram[1:] for gram in longer]
    counts = Counter(grams)
    histogram = Counter(counts.values())
    discount = histogram[1] / (histogram[1] + 2 * histogram[2]) if histogram[1] else 0.0
    lower = naive_probability(tokens, context[1:], word, False) if context else 1 / VOCABULARY
    after = {gram: count for gram, count in counts.items() if gram[:-1] == context}
    total = sum(after.values())
    if total == 0:
        return lower
    return max(after.get((*context, word), 0) - discount, 0) / total + discount * len(after) / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_definition(order):
    test = np.random.default_rng(1).integers(0, VOCABULARY, 40)
    found = np.exp(-KneserNey(TOKENS, order, VOCABULARY).nats(test))
    for place, probability in enumerate(found):
        *context, word = test[place : place + order].tolist()
        assert probability == pytest.approx(naive_probability(TOKENS.tolist(), tuple(context), word))


def test_probabilities_sum_to_one():
    model = KneserNey(TOKENS, 3, VOCABULARY)
    sums = [
        sum(math.exp(-model.nats(np.array([first, second, word]))[0]) for word in range(VOCABULARY))
        for first in range(VOCABULARY)
        for second in range(VOCABULARY)
    ]
    assert sums == pytest.approx([1.0] * len(sums))


def test_a_longer_context_helps_only_where_there_is_order():
    cycle = np.tile(np.arange(VOCABULARY), 20)
    assert KneserNey(cycle, 2, VOCABULARY).nats(cycle).mean() < 0.1
    assert KneserNey(cycle, 1, VOCABULARY).nats(cycle).mean() == pytest.approx(math.log(VOCABULARY))
