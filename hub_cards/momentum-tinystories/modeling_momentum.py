"""Momentum: Llama whose queries and keys carry their change since the previous token (Maitra, arXiv 2602.04902).

Identical to Llama, parameter names included, except:
  - with p_t = x_t - x_(t-1), queries and keys become x_t + gamma * p_t after (option: before) the rotary embedding;
    values stay. p = 0 at the first token of a document, and where gamma = 0 the layer is Llama's;
  - x_(t-1) of a chunk's first token is kept beside the keys and values, in a cache layer of its own;

Shapes: B batch, S new tokens, T tokens attended to, H num_attention_heads, K num_key_value_heads, D head_dim,
N heads that are sheared together (H + K, H or K), C = N * D.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_momentum import MomentumConfig
from .modeling_common import (
    CommonForCausalLM,
    CommonForQuestionAnswering,
    CommonForSequenceClassification,
    CommonForTokenClassification,
    CommonPreTrainedModel,
)
from .state_previous_token import PreviousTokenGeneration, PreviousTokenModel, keep_state, pair_with_previous


class MomentumAttention(LlamaAttention):
    """Llama's attention with `q + gamma * (q - q_previous)` and the same for keys (symplectic shear)."""

    def __init__(self, config: MomentumConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.set_gamma(config.layer_gammas[layer_idx])
        self.streams = config.momentum_streams
        self.placement = config.momentum_placement

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, streams={self.streams!r}"

    def set_gamma(self, value: float):
        self.gamma, self.is_llama = value, value == 0

    def shear(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """The symplectic shear `x_t + gamma * (x_t - x_(t-1))` (arXiv 2602.04902) of tensors (B, S, C)."""
        # lerp(a, b, w) = b + (w - 1) * (b - a): one kernel, and exactly `states` where the two are equal.
        return torch.lerp(previous, states, 1 + self.gamma)

    def shear_streams(self, streams: list[torch.Tensor], past_key_values: Cache | None, *masks) -> list[torch.Tensor]:
        """Shears each (B, S, N, D) of `streams`; `masks` are those of `find_previous_tokens`."""
        flat = [states.flatten(2) for states in streams]
        pairs, kept = pair_with_previous(flat, past_key_values, self.layer_idx, *masks)
        sheared = [self.shear(*pair).view(states.shape) for pair, states in zip(pairs, streams)]
        if past_key_values is not None:
            # Last: it may overwrite the memory that holds the previous token.
            keep_state(past_key_values, self.layer_idx, kept)
        return sheared

    def rotate_and_shear(self, streams: list[torch.Tensor], position_embeddings, *state) -> list[torch.Tensor]:
        """RoPE and the shear in the order of `momentum_placement`, of tensors (B, S, N, D)."""
        if self.placement == "pre_rope":
            streams = self.shear_streams(streams, *state)
        streams = [rotate(states, *position_embeddings) for states in streams]
        if self.placement == "post_rope":
            streams = self.shear_streams(streams, *state)
        return streams

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
        if self.is_llama:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        # (B, S, heads, D) until the cache: the shear then reads contiguous memory.
        query_states = self.q_proj(hidden_states).view(hidden_shape)
        key_states = self.k_proj(hidden_states).view(hidden_shape)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        state = (position_embeddings, past_key_values, has_previous, last_real)
        if self.streams == "k":
            query_states = rotate(query_states, *position_embeddings)
            (key_states,) = self.rotate_and_shear([key_states], *state)
        elif self.streams == "q":
            (query_states,) = self.rotate_and_shear([query_states], *state)
            key_states = rotate(key_states, *position_embeddings)
        elif input_shape[1] == 1:
            # For one token, launching kernels is the cost: one tensor halves their number.
            heads = query_states.shape[2], key_states.shape[2]
            both = torch.cat((query_states, key_states), dim=2)
            (both,) = self.rotate_and_shear([both], *state)
            query_states, key_states = both.split(heads, dim=2)
        else:
            streams = [query_states, key_states]
            query_states, key_states = self.rotate_and_shear(streams, *state)
        query_states, key_states = query_states.transpose(1, 2), key_states.transpose(1, 2)

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
        return self.o_proj(attn_output.reshape(*input_shape, -1)), attn_weights


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Llama's `apply_rotary_pos_emb` of one tensor (B, S, N, D); `cos` and `sin` are (B or 1, S, D)."""
    return states * cos.unsqueeze(2) + rotate_half(states) * sin.unsqueeze(2)


class MomentumDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: MomentumConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = MomentumAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MomentumPreTrainedModel(PreviousTokenGeneration, CommonPreTrainedModel):
    config: MomentumConfig
    config_class = MomentumConfig
    _no_split_modules = ["MomentumDecoderLayer"]
    _can_record_outputs = {"hidden_states": MomentumDecoderLayer, "attentions": MomentumAttention}

    def set_momentum_gamma(self, value: float | list[float]):
        """
        Sets gamma, one number or one per layer, in every layer and in the config, as assigning
        `config.momentum_gamma` does. A cache filled before does not fit a new set of layers with gamma 0.

        Raises:
            ValueError: `value` is not finite, or not one number per layer.
        """
        self.config.momentum_gamma = value

    def follow_config(self, name: str, value: float | list[float] | None):
        """Called when a field of the config that a model can follow, here gamma, was assigned."""
        if value is None:
            self.config.resolve_gamma()
            return
        for module in self.modules():
            if isinstance(module, MomentumAttention):
                module.set_gamma(self.config.layer_gammas[module.layer_idx])


class MomentumModel(MomentumPreTrainedModel, PreviousTokenModel):
    """The decoder without a head; `forward` is that of `PreviousTokenModel`."""

    _auto_class = "AutoModel"

    def __init__(self, config: MomentumConfig):
        self.begin(config)
        # Again: `from_pretrained(path, momentum_gamma=[0.5, 1.0])` sets values after validation.
        config.resolve_gamma()
        config.validate_architecture()
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [MomentumDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False

        self.post_init()
        config.attach(self)


class MomentumForCausalLM(MomentumPreTrainedModel, CommonForCausalLM):
    """Momentum with a language-model head. `forward` takes and returns what that of `LlamaForCausalLM` does."""

    base_class = MomentumModel


class MomentumForSequenceClassification(CommonForSequenceClassification, MomentumPreTrainedModel):
    base_class = MomentumModel


class MomentumForTokenClassification(CommonForTokenClassification, MomentumPreTrainedModel):
    base_class = MomentumModel


class MomentumForQuestionAnswering(CommonForQuestionAnswering, MomentumPreTrainedModel):
    base_class = MomentumModel
