"""The control of a report: untrained models of the same config, and their spread."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import reducers
from .collect import SHORTEST, collect_windows, cut_texts
from .examine import examine


# Maps of an untrained model vary little between texts, and reducing them takes most of a report's time.
NUM_WINDOWS = 16


def untrained_copy(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """
    A model of the same config with new random weights, on the same device: the effect of architecture alone. The seed
    of the training run reproduces its initial weights.
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
    Measures an untrained copy of a model with `examine`, and the heads of several copies on a few of the texts. Their
    spread is the yardstick for what training changed.

    Args:
        model, tokenizer, texts, max_length, memory_budget, progress: as for `examine`.
        seed: of the copy that is measured in full; the other copies use the next seeds.
        num_copies: copies whose heads are measured, including the first. One copy has no spread.

    Returns:
        the findings of the first copy and, if it has `heads`, `copies`: per copy the `HEAD_METRICS` (L, H), measured
        on at most `NUM_WINDOWS` evenly spaced windows.
    """
    first = untrained_copy(model, seed)
    options = {"memory_budget": memory_budget}
    findings = examine(first, tokenizer, texts, name=name, max_length=max_length, progress=progress, **options)
    if "heads" not in findings:
        return findings
    windows, _ = cut_texts(tokenizer, texts, findings["max length"])
    windows = [window for window in windows if len(window) >= SHORTEST]
    windows = windows[:: -(-len(windows) // NUM_WINDOWS)]
    reduce = reducers.head_reducer(findings["max length"])
    findings["copies"] = []
    for index in range(num_copies):
        label = progress and f"{name} {index + 1} of {num_copies}: heads"
        sums = collect_windows(untrained_copy(model, seed + index), windows, [reduce], progress=label, **options)
        metrics = reducers.head_metrics(sums)
        findings["copies"].append({name: metrics[name] for name in reducers.HEAD_METRICS if name in metrics})
    return findings
