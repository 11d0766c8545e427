"""
Changes to single heads of a Prism while it runs.

Shapes: B batch, S tokens, H heads, D head width.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from modeling_prism.analysis.collect import prepared


@contextlib.contextmanager
def hooks_on(modules: list, hook) -> Iterator[None]:
    """`hook(index, args, kwargs) -> (args, kwargs)` before each of `modules` runs."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs, i=i: hook(i, args, kwargs), with_kwargs=True)
        for i, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dictionaries(model: PreTrainedModel) -> list:
    return [layer.self_attn.dictionary for layer in model.model.layers]


@torch.no_grad()
def mean_outputs(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """The mean output of every head over token ids (B, S), as the dictionary combines it: (H, D) for each layer."""
    found = {}

    def listen(index, args, kwargs):
        if kwargs.get("transposed"):
            found[index] = args[0].mean((0, 1)).unflatten(0, (model.config.num_attention_heads, -1))
        return args, kwargs

    with prepared(model, attentions=False), hooks_on(dictionaries(model), listen):
        model(ids, use_cache=False)
    return [found[index] for index in range(len(found))]


def replaced(model: PreTrainedModel, means: list[torch.Tensor], heads: list[int], layers: list[int]):
    """A context in which the outputs of `heads` in `layers` are their means."""

    def replace(index, args, kwargs):
        if not kwargs.get("transposed") or index not in layers:
            return args, kwargs
        outputs = args[0].unflatten(-1, (model.config.num_attention_heads, -1)).clone()
        outputs[..., heads, :] = means[index][heads]
        return (outputs.flatten(-2), *args[1:]), kwargs

    return hooks_on(dictionaries(model), replace)


def limited(model: PreTrainedModel, window: int, heads: list[int]):
    """A context in which `heads` of all layers look at most `window` tokens back, their own token included."""

    def limit(index, args, kwargs):
        length = args[0].shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal.repeat(1, model.config.num_attention_heads, 1, 1)
        allowed[:, heads] = causal.triu(1 - window)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float).min)
        return args, {**kwargs, "attention_mask": mask}

    return hooks_on([layer.self_attn for layer in model.model.layers], limit)
