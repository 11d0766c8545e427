"""Lookup tables for grokking: modular addition, modular multiplication and the composition of permutations (S5).

An input is [a, b, =]; the model answers at "=". A share of all pairs is for training, the rest for testing. The seed
of the run decides which (arXiv 2603.05228, after Power et al., arXiv 2201.02177).

Example: pair 569 of `make_table("addition", modulus=113)` and of `make_table("s5")`, whose permutations are written
out. `.` stands for -100, a token that is not scored. A label stands where the model predicts it, without a shift:

```text
addition    input_ids   5   4 113        s5    input_ids      4    89   120
            labels      .   .   9              labels         .     .    71
            meaning     5 + 4 =                meaning    01423 32410     =       (71 is 24310)
```

S5 numbers the permutations in lexicographic order; a o b applies b, then a.
"""

import itertools
import math

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.tasks import IGNORED, Blocks, CardFacts


def _compose(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The number of the permutation that applies permutation b, then a: (a o b)(x) = a(b(x))."""
    permutations = np.array(list(itertools.permutations(range(5))))
    number = {tuple(permutation): index for index, permutation in enumerate(permutations.tolist())}
    composed = np.take_along_axis(permutations[a], permutations[b], axis=1)
    return torch.tensor([number[tuple(permutation)] for permutation in composed.tolist()])


OPERATIONS = {"addition": torch.add, "multiplication": torch.mul, "s5": _compose}
TABLES = tuple(OPERATIONS)
# A block is "a b =".
BLOCK_SIZE = 3


def check_table(table: str, modulus: int) -> None:
    """Raises `ValueError` if there is no such table or `modulus` is not an integer above 1."""
    if table not in TABLES:
        raise ValueError(f"`table` must be one of {', '.join(TABLES)}, got {table!r}.")
    if isinstance(modulus, bool) or not isinstance(modulus, int) or modulus < 2:
        raise ValueError(f"`modulus` must be a positive integer above 1, got {modulus!r}.")


def table_vocab_size(table: str, modulus: int = 113) -> int:
    """Number of tokens: the P residues or permutations, and "="."""
    return 1 + (math.factorial(5) if table == "s5" else modulus)


def make_table(table: str, modulus: int = 113) -> tuple[torch.Tensor, torch.Tensor]:
    """
    All inputs of a lookup table and their answers.

    Args:
        table (`str`): `"addition"` or `"multiplication"`, both modulo `modulus`, or `"s5"`.
        modulus (`int`): ignored for `"s5"`.

    Returns:
        `input_ids` (P^2, 3), ordered by a, then b, and `answers` (P^2,), for P residues or permutations. "=" is
        token P.
    """
    check_table(table, modulus)
    size = table_vocab_size(table, modulus) - 1
    a, b = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(-1)
    return torch.stack((a, b, torch.full_like(a, size)), dim=-1), OPERATIONS[table](a, b) % size


def split_table(num_pairs: int, train_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Shuffles the pairs by `seed`; returns the indices of the first `train_fraction`, rounded down, and of the rest.

    Raises:
        ValueError: the fraction leaves one of the two empty.
    """
    num_train = int(num_pairs * train_fraction) if 0 < train_fraction < 1 else 0
    if num_train == 0:
        raise ValueError(
            f"`train_fraction`={train_fraction} leaves a split of the {num_pairs:,} pairs empty: it must be below 1 "
            f"and at least {1 / num_pairs:.2g}."
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_pairs))
    return order.tensor_split([num_train])


def make_arithmetic(table: str, *, modulus: int = 113, train_fraction: float = 0.3, seed: int = 0) -> DatasetDict:
    """
    The two splits as `datasets`, for `Trainer`.

    Returns:
        parts `train` and `validation` with the columns `input_ids` (3), `labels` and `shift_labels` (both 3: the
        answer at "="). `shift_labels` tells a causal LM of transformers that the labels are in place already: the
        position table of a published model ends at "=" and has no fourth token for the answer.

    Raises:
        ValueError: unknown table, `modulus` not an integer above 1, or a fraction that leaves a split empty.
    """
    input_ids, answers = make_table(table, modulus)
    labels = torch.full_like(input_ids, IGNORED)
    labels[:, -1] = answers
    splits = split_table(len(answers), train_fraction, seed)
    columns = {"input_ids": input_ids, "labels": labels, "shift_labels": labels}
    return DatasetDict(
        {
            part: Dataset.from_dict({name: values[rows].numpy() for name, values in columns.items()})
            for part, rows in zip(("train", "validation"), splits)
        }
    )


def _vocabulary(size: int) -> dict[str, int]:
    return {**{str(number): number for number in range(size)}, "=": size}


def make_tokenizer(table: str, modulus: int = 113) -> PreTrainedTokenizerFast:
    """Makes the tokenizer of a table: `"5 4 ="` is three tokens and a number is its own id. Words raise an error."""
    # Without a token for unknown words, `tokenizers` raises "Missing [UNK] token" and reads no word as another.
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(table_vocab_size(table, modulus) - 1)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def load_table(
    table: str, *, modulus: int = 113, train_fraction: float = 0.3, seed: int = 0
) -> tuple[PreTrainedTokenizerFast, Blocks]:
    """The tokenizer and the blocks of a lookup table, see `make_arithmetic`. Only the answers are scored."""
    splits = make_arithmetic(table, modulus=modulus, train_fraction=train_fraction, seed=seed)
    num_train, num_test = len(splits["train"]), len(splits["validation"])
    answers = [str(labels[-1]) for labels in splits["validation"]["labels"]]
    tokenizer = make_tokenizer(table, modulus)
    size = len(tokenizer) - 1
    card = CardFacts(
        name="composition of the permutations of S5" if table == "s5" else f"{table} modulo {modulus}",
        # The tokenizer's decoder puts no space between the prompt and the answer.
        example=f'"{3 % size} {4 % size} = ", max_new_tokens=1, do_sample=False',
        explanation=f"The lookup table has {num_train + num_test:,} pairs. The model was trained on {num_train:,} of "
        f"them (`train_fraction` {train_fraction}), drawn with `seed` {seed}, and tested on the other {num_test:,}. "
        f"Chance is an accuracy of about {1 / size:.4f}.",
        limits="A small model for research on how networks learn. It knows one lookup table and nothing else: it "
        "reads the three tokens `a b =` and answers any question with one of its numbers, right or wrong.",
        options=("dataset_name", "block_size", "train_fraction", *(["modulus"] if table != "s5" else [])),
        task="other",
        data_type="table",
        evaluated_on="test",
    )
    bytes_per_answer = sum(map(len, answers)) / len(answers)
    blocks = Blocks(
        **splits,
        vocab_size=len(tokenizer),
        validation_bytes_per_token=bytes_per_answer,
        card=card,
        label_shift=0,
        metrics={"next_token_accuracy": "accuracy", "nats_per_token": "nats_per_answer"},
    )
    return tokenizer, blocks


def reads_a_table(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `make_tokenizer` made this tokenizer: it knows the numbers below P, and "=" as P."""
    return tokenizer.get_vocab() == _vocabulary(len(tokenizer) - 1)


def check_question(prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` unless the prompt is `a b =` with two elements of the tokenizer's table."""
    size = len(tokenizer) - 1
    *elements, equals = prompt.split() or [""]
    if len(elements) != 2 or equals != "=" or not {*elements} <= {*map(str, range(size))}:
        raise ValueError(
            f"`prompt`={prompt!r}: this model was trained on a lookup table and reads 'a b =', where a and b are "
            f"numbers from 0 to {size - 1}, such as '0 1 ='."
        )
