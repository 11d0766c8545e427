"""Induction at varying distances: which token followed this one before?

A sequence shows distinct tokens in random order and then asks about some of them: each question is a token and its
successor. The distance back to the first occurrence differs between questions and between sequences. At one fixed
distance, attention by position alone would answer every question, and solving the task would say nothing about
induction.

Example, `draw_induction(1, vocab_size=16, num_distinct=6, num_queries=3, seed=0)`, token by token. `.` stands for
-100, a token that is not scored:

```text
input_ids   4  7  6  9  3  0  7  6  3  0  6  9
labels      .  .  .  .  .  .  .  6  .  0  .  9
            shown             asked asked asked
```

`draw_repeats` makes the input for the usual induction diagnostics (repeated-sequence loss and prefix-matching score,
as in TransformerLens), also at varying distances.
"""

import numpy as np
from datasets import Dataset

from training.tasks import IGNORED
from training.tasks.recall import check_at_least_one, choose_distinct


def draw_induction(
    num_examples: int,
    *,
    vocab_size: int = 64,
    num_distinct: int = 32,
    num_queries: int = 16,
    seed: int | np.random.Generator = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draws sequences of the induction task.

    Args:
        num_examples (`int`): number of sequences N.
        vocab_size (`int`): number of tokens. Chance is 1 / num_distinct, a guess among the tokens shown.
        num_distinct (`int`): number of different tokens shown first.
        num_queries (`int`): number of different questions per sequence, two tokens each.
        seed (`int` or `np.random.Generator`): the same seed draws the same sequences.

    Returns:
        `input_ids` and `labels`, both int64 (N, num_distinct + 2 * num_queries). `labels` follow transformers, where
        the model shifts them: the answers at their own positions, -100 elsewhere.

    Raises:
        ValueError: no sequences, fewer than 2 distinct tokens or more than the vocabulary has, or more questions than
            tokens with a successor.
    """
    check_at_least_one(num_examples=num_examples)
    if not 2 <= num_distinct <= vocab_size:
        raise ValueError(f"`num_distinct` must be 2 to `vocab_size`={vocab_size}, got {num_distinct}.")
    if not 1 <= num_queries < num_distinct:
        raise ValueError(
            f"`num_queries` must be 1 to {num_distinct - 1}, because so many of `num_distinct`={num_distinct} tokens "
            f"have a successor, got {num_queries}."
        )
    generator = np.random.default_rng(seed)
    shown = choose_distinct(generator, num_examples, 0, vocab_size, num_distinct)
    asked = choose_distinct(generator, num_examples, 0, num_distinct - 1, num_queries)
    answers = np.take_along_axis(shown, asked + 1, axis=1)
    questions = np.stack((np.take_along_axis(shown, asked, axis=1), answers), axis=2)

    input_ids = np.concatenate((shown, questions.reshape(num_examples, -1)), axis=1)
    labels = np.full_like(input_ids, IGNORED)
    labels[:, num_distinct + 1 :: 2] = answers
    return input_ids, labels


def draw_repeats(
    num_examples: int,
    *,
    vocab_size: int = 64,
    length: int = 64,
    segment: int = 16,
    seed: int | np.random.Generator = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draws random tokens in which one segment occurs twice, at random positions without overlap.

    Args:
        num_examples (`int`): number of sequences N.
        vocab_size (`int`): number of tokens.
        length (`int`): tokens per sequence L.
        segment (`int`): tokens per segment.
        seed (`int` or `np.random.Generator`): the same seed draws the same sequences.

    Returns:
        `input_ids` and `labels`, both int64 (N, L). `labels` hold the second segment at its own positions, without its
        first token, which nothing predicts, and -100 elsewhere.

    Raises:
        ValueError: no sequences, no vocabulary, or two segments that do not fit.
    """
    check_at_least_one(num_examples=num_examples, vocab_size=vocab_size)
    if not 2 <= segment <= length // 2:
        raise ValueError(f"`segment` must be 2 to {length // 2}, half of `length`={length}, got {segment}.")
    generator = np.random.default_rng(seed)
    input_ids = generator.integers(0, vocab_size, size=(num_examples, length))
    # Two ordered positions among those left without both segments describe every layout.
    places = np.sort(generator.integers(0, length - 2 * segment + 1, size=(num_examples, 2)), axis=1)
    offsets = np.arange(segment)
    first, second = (places[:, [copy]] + copy * segment + offsets for copy in (0, 1))
    repeated = np.take_along_axis(input_ids, first, axis=1)
    np.put_along_axis(input_ids, second, repeated, axis=1)
    labels = np.full_like(input_ids, IGNORED)
    np.put_along_axis(labels, second[:, 1:], repeated[:, 1:], axis=1)
    return input_ids, labels


def make_induction(num_examples: int, **settings) -> Dataset:
    """`draw_induction` as a `datasets.Dataset` with the columns `input_ids` and `labels`."""
    input_ids, labels = draw_induction(num_examples, **settings)
    return Dataset.from_dict({"input_ids": input_ids, "labels": labels})
