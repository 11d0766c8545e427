"""Spherical: a residual stream that never leaves the unit sphere (Yildirim, arXiv 2603.05228).

Identical to GPT-2 (learned positions, causal softmax attention, two-layer MLP) except:
  - norms apply to the residual stream itself: h = P(token + position), h = P(h + attention(h)), h = P(h + mlp(h));
    P projects to length 1 (baselines: LayerNorm, RMSNorm). There is no last norm;
  - logits are tau times the cosine of P(h) and the token's row of the unembedding, so bounded by tau (option: linear);
  - attention may be uniform: a running mean of the values, linear in length, with a constant state instead of keys;
  - ReLU; biases in the MLP alone; an untied unembedding; nn.Linear's and nn.Embedding's own initialisation.

Shapes: B batch, S new tokens, T tokens attended to, d hidden_size, H num_attention_heads, D = d / H head width.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_spherical import SphericalConfig
from .modeling_common import (
    CommonForCausalLM,
    CommonForQuestionAnswering,
    CommonForSequenceClassification,
    CommonForTokenClassification,
    CommonPreTrainedModel,
    read_mask,
)
from .state_spherical import BoundedHead, FreeHead, SphericalGeneration, find_positions, running_sum


def project(states: torch.Tensor) -> torch.Tensor:
    """
    `P(x) = x / max(|x|, 0.01)` over the last dimension, computed in fp32 at least.

    Below a length of 0.01, P is linear: P(0) = 0, and no gradient grows more than a hundredfold.
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    return nn.functional.normalize(wide, dim=-1, eps=0.01).to(states.dtype)


class SphericalProjection(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return project(hidden_states)


class SphericalUnembedding(nn.Module):
    """
    `tau * h . P(rows of W)` for h on the sphere, with gradient through the projection: logits between -tau and tau.

    The parameter W is `rows`; `weight` is P(rows of W), so that `hidden @ weight.T * logit_scale` is the model (TRL
    computes it). Not an `nn.Linear`, which tools replace with a copy.
    """

    def __init__(self, config: SphericalConfig):
        super().__init__()
        self.config = config
        self.rows = nn.Linear(config.hidden_size, config.vocab_size, bias=False).weight
        self.bias = None

    @property
    def weight(self) -> torch.Tensor:
        return project(self.rows)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.config.logit_scale * nn.functional.linear(hidden_states, self.weight)


def make_norm(config: SphericalConfig) -> nn.Module:
    if config.residual_norm == "sphere":
        return SphericalProjection()
    norm_class = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[config.residual_norm]
    return norm_class(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=config.norm_affine)


class SphericalAttention(nn.Module):
    """Causal softmax attention, through transformers' attention interface."""

    def __init__(self, config: SphericalConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

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


class SphericalUniformAttention(SphericalAttention):
    """
    Attention with all scores zero: each token reads the mean of the values it may see, itself included.

    As published, `q_proj` and `k_proj` exist but are not used. They get no gradient, so DistributedDataParallel needs
    `find_unused_parameters=True`; Trainer sets it unless gradients are checkpointed.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: dict[str, torch.Tensor | None],
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        counts, real, first = (attention_mask[name] for name in ("counts", "real", "first"))
        # (B, d, S): with time last, sums run along memory.
        value_states = self.v_proj(hidden_states).transpose(1, 2).contiguous()
        sums = running_sum(value_states, real, first)
        if past_key_values is not None:
            sums, counts = past_key_values.update(sums, counts, self.layer_idx)
        attn_output = (sums / counts.clamp(min=1)).to(hidden_states.dtype)
        return self.o_proj(attn_output.transpose(1, 2)), attention_mask["weights"]


class SphericalMLP(nn.Module):
    def __init__(self, config: SphericalConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class SphericalDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SphericalConfig, layer_idx: int):
        super().__init__()
        uniform = config.attention_routing == "uniform"
        self.self_attn = (SphericalUniformAttention if uniform else SphericalAttention)(config, layer_idx)
        self.attention_norm = make_norm(config)
        self.mlp = SphericalMLP(config)
        self.mlp_norm = make_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attn_output, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attn_output))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class SphericalPreTrainedModel(SphericalGeneration, CommonPreTrainedModel):
    config: SphericalConfig
    config_class = SphericalConfig
    _no_split_modules = ["SphericalDecoderLayer"]
    _can_record_outputs = {"hidden_states": SphericalDecoderLayer, "attentions": SphericalAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, SphericalUnembedding):
            # Drawn twice, as transformers draws an `nn.Linear`: a seed keeps its initial weights.
            init.normal_(module.rows)
            bound = module.rows.shape[1] ** -0.5
            init.uniform_(module.rows, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=1.0)


class SphericalModel(SphericalPreTrainedModel):
    """
    The decoder without a head.

    `forward` takes and returns what `LlamaModel.forward` does: token ids or embeddings of shape (B, S), an attention
    mask (B, T) for padding, position ids (B, S) that may restart at 0 to keep packed documents apart, and a cache.
    Without `position_ids`, positions count real tokens and skip padding.

    Raises:
        ValueError: a position lies beyond the learned table, or uniform routing cannot use the mask or the cache.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: SphericalConfig):
        self.begin(config)
        # Again: `from_pretrained(path, attention_routing="uniform")` sets values after validation.
        config.resolve_logit_scale()
        config.validate_architecture()
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.embedding_norm = make_norm(config)
        self.layers = nn.ModuleList([SphericalDecoderLayer(config, idx) for idx in range(config.num_hidden_layers)])
        reads_cosines = config.bounded_unembedding and config.residual_norm != "sphere"
        self.norm = SphericalProjection() if reads_cosines else nn.Identity()
        self.gradient_checkpointing = False

        self.post_init()
        config.attach(self)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        inputs_embeds = self.embed(input_ids, inputs_embeds, past_key_values)
        attention_mask = read_mask(attention_mask, inputs_embeds, past_key_values)
        positions = find_positions(self.config, position_ids, inputs_embeds, attention_mask, past_key_values)
        if position_ids is None and kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("`cu_seq_lens_q` does not tell where positions restart: pass `position_ids` too.")

        # Before a cache is made: transformers tells packed documents apart only without one.
        attention_mask = self.create_masks_for_generate(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = self.dropout(inputs_embeds + self.embed_positions(positions))
        hidden_states = self.embedding_norm(hidden_states)
        shared = {"attention_mask": attention_mask, "past_key_values": past_key_values, "use_cache": use_cache}
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, position_ids=positions, **shared, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class SphericalForCausalLM(BoundedHead, SphericalPreTrainedModel, CommonForCausalLM):
    """Spherical with a language-model head. `forward` takes and returns what that of `LlamaForCausalLM` does."""

    base_class = SphericalModel

    def make_head(self, config: SphericalConfig) -> nn.Module:
        return SphericalUnembedding(config) if config.bounded_unembedding else super().make_head(config)


class SphericalForSequenceClassification(FreeHead, CommonForSequenceClassification, SphericalPreTrainedModel):
    base_class = SphericalModel


class SphericalForTokenClassification(FreeHead, CommonForTokenClassification, SphericalPreTrainedModel):
    base_class = SphericalModel


class SphericalForQuestionAnswering(FreeHead, CommonForQuestionAnswering, SphericalPreTrainedModel):
    base_class = SphericalModel
