"""Multi-query associative recall (MQAR) of Zoology (Arora et al., arXiv 2312.04927), with its published settings.

A sequence first lists pairs of a key and a value. It then asks for each key once, in random order: after the second
occurrence of a key, the model must predict its value. Everything between the questions is noise.

Example, `draw_recall(1, vocab_size=16, length=16, num_pairs=3, seed=3)`, token by token. `.` stands for -100, a token
that is not scored:

```text
input_ids   2 14  5 12  1 15  1 11 12 15  2  4  5 10  5 11
labels      .  .  .  .  .  .  . 15  .  .  . 14  .  .  . 12
            key   key   key   asked       asked       asked
               value value value
```

Keys come from 1 ... vocab_size / 2 - 1, values from the upper half. Within a sequence all keys differ and all values
differ; noise may be any token. The distance of a question from the end of the list follows a power law: with
`power=0.01`, nearly 1 / distance, most questions are near. The order of the questions is random; in Zoology's own
code, keys listed first tend to be asked first.
"""

import numpy as np
from datasets import Dataset

from training.tasks import IGNORED


# Length and number of pairs in the four published test sets.
ZOOLOGY_SETTINGS = {64: 4, 128: 8, 256: 16, 512: 64}


def choose_distinct(generator: np.random.Generator, rows: int, low: int, high: int, count: int) -> np.ndarray:
    """Draws rows of `count` distinct integers from `low` ... `high - 1`, (rows, count), by Floyd's algorithm."""
    chosen = np.empty((rows, count), dtype=np.int64)
    for column, last in enumerate(range(high - low - count, high - low)):
        drawn = generator.integers(0, last + 1, size=rows)
        taken = (chosen[:, :column] == drawn[:, None]).any(axis=1)
        chosen[:, column] = np.where(taken, last, drawn)
    return low + generator.permuted(chosen, axis=1)


def check_at_least_one(**counts: int) -> None:
    """Raises `ValueError` if an argument is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}.")


def check_recall(vocab_size: int, length: int, num_pairs: int, power: float) -> None:
    """Raises `ValueError` if the arguments of `draw_recall` contradict each other."""
    check_at_least_one(num_pairs=num_pairs)
    if length % 2:
        raise ValueError(f"`length` must be even (questions stand at even positions), got {length}.")
    if 4 * num_pairs > length:
        raise ValueError(
            f"{num_pairs} pairs and their questions need {4 * num_pairs} tokens, but `length` is {length}: "
            f"raise `length`, or lower `num_pairs` to {length // 4}."
        )
    if vocab_size // 2 - 1 < num_pairs:
        raise ValueError(
            f"`vocab_size`={vocab_size} has {max(vocab_size // 2 - 1, 0)} keys, too few for {num_pairs} pairs: it "
            f"must be at least {2 * num_pairs + 2}."
        )
    if not np.isfinite(power) or power <= 0:
        raise ValueError(f"`power` must be a positive number, got {power}.")


def draw_recall(
    num_examples: int,
    *,
    vocab_size: int = 8192,
    length: int = 64,
    num_pairs: int = 4,
    power: float = 0.01,
    random_non_queries: bool = True,
    seed: int | np.random.Generator = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draws sequences of MQAR.

    Args:
        num_examples (`int`): number of sequences N.
        vocab_size (`int`): number of tokens, half of them keys, half of them values.
        length (`int`): tokens per sequence L.
        num_pairs (`int`): pairs, and questions, per sequence.
        power (`float`): exponent a of the power law: a gap of g pairs of tokens, from 1, has weight a g^(a - 1).
        random_non_queries (`bool`): whether to fill the gaps with random tokens instead of token 0.
        seed (`int` or `np.random.Generator`): the same seed draws the same sequences.

    Returns:
        `input_ids` and `labels`, both int64 (N, L). `labels` follow transformers: a value stands one place after its
        question, the model shifts it back, and everything else is -100. `input_ids` do not contain the answers.

    Raises:
        ValueError: no sequences, no room for the pairs and the questions, too small a vocabulary, an odd length, or a
            power that is not positive.
    """
    check_at_least_one(num_examples=num_examples)
    check_recall(vocab_size, length, num_pairs, power)
    generator = np.random.default_rng(seed)
    keys = choose_distinct(generator, num_examples, 1, vocab_size // 2, num_pairs)
    values = choose_distinct(generator, num_examples, vocab_size // 2, vocab_size, num_pairs)

    # The largest values of log weight + Gumbel noise are a weighted draw without replacement.
    listed = 2 * num_pairs
    gaps = (length - listed) // 2
    log_weights = (power - 1) * np.log(np.arange(1, gaps + 1))
    noise = generator.gumbel(size=(num_examples, gaps))
    gap = np.argpartition(-(log_weights + noise), num_pairs - 1, axis=1)[:, :num_pairs]
    question = listed + 2 * generator.permuted(gap, axis=1)

    shape = (num_examples, length)
    input_ids = generator.integers(0, vocab_size, size=shape) if random_non_queries else np.zeros(shape, np.int64)
    input_ids[:, 0:listed:2], input_ids[:, 1:listed:2] = keys, values
    np.put_along_axis(input_ids, question, keys, axis=1)
    labels = np.full(shape, IGNORED)
    np.put_along_axis(labels, question + 1, values, axis=1)
    return input_ids, labels


def make_recall(num_examples: int, **settings) -> Dataset:
    """`draw_recall` as a `datasets.Dataset` with the columns `input_ids` and `labels`."""
    input_ids, labels = draw_recall(num_examples, **settings)
    return Dataset.from_dict({"input_ids": input_ids, "labels": labels})
