"""Tables to be grokked: modular addition and multiplication, and the composition of permutations (S5).

An input is [a, b, =]; the answer is read at "=". Of all pairs, a share is for training, the others are the test; the
seed of a run decides which (arXiv 2603.05228, after Power et al., arXiv 2201.02177).

Example, pair 569 of `make_table("addition", modulus=113)`, and of `make_table("s5")` with permutations written out;
`.` stands for -100, a token that is not scored, and the label stands where it is read, with no shift:

```text
addition    input_ids   5   4 113        s5    input_ids      4    89   120
            labels      .   .   9              labels         .     .    71
            meaning     5 + 4 =                meaning    01423 32410     =       (71 is 24310)
```

S5: a and b are numbers of permutations in lexicographic order; a o b applies b, then a.
"""

import itertools

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_prism.analysis.spherical import modular_pairs
from training.tasks.recall import IGNORED


TABLES = ("addition", "multiplication", "s5")


def check_table(table: str, modulus: int) -> None:
    """Raises `ValueError`: an unknown table, or a modulus that is none."""
    if table not in TABLES:
        raise ValueError(f"`table` must be one of {', '.join(TABLES)}, got {table!r}.")
    if isinstance(modulus, bool) or not isinstance(modulus, int) or modulus < 2:
        raise ValueError(f"`modulus` must be a positive integer above 1, got {modulus!r}.")


def table_vocab_size(table: str, modulus: int = 113) -> int:
    """The tokens of a table: its P residues or permutations, and "="."""
    return 1 + (120 if table == "s5" else modulus)


def make_table(table: str, modulus: int = 113) -> tuple[torch.Tensor, torch.Tensor]:
    """
    All inputs of a table and their answers.

    Args:
        table (`str`): `"addition"`, `"multiplication"` (both of the residues of `modulus`) or `"s5"`.
        modulus (`int`): not read for `"s5"`.

    Returns:
        `input_ids` (P^2, 3), a before b, and `answers` (P^2,), for P residues or permutations; "=" is token P.
    """
    check_table(table, modulus)
    if table != "s5":
        return modular_pairs(modulus, {"addition": "add", "multiplication": "multiply"}[table])
    permutations = np.array(list(itertools.permutations(range(5))))
    number = {tuple(permutation): index for index, permutation in enumerate(permutations.tolist())}
    a, b = torch.cartesian_prod(torch.arange(120), torch.arange(120)).unbind(-1)
    # (a o b)(x) = a(b(x))
    composed = np.take_along_axis(permutations[a], permutations[b], axis=1)
    answers = torch.tensor([number[tuple(permutation)] for permutation in composed.tolist()])
    return torch.stack((a, b, torch.full_like(a, 120)), dim=-1), answers


def split_table(num_pairs: int, train_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pairs shuffled by `seed`: indices of the first `train_fraction`, rounded down, and of the others.

    Raises:
        ValueError: a fraction that leaves either empty.
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
        answer at "="). With `shift_labels` a causal LM of transformers takes labels where they stand: the position
        table of a published model ends at "=", and there is no fourth token to hold the answer.

    Raises:
        ValueError: an unknown table, a modulus that is not a positive integer, a fraction that leaves a split empty.
    """
    input_ids, answers = make_table(table, modulus)
    labels = torch.full_like(input_ids, IGNORED)
    labels[:, -1] = answers
    splits = split_table(len(answers), train_fraction, seed)
    return DatasetDict(
        {
            part: Dataset.from_dict(
                {
                    "input_ids": input_ids[rows].numpy(),
                    "labels": labels[rows].numpy(),
                    "shift_labels": labels[rows].numpy(),
                }
            )
            for part, rows in zip(("train", "validation"), splits)
        }
    )


def reads_a_table(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this is a tokenizer of `make_tokenizer`: the numbers below P, and "=" as P."""
    size = len(tokenizer) - 1
    return tokenizer.get_vocab() == {**{str(number): number for number in range(size)}, "=": size}


def make_tokenizer(table: str, modulus: int = 113) -> PreTrainedTokenizerFast:
    """A tokenizer that reads and writes a table: `"5 4 ="` is three tokens. A number is its own id; words raise."""
    size = table_vocab_size(table, modulus) - 1
    vocabulary = {**{str(number): number for number in range(size)}, "=": size}
    # No token stands for unknown words, so that none is read as another: `tokenizers` says "Missing [UNK] token".
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
