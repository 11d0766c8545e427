"""
What is measured of a model's heads: `modeling_prism.analysis` on windows of one length, with and without their first
token.

Shapes: L layers, H heads (signal heads first), S tokens.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_prism.analysis import collect_windows, cut_texts
from modeling_prism.analysis.collect import Batch, Reducer
from modeling_prism.analysis.reducers import HEAD_METRICS, head_metrics, head_reducer
from training.experiments.common.statistics import rounded


# A batch of 256-token windows of a small model.
MEMORY_BUDGET = 2**28
# Lags are averaged from each edge to before the next (tokens): attention falls by orders of magnitude over them.
LAG_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
WITHOUT_FIRST = "without first token"
METRICS_WITHOUT_FIRST = ("distance", "centroid", "entropy")


def choose_windows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int, num_windows: int
) -> list[Tensor]:
    """
    The beginnings, `length` tokens each, of the first `num_windows` texts that are long enough.

    One length, so that each lag is open to as many queries in every window. Fewer windows if there are fewer texts.

    Raises:
        ValueError: no text is long enough.
    """
    windows: list[Tensor] = []
    for text in texts:
        first = cut_texts(tokenizer, [text], length)[0][0]
        if len(first) == length:
            windows.append(first)
        if len(windows) == num_windows:
            break
    if not windows:
        raise ValueError(f"No validation text has {length} tokens: give longer texts or a recipe of shorter blocks.")
    return windows


def without_first_token(batch: Batch) -> Batch:
    """
    The batch as if attention to the first token were not there: maps without their first row and column, their rows
    scaled to sum to 1 again.

    Attention that needs no token in particular goes to the first one (Xiao et al., arXiv 2309.17453), and counts as
    attention over the longest distance there is. A query with nothing else, in fp32, is taken to look at itself: the
    least that it can be said to do.
    """
    maps = [A[..., 1:, 1:] for A in batch.attentions]
    maps = [torch.where(A.sum(-1, keepdim=True) > 0, A, torch.eye(A.shape[-1]).to(A)) for A in maps]
    maps = [A / A.sum(-1, keepdim=True) for A in maps]
    rest = {"input_ids": batch.input_ids[:, 1:], "valid": batch.valid[:, 1:]}
    return dataclasses.replace(batch, attentions=tuple(maps), **rest)


def sink_free_reducer(max_length: int) -> Reducer:
    """`head_reducer` on what `without_first_token` leaves, under names of its own."""
    reduce = head_reducer(max_length)
    return lambda batch: {f"{WITHOUT_FIRST}/{k}": value for k, value in reduce(without_first_token(batch)).items()}


def bin_lags(lags: Tensor) -> Tensor:
    """Attention by lag (..., S), averaged between `LAG_EDGES`, the lags beyond them left out: (..., bins)."""
    edges = [edge for edge in LAG_EDGES if edge < lags.shape[-1]] + [min(lags.shape[-1], LAG_EDGES[-1])]
    return torch.stack([lags[..., a:b].mean(-1) for a, b in zip(edges, edges[1:]) if a < b], dim=-1)


@contextlib.contextmanager
def equal_bases(model: PreTrainedModel) -> Iterator[None]:
    """
    Prism with one RoPE base, 10000, for both banks, on the same weights; afterwards it is as it was.

    A base acts on distance through the size of the scores, and training makes scores larger. So the banks of a model
    can come apart in training although their weights stay alike; with equal bases only weights can tell them apart.
    """
    rotary = model.base_model.rotary_emb
    thetas = rotary.thetas
    try:
        rotary.thetas = [10000.0, 10000.0]
        yield
    finally:
        rotary.thetas = thetas


def measure_heads(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict[str, list]:
    """
    The metrics of all heads on windows of one length.

    Returns:
        those of `HEAD_METRICS`, and `<metric>, without first token` of `METRICS_WITHOUT_FIRST`: (L, H); `bands`,
        shares of the spectrum's energy in `analysis.heads.BANDS` (L, H, bands); `lags by bank` (2, bins), of signal
        and of noise heads.
    """
    length = len(windows[0])
    reducers = [head_reducer(length), sink_free_reducer(length)]
    sums = collect_windows(model, windows, reducers, memory_budget=MEMORY_BUDGET, progress=False)
    metrics = head_metrics(sums)
    prefix = f"{WITHOUT_FIRST}/"
    sink_free = head_metrics({k.removeprefix(prefix): value for k, value in sums.items() if k.startswith(prefix)})
    banks = metrics["lags"].split(
        (model.config.num_signal_heads, model.config.num_attention_heads - model.config.num_signal_heads), dim=1
    )
    measured = {
        **{name: metrics[name] for name in HEAD_METRICS if name in metrics},
        **{f"{name}, {WITHOUT_FIRST}": sink_free[name] for name in METRICS_WITHOUT_FIRST},
        "bands": metrics["bands"],
        "lags by bank": torch.stack([bin_lags(bank.mean((0, 1))) for bank in banks]),
    }
    return {name: rounded(values, digits=4) for name, values in measured.items()}
