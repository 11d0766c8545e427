"""Prism: attention as a step of signal-noise decomposition (Huang, arXiv 2601.15540).

Identical to GPT-NeoX (pre-norm LayerNorm, GELU MLP, full rotary positions, sequential residual) except:
  - one dictionary U replaces the query, key, value and output matrices: q = k = RoPE(U z), v = U z, out = U^T y;
  - heads come in two banks with RoPE bases of their own; noise heads are subtracted, weighted by lambda;
  - no biases; the MLP's output is initialised with a standard deviation smaller by sqrt(2 * layers).

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
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_prism import PrismConfig
from .modeling_common import (
    CommonForCausalLM,
    CommonForSequenceClassification,
    CommonPreTrainedModel,
    learned_positions,
    read_mask,
)


class PrismDictionary(nn.Module):
    """
    The dictionary U, of shape (M, d), applied on both sides: `U z` gives the codes of z, `U^T y` combines codes.

    Not an `nn.Linear`: tools that hook, offload or replace a linear layer expect it to be used once.
    """

    def __init__(self, num_codes: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, hidden_size))

    def forward(self, states: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """Maps (..., d) to (..., M), or if `transposed` (..., M) to (..., d)."""
        return torch.matmul(states, self.weight if transposed else self.weight.t())


class PrismRotaryEmbedding(nn.Module):
    """
    Angles of pi-RoPE: head h turns by `position * theta_h ** (-2 j / D)` in plane j, with one base per bank.

    Every call computes the angles in fp32 from the config: `model.bfloat16()` would round a stored buffer, and in bf16
    512 positions collapse to 385.
    """

    def __init__(self, config: PrismConfig):
        super().__init__()
        self.head_dim = config.head_dim
        num_noise_heads = config.num_attention_heads - config.num_signal_heads
        self.thetas = [config.signal_rope_theta, config.noise_rope_theta]
        self.heads_per_bank = [config.num_signal_heads, num_noise_heads]

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of shape (B or 1, H, S, D / 2), in the dtype of `hidden_states`."""
        exponents = torch.arange(0, self.head_dim, 2, device=position_ids.device, dtype=torch.float) / self.head_dim
        inv_freq = torch.stack([theta**-exponents for theta in self.thetas])  # (2, D / 2)
        angles = position_ids[:, None, :, None].float() * inv_freq[:, None, :]
        cos, sin = angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)
        return self._bank_to_heads(cos), self._bank_to_heads(sin)

    def _bank_to_heads(self, table: torch.Tensor) -> torch.Tensor:
        banks = zip(table.split(1, dim=1), self.heads_per_bank)
        return torch.cat([bank.expand(-1, num_heads, -1, -1) for bank, num_heads in banks], dim=1)


def apply_rotary_pos_emb(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `states` (B, H, S, D) in the planes (j, j + D / 2) by the angles of `cos` and `sin` (B, H, S, D / 2)."""
    # `unbind` makes no zero-filled gradients, `addcmul` saves a pass per half: 5 % of a training step on a CPU.
    first, second = states.unflatten(-1, (2, -1)).unbind(-2)
    rotated = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(rotated, dim=-1)


class PrismAttention(nn.Module):
    """One denoising step: `U^T concat(+ signal heads, - lambda * noise heads) / sqrt(H * R)` (specialised MSSA)."""

    def __init__(self, config: PrismConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_signal_heads = config.num_signal_heads
        self.scaling = self.head_dim**-0.5
        self.output_scaling = (config.num_attention_heads * config.dictionary_expansion) ** -0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        self.dictionary = PrismDictionary(config.num_attention_heads * self.head_dim, config.hidden_size)
        # +1 for signal heads, -lambda for noise heads. As a buffer it follows the device, and a new lambda does not
        # recompile. It is not saved: the config holds lambda.
        self.head_gain = nn.Buffer(torch.ones(config.num_attention_heads), persistent=False)
        self.set_noise_coefficient(config.noise_coefficient)

    @torch.no_grad()
    def set_noise_coefficient(self, value: float):
        self.head_gain[: self.num_signal_heads].fill_(1.0)
        self.head_gain[self.num_signal_heads :].fill_(-value)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]

        value_states = self.dictionary(hidden_states).view(*input_shape, -1, self.head_dim).transpose(1, 2)
        query_states = key_states = apply_rotary_pos_emb(value_states, *position_embeddings)

        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
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


class PrismPreTrainedModel(CommonPreTrainedModel):
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
        elif hasattr(module, "initializer_std"):
            init.normal_(module.weight, mean=0.0, std=module.initializer_std)

    def set_noise_coefficient(self, value: float):
        """
        Sets lambda, the weight of the subtracted noise heads, in every layer and in the config.

        Args:
            value (`float`): the new lambda, from 0 to 1 (published: from 0.01 to 0.1 over a run).

        The config holds lambda: `save_pretrained` saves it, a bare `state_dict` does not. Assigning
        `config.noise_coefficient` does the same as this.
        """
        self.config.noise_coefficient = float(value)

    def follow_config(self, name: str, value: float):
        """Called when a field of the config that a model can follow, here lambda, was assigned."""
        for module in self.modules():
            if isinstance(module, PrismAttention):
                module.set_noise_coefficient(value)


class PrismModel(PrismPreTrainedModel, LlamaModel):
    """
    The decoder without a head; `forward` is that of `LlamaModel`, with learned positions and dropout in front.

    It tells packed documents (position ids that restart at 0) apart in evaluation too: Llama does so only where no
    cache is made.

    Raises:
        ValueError: a position lies beyond the learned table.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: PrismConfig):
        PreTrainedModel.__init__(self, config)
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
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        attention_mask = read_mask(attention_mask, inputs_embeds, past_key_values)
        # Before Llama makes a cache: with one, it does not tell packed documents apart.
        causal_mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if self.config.learned_position_embeddings:
            position_ids = learned_positions(self.config, position_ids, inputs_embeds, past_key_values)
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids)
        return super().forward(
            attention_mask=causal_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=self.dropout(inputs_embeds),
            use_cache=use_cache,
            **kwargs,
        )


class PrismForCausalLM(PrismPreTrainedModel, CommonForCausalLM):
    base_class = PrismModel


class PrismForSequenceClassification(CommonForSequenceClassification, PrismPreTrainedModel):
    base_class = PrismModel


__all__ = ["PrismForCausalLM", "PrismForSequenceClassification", "PrismModel", "PrismPreTrainedModel"]
