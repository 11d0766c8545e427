"""
Prism with every part of its attention step in question, beyond the options that the model itself has: what learns a
step, which subspace keys come from, what the output may learn. All fields at their defaults: the published Prism.

Shapes: B batch, S tokens, d hidden_size, H num_attention_heads, D head_dim.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward

from modeling_prism import PrismConfig, PrismForCausalLM
from modeling_prism.modeling_prism import PrismAttention, PrismDictionary
from modeling_prism.rotary_prism import apply_rotary_pos_emb, multiply_planes


@strict
class PrismStepsConfig(PrismConfig):
    """
    Args:
        learned_step: what learns a step of its own: nothing, each layer, head or code.
        keys_as_values: rotary values that are the keys themselves, shifted or not: one tensor.
        key_subspace: "own" (each head's keys are codes of its own subspace) or "next" (of the next head's subspace, in
            the same bank, the last head's of the first): no new parameter, and no symmetry between queries and keys.
        conjugate_gain: multiply the output by the conjugate of the query's gain, without a new parameter: with
            `keys_as_values` the update is then the exact gradient of the log-sum-exp energy of the scores.
        free_queries, free_output: diagnostics: another matrix for queries, or in place of U^T.
    """

    model_type = "prism_steps"
    _auto_class: ClassVar[str | None] = None

    learned_step: Literal["none", "layer", "head", "code"] = "none"
    keys_as_values: bool = False
    key_subspace: Literal["own", "next"] = "own"
    conjugate_gain: bool = False
    free_queries: bool = False
    free_output: bool = False
    # Nothing here keeps the previous token's codes between two calls.
    use_cache: bool = False


class PrismStepsAttention(PrismAttention):
    """What is learned is called a bias: the distance from the published value, 0 at the start, without decay."""

    def __init__(self, config: PrismStepsConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        num_heads, num_codes = config.num_attention_heads, config.num_attention_heads * self.head_dim
        shapes = {"layer": (1, 1), "head": (num_heads, 1), "code": (num_heads, self.head_dim)}
        if config.learned_step != "none":
            self.step_bias = nn.Parameter(torch.zeros(shapes[config.learned_step]))
        if config.free_queries:
            self.query_dictionary = PrismDictionary(num_codes, config.hidden_size)
        if config.free_output:
            self.output_dictionary = PrismDictionary(num_codes, config.hidden_size)

    def head_steps(self) -> torch.Tensor:
        """The weight of each head or code, (H, 1) or (H, D), without the common output scale."""
        config, weights = self.config, self.head_gain[:, None]
        if config.learned_step == "none":
            return weights
        return weights * (1 + self.step_bias) if config.learned_step == "layer" else weights + self.step_bias

    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **kwargs):
        if past_key_values is not None:
            raise ValueError("`past_key_values` is not kept in this experiment: call with `use_cache=False`.")
        config, input_shape = self.config, hidden_states.shape[:-1]
        cos, sin = position_embeddings

        def in_heads(codes: torch.Tensor) -> torch.Tensor:
            return codes.view(*input_shape, -1, self.head_dim).transpose(1, 2)

        codes = in_heads(self.dictionary(hidden_states))
        queries = in_heads(self.query_dictionary(hidden_states)) if config.free_queries else codes
        if config.key_subspace == "next":
            banks = codes.split([self.num_signal_heads, codes.shape[1] - self.num_signal_heads], dim=1)
            codes = torch.cat([bank.roll(-1, dims=1) for bank in banks], dim=1)
        keys = codes
        if config.key_shift:
            share = self.key_shift_bias.sigmoid()[:, None, None]
            keys = torch.lerp(torch.cat((codes[:, :, :1], codes[:, :, :-1]), dim=2), codes, share)
        turn = multiply_planes(cos, sin, self.query_gain_bias) if config.query_gain else (cos, sin)
        queries, keys = apply_rotary_pos_emb(queries, *turn), apply_rotary_pos_emb(keys, cos, sin)
        values = codes
        if config.keys_as_values:
            values = keys
        elif config.rotary_values:
            values = apply_rotary_pos_emb(codes, cos, sin) if config.key_shift else keys

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            config._attn_implementation, eager_attention_forward
        )
        output, attn_weights = attention_interface(
            self, queries, keys, values, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        turned = config.rotary_values or config.keys_as_values
        back = (cos, -sin) if turned else (torch.ones_like(cos), torch.zeros_like(sin))
        if config.conjugate_gain:
            back = multiply_planes(*back, torch.stack((self.query_gain_bias[0], -self.query_gain_bias[1])))
        if config.output_gain:
            back = multiply_planes(*back, self.output_gain_bias)
        output = apply_rotary_pos_emb(output.transpose(1, 2), *back).transpose(1, 2)
        output = (output * self.head_steps()).reshape(*input_shape, -1)
        write = self.output_dictionary if config.free_output else self.dictionary
        return write(output, transposed=True) * self.output_scaling, attn_weights


class PrismStepsForCausalLM(PrismForCausalLM):
    config: PrismStepsConfig
    config_class = PrismStepsConfig
    _auto_class = None

    def __init__(self, config: PrismStepsConfig):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.model.layers):
            layer.self_attn = PrismStepsAttention(config, layer_idx)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, PrismStepsAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("_bias"):
                    init.zeros_(parameter)

    def save_pretrained(self, save_directory, **kwargs):
        # An experiment's model is read where it was made: its folder carries no code.
        PreTrainedModel.save_pretrained(self, save_directory, **kwargs)


AutoConfig.register("prism_steps", PrismStepsConfig)
AutoModelForCausalLM.register(PrismStepsConfig, PrismStepsForCausalLM)
