"""
Counts model FLOPs: the cost of one pass over a sequence.

Counting needs neither weights nor time. The model runs on the meta device, where tensors have shapes only.
Conventions for every architecture:
  - A multiply-add is 2 FLOPs. Only matrix products count; embedding lookups, norms, rotations and softmax do not.
  - A matrix that is used twice, like Prism's dictionary, counts twice.
  - Attention counts the full S x S square of scores and values. Fused kernels may skip the half above the diagonal,
    so that FLOPs per second of a model with wide attention (Prism's is four times as wide) are over-, not understated.
  - The backward pass costs twice the forward pass. Nothing is recomputed.
"""

import copy
import inspect

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


class _WithoutValues(TorchFunctionMode):
    """Answers "no" when a model asks for a tensor's values (any padding?): meta tensors have none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        asks = func in (torch.Tensor.__bool__, torch.Tensor.__contains__)
        return False if asks else func(*args, **(kwargs or {}))


def forward_flops_per_token(
    model_or_config: PreTrainedModel | PreTrainedConfig,
    sequence_length: int,
    logits_to_keep: int = 0,
    causal: bool = False,
) -> float:
    """
    FLOPs of the forward pass over `sequence_length` tokens without a cache, divided by `sequence_length`.

    Args:
        model_or_config (`PreTrainedModel` or `PreTrainedConfig`): the model, or the config of a causal language model.
            Only the model's class and config are read.
        sequence_length (`int`): number of tokens in the sequence. Attention per token costs more in a longer one.
        logits_to_keep (`int`, defaults to 0): number of last positions with logits, 0 for all. Ignored for models that
            always compute all.
        causal (`bool`, defaults to `False`): count scores and values only for the S (S + 1) / 2 pairs on and below the
            diagonal.

    Returns:
        `float`: FLOPs per token, by the conventions of this file.

    Raises:
        ValueError: `sequence_length` below 1.
    """
    if sequence_length < 1:
        raise ValueError(f"`sequence_length` must be at least 1, got {sequence_length}.")
    is_model = isinstance(model_or_config, PreTrainedModel)
    config = copy.deepcopy(model_or_config.config if is_model else model_or_config)
    build = type(model_or_config)._from_config if is_model else AutoModelForCausalLM.from_config
    # The counter misses some fused attention kernels (on a CPU all of them) but sees all of eager attention.
    with torch.device("meta"):
        model = build(config, attn_implementation="eager").eval()
        input_ids = torch.zeros((1, sequence_length), dtype=torch.long)
    arguments = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = logits_to_keep
    with _WithoutValues(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, **arguments)
    flops = counter.get_total_flops()
    if causal:
        # A product of two activations is batched, a product with a weight is not.
        attention = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
        flops -= attention * (sequence_length - 1) / (2 * sequence_length)
    return flops / sequence_length


def training_flops_per_token(
    model_or_config: PreTrainedModel | PreTrainedConfig, sequence_length: int, causal: bool = False
) -> float:
    """FLOPs per token of a training step: three forward passes (`forward_flops_per_token`), without the optimizer."""
    return 3 * forward_flops_per_token(model_or_config, sequence_length, causal=causal)
