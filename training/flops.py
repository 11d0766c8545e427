"""
Model FLOPs: what one pass over a sequence costs, counted on the operations that the model performs.

Counting needs neither weights nor time: the model is built and run on the meta device, where tensors have shapes only.
Conventions, the same for every architecture:
  - a multiply-add is 2 FLOPs; only matrix products count (embedding look-ups, norms, rotations, softmax do not);
  - a matrix that is used twice, like Prism's dictionary, counts twice;
  - attention counts the full S x S square of scores and values. Fused kernels may skip the half above the diagonal, so
    the FLOPs a second of a model with wide attention (Prism's is four times as wide) come out higher, not lower;
  - the backward pass is twice the forward pass, and nothing is recomputed.
"""

import copy
import inspect

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


class _WithoutValues(TorchFunctionMode):
    """Answers "no" where a model asks for a tensor's values (anything masked? any padding?): meta has none."""

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
        sequence_length (`int`): number of tokens of the sequence; attention makes the cost of a token grow with it.
        logits_to_keep (`int`, defaults to 0): number of last positions whose logits are computed, 0 for all; ignored
            for models that always compute all.
        causal (`bool`, defaults to `False`): count of scores and values only the S (S + 1) / 2 pairs on and below the
            diagonal.

    Returns:
        `float`: FLOPs a token, in the conventions of this file.

    Raises:
        ValueError: `sequence_length` below 1.
    """
    if sequence_length < 1:
        raise ValueError(f"`sequence_length` must be at least 1, got {sequence_length}.")
    is_model = isinstance(model_or_config, PreTrainedModel)
    config = copy.deepcopy(model_or_config.config if is_model else model_or_config)
    build = type(model_or_config)._from_config if is_model else AutoModelForCausalLM.from_config
    # The counter does not know every fused attention kernel (on a CPU it counts none); eager attention it sees whole.
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
        # Products of two activations are batched; those with a weight are not.
        attention = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
        flops -= attention * (sequence_length - 1) / (2 * sequence_length)
    return flops / sequence_length


def training_flops_per_token(
    model_or_config: PreTrainedModel | PreTrainedConfig, sequence_length: int, causal: bool = False
) -> float:
    """FLOPs a token of a training step: three forward passes, see `forward_flops_per_token`; no optimizer."""
    return 3 * forward_flops_per_token(model_or_config, sequence_length, causal=causal)
