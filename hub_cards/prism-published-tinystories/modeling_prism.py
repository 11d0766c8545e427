"""Prism: attention as a step of signal-noise decomposition (Huang, arXiv 2601.15540).

Identical to GPT-NeoX (pre-norm LayerNorm, GELU MLP, full rotary positions, sequential residual) except:
  - one dictionary U replaces the query, key, value and output matrices: q = k = RoPE(U z), v = U z, out = U^T y;
  - heads come in two banks with RoPE bases of their own; noise heads are subtracted, weighted by lambda;
  - no biases; the MLP's output is initialised with a standard deviation smaller by sqrt(2 * layers);
  - options, off by default and ours: a step size, rotary values, a gain on the queries, keys that mix two tokens.

Shapes: B batch, S new tokens, T tokens attended to, d hidden_size, H num_attention_heads (signal heads first),
D head_dim, M = H * D rows of the dictionary.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_prism import PrismConfig
from .modeling_common import (
    CommonForCausalLM,
    CommonForQuestionAnswering,
    CommonForSequenceClassification,
    CommonForTokenClassification,
    CommonPreTrainedModel,
    learned_positions,
)
from .rotary_prism import PrismRotaryEmbedding, apply_rotary_pos_emb, multiply_planes
from .state_previous_token import PreviousTokenGeneration, PreviousTokenModel, keep_state, pair_with_previous


class PrismDictionary(nn.Module):
    """
    The dictionary U, of shape (M, d), applied on both sides: `U z` gives the codes of z, `U^T y` combines codes.

    Not an `nn.Linear`: tools that hook, offload or replace a linear layer expect it to be used once.
    """

    def __init__(self, num_codes: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, hidden_size))

    def extra_repr(self) -> str:
        return f"num_codes={self.weight.shape[0]}, hidden_size={self.weight.shape[1]}"

    def forward(self, states: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """Maps (..., d) to (..., M), or if `transposed` (..., M) to (..., d)."""
        return torch.matmul(states, self.weight if transposed else self.weight.t())


class PrismAttention(nn.Module):
    """One denoising step: `U^T concat(+ signal heads, - lambda * noise heads) / sqrt(H * R)` (specialised MSSA)."""

    def __init__(self, config: PrismConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_signal_heads = config.num_signal_heads
        self.scaling = self.head_dim**-0.5
        self.output_scaling = config.output_step * (config.num_attention_heads * config.dictionary_expansion) ** -0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        self.dictionary = PrismDictionary(config.num_attention_heads * self.head_dim, config.hidden_size)
        # +1 for signal heads, -lambda for noise heads. As a buffer it follows the device, and a new lambda does not
        # recompile. It is not saved: the config holds lambda.
        self.head_gain = nn.Buffer(torch.ones(config.num_attention_heads), persistent=False)
        self.set_noise_coefficient(config.noise_coefficient)
        # What is learned is the distance from the start, and called a bias: biases do not decay.
        for name in ("query_gain", "output_gain"):
            if getattr(config, name):
                gain = nn.Parameter(torch.zeros(2, config.num_attention_heads, self.head_dim // 2))
                self.register_parameter(f"{name}_bias", gain)
        if config.key_shift:
            self.key_shift_bias = nn.Parameter(torch.zeros(config.num_attention_heads))

    @torch.no_grad()
    def set_noise_coefficient(self, value: float):
        self.head_gain[: self.num_signal_heads].fill_(1.0)
        self.head_gain[self.num_signal_heads :].fill_(-value)

    def mix_with_previous(self, codes: torch.Tensor, past_key_values: Cache | None, *masks) -> torch.Tensor:
        """`s h_t + (1 - s) h_(t-1)` of codes (B, S, M), one s per head; `masks` as in `find_previous_tokens`."""
        ((codes, previous),), kept = pair_with_previous([codes], past_key_values, self.layer_idx, *masks)
        share = self.key_shift_bias.sigmoid().repeat_interleave(self.head_dim).to(codes.dtype)
        mixed = torch.lerp(previous, codes, share)
        if past_key_values is not None:
            # Last: it may overwrite the memory that holds the previous token.
            keep_state(past_key_values, self.layer_idx, kept)
        return mixed

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        has_previous: torch.Tensor | None = None,
        last_real: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        config, input_shape = self.config, hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        cos, sin = position_embeddings
        codes = self.dictionary(hidden_states)
        value_states = codes.view(hidden_shape).transpose(1, 2)
        query_states = key_states = apply_rotary_pos_emb(value_states, cos, sin)
        if config.query_gain:
            query_states = apply_rotary_pos_emb(value_states, *multiply_planes(cos, sin, self.query_gain_bias))
        if config.rotary_values:
            value_states = key_states
        if config.key_shift:
            mixed = self.mix_with_previous(codes, past_key_values, has_previous, last_real)
            key_states = apply_rotary_pos_emb(mixed.view(hidden_shape).transpose(1, 2), cos, sin)

        if past_key_values is not None and key_states is value_states:
            # One tensor is both: the cache keeps it once.
            key_states, _ = past_key_values.update(key_states, key_states[..., :0], self.layer_idx)
            value_states = key_states
        elif past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )

        if config.rotary_values or config.output_gain:
            cos, sin = (cos, -sin) if config.rotary_values else (torch.ones_like(cos), torch.zeros_like(sin))
            if config.output_gain:
                cos, sin = multiply_planes(cos, sin, self.output_gain_bias)
            attn_output = apply_rotary_pos_emb(attn_output.transpose(1, 2), cos, sin).transpose(1, 2)
        attn_output = (attn_output * self.head_gain[:, None]).reshape(*input_shape, -1)
        attn_output = self.dictionary(attn_output, transposed=True) * self.output_scaling
        return attn_output, attn_weights


class PrismMLP(nn.Module):
    def __init__(self, config: PrismConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        # For `_init_weights`, which transformers calls on modules that hold weights, not on their parents.
        self.down_proj.initializer_std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class PrismDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: PrismConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.self_attn = PrismAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.mlp = PrismMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attn_output, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.dropout(mlp_output)


class PrismPreTrainedModel(PreviousTokenGeneration, CommonPreTrainedModel):
    config: PrismConfig
    config_class = PrismConfig
    _no_split_modules = ["PrismDecoderLayer"]
    _can_record_outputs = {"hidden_states": PrismDecoderLayer, "attentions": PrismAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, PrismDictionary):
            # Orthonormal columns, U^T U = I: a tight frame. QR needs fp32.
            if not getattr(module.weight, "_is_hf_initialized", False):
                module.weight.copy_(init.orthogonal_(torch.empty_like(module.weight, dtype=torch.float)))
        elif isinstance(module, PrismAttention):
            # `from_pretrained` leaves garbage in buffers that are not saved.
            module.set_noise_coefficient(self.config.noise_coefficient)
            for bias in module.parameters(recurse=False):
                init.zeros_(bias)
        elif hasattr(module, "initializer_std"):
            init.normal_(module.weight, mean=0.0, std=module.initializer_std)

    def set_noise_coefficient(self, value: float):
        """
        Sets lambda, the weight of the subtracted noise heads, in every layer and in the config.

        Args:
            value (`float`): the new lambda, from -1 to 1 (published: from 0.01 to 0.1 over a run).

        The config holds lambda: `save_pretrained` saves it, a bare `state_dict` does not. Assigning
        `config.noise_coefficient` does the same as this.

        Raises:
            ValueError: `value` is not a number from -1 to 1.
        """
        self.config.noise_coefficient = value

    def follow_config(self, name: str, value: float):
        """Called when a field of the config that a model can follow, here lambda, was assigned."""
        for module in self.modules():
            if isinstance(module, PrismAttention):
                module.set_noise_coefficient(value)


class PrismModel(PrismPreTrainedModel, PreviousTokenModel):
    """
    The decoder without a head; `forward` is that of `PreviousTokenModel`, with learned positions and dropout in front.

    Raises:
        ValueError: a position lies beyond the learned table.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: PrismConfig):
        self.begin(config)
        # Again: `PrismConfig.from_pretrained(path, num_signal_heads=4)` sets values after validation.
        config.validate_architecture()
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        if config.learned_position_embeddings:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            [PrismDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.rotary_emb = PrismRotaryEmbedding(config)
        self.gradient_checkpointing = False

        self.post_init()
        config.attach(self)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        inputs_embeds = self.embed(input_ids, inputs_embeds, past_key_values)
        if self.config.learned_position_embeddings:
            positions = learned_positions(self.config, position_ids, inputs_embeds, past_key_values)
            inputs_embeds = inputs_embeds + self.embed_positions(positions)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=self.dropout(inputs_embeds),
            **kwargs,
        )


class PrismForCausalLM(PrismPreTrainedModel, CommonForCausalLM):
    """Prism with a language-model head. `forward` takes and returns what that of `LlamaForCausalLM` does."""

    base_class = PrismModel


class PrismForSequenceClassification(CommonForSequenceClassification, PrismPreTrainedModel):
    base_class = PrismModel


class PrismForTokenClassification(CommonForTokenClassification, PrismPreTrainedModel):
    base_class = PrismModel


class PrismForQuestionAnswering(CommonForQuestionAnswering, PrismPreTrainedModel):
    base_class = PrismModel
