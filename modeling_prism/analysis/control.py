"""The control of a report: models of the same config that were never trained, and how far they differ."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import reducers
from .collect import SHORTEST, collect_windows, cut_texts
from .examine import examine


# Maps of an untrained model differ little from text to text, and their reduction is most of a report's time.
NUM_WINDOWS = 16


def untrained_copy(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """
    A model of the same config with new random weights, on the same device: what architecture alone does. With the seed
    of its training, these are the weights it began with.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        copied = type(model)(copy.deepcopy(model.config))
    return copied.to(model.device, model.dtype).eval()


def examine_untrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    seed: int = 0,
    num_copies: int = 5,
    name: str = "untrained copy",
    max_length: int | None = None,
    memory_budget: int = 2**30,
    progress: bool = True,
) -> dict:
    """
    Measures an untrained copy of a model as `examine` does, and the heads of several of them on a few of the texts:
    what training did can be told only beside how far models differ that were not trained.

    Args:
        model, tokenizer, texts, max_length, memory_budget, progress: as of `examine`.
        seed: of the copy that is measured in full; the others have the seeds after it.
        num_copies: how many copies' heads are measured, that one among them. One has no spread.

    Returns:
        the findings of the first copy; and, where it has `heads`, `copies`: of each copy the figures of `HEAD_FIGURES`
        (L, H), on at most `NUM_WINDOWS` windows, evenly out of all.
    """
    first = untrained_copy(model, seed)
    options = {"memory_budget": memory_budget, "progress": progress}
    findings = examine(first, tokenizer, texts, name=name, max_length=max_length, **options)
    if "heads" not in findings:
        return findings
    windows, _ = cut_texts(tokenizer, texts, findings["max length"])
    windows = [window for window in windows if len(window) >= SHORTEST]
    windows = windows[:: -(-len(windows) // NUM_WINDOWS)]
    reduce = reducers.head_reducer(findings["max length"])
    findings["copies"] = []
    for index in range(num_copies):
        sums = collect_windows(untrained_copy(model, seed + index), windows, [reduce], **options)
        figures = reducers.head_figures(sums)
        findings["copies"].append({name: figures[name] for name in reducers.HEAD_FIGURES if name in figures})
    return findings
