"""Which token comes before each, and what a cache keeps of it: for Momentum's shear and Prism's key shift.

Shapes: B batch, S new tokens, T tokens attended to, C width of a stream that needs it (heads * head_dim).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.import_utils import is_torchdynamo_exporting, is_tracing

from .modeling_common import ReplacedStates, read_mask


# An additive mask hides what it lowers by this much, however it writes minus infinity.
MASKED = -1000.0


def pair_with_previous(
    streams: list[torch.Tensor],
    past_key_values: Cache | None,
    layer_idx: int,
    has_previous: torch.Tensor | None,
    last_real: torch.Tensor | None,
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
    """
    Pairs the states of every token with those of its previous token.

    Args:
        streams: tensors (B, S, C).
        past_key_values, layer_idx: where `keep_state` kept the tokens before.
        has_previous, last_real: see `find_previous_tokens`.

    Returns:
        `(states, previous)` for each stream, both (B, S, C); a token without a previous one is its own.
        For each stream what `keep_state` needs: the states (B, S, C) of the last real token up to each token.
    """
    state = read_state(past_key_values, layer_idx)
    if state is None or state.shape[-1] == 0:
        carried = [states[:, :1] for states in streams]
    else:
        carried = state[..., -1:].transpose(1, 2).split([states.shape[2] for states in streams], dim=2)

    pairs, kept = [], []
    for states, previous in zip(streams, carried):
        last = states
        if states.shape[1] > 1 or last_real is not None:
            history = torch.cat((previous, states), dim=1)
            # `states` too are read from here, or the compiler rotates every token twice.
            last = states = history[:, 1:]
            if last_real is not None:
                history = history.gather(1, last_real[..., None].expand(-1, -1, history.shape[2]))
                last = history[:, 1:]
            previous = history[:, :-1]
        if has_previous is not None:
            previous = torch.where(has_previous[..., None], previous, states)
        pairs.append((states, previous))
        kept.append(last)
    return pairs, kept


def read_state(past_key_values: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """What `keep_state` left (B, sum of C, 1 or more); None at the start."""
    if past_key_values is None:
        return None
    # Not `get_conv_state`, which transformers 5.20 lacks.
    layer = past_key_values.layers[layer_idx]
    return layer.conv_states[0] if layer.has_previous_state[0] else None


def keep_state(past_key_values: Cache, layer_idx: int, kept: list[torch.Tensor]):
    """Replaces a layer's state with the last of `kept`, tensors (B, S, C)."""
    # A cache that may be cropped, as in assisted decoding, records every token until then.
    if not getattr(past_key_values.layers[layer_idx], "record_past", False):
        kept = [states[:, -1:] for states in kept]
    state = (kept[0] if len(kept) == 1 else torch.cat(kept, dim=2)).transpose(1, 2)
    past_key_values.update_conv_state(state, layer_idx, conv_kernel_size=1)


class PreviousTokenLayer(ReplacedStates, LinearAttentionAndFullAttentionLayer):
    """Keys, values and the previous token's queries and keys, as a convolution state (B, C, 1) of width 1."""

    _layer_type = "previous_token"

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        DynamicLayer.batch_repeat_interleave(self, repeats)

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        DynamicLayer.batch_select_indices(self, indices)


class StaticPreviousTokenLayer(LinearAttentionAndStaticFullAttentionLayer):
    """The same for a `StaticCache`: one address for every token, so that one graph serves all."""

    _layer_type = "previous_token"
    is_croppable = False

    def update_conv_state(self, conv_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not self.has_previous_state[0]:
            return super().update_conv_state(conv_states, *args, **kwargs)
        # transformers' update without its concatenation.
        return self.conv_states[0].copy_(conv_states)

    def activate_past_recording(self):
        raise ValueError("A `StaticCache` cannot be cropped: use `DynamicCache(config=model.config)`.")

    def crop(self, tokens_to_remove: int):
        self.activate_past_recording()


def find_previous_tokens(
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    inputs_embeds: torch.Tensor,
) -> dict[str, torch.Tensor | None]:
    """
    Finds the previous token of each new one: the last before it that is neither padding nor of another document.

    Returns:
        `has_previous` (B, S), False where there is none; None where all but the very first token have one.
        `last_real` (B, 1 + S): for the token before the new ones and for each of them, where the last real token
        stands, 0 being the one that the cache carries and 1 the first new one; None where no padding follows a token.
    """
    length = inputs_embeds.shape[1]
    past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
    has_previous = last_real = None

    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        # Padding.
        real, tracing = attention_mask, is_tracing(attention_mask)
        if tracing or not real.all():
            slots = past_length + torch.arange(length, device=real.device)
            # The column of the last real token before each column, -1 where there is none: that of the n-th real one,
            # if n stand before. Not `cummax`, which ONNX lacks.
            counts = nn.functional.pad(real.cumsum(-1), (1, 0))
            columns = torch.where(real, torch.arange(real.shape[1], device=real.device), -1)
            last = torch.full_like(counts, -1).scatter(1, counts[:, 1:].where(real, 0), columns).gather(1, counts)
            before, last = last[:, slots], last[:, slots + 1]
            has_previous = before >= 0
            last_real = nn.functional.pad((last - past_length).clamp(min=-1) + 1, (1, 0))
            if not tracing and not (~real[:, slots] & (last >= 0)).any():
                last_real = None
    elif isinstance(attention_mask, torch.Tensor):
        # A mask of the user's own (B, 1, S, T): a token's previous one is the one before it, if it attends to that.
        allowed = attention_mask[:, 0]
        allowed = allowed if allowed.dtype == torch.bool else allowed > MASKED
        before = (past_length - 1 + torch.arange(length, device=allowed.device)).clamp(min=0)
        has_previous = allowed.gather(-1, before[None, :, None].expand(allowed.shape[0], -1, -1))[..., 0]
    elif position_ids is not None and past_key_values is None and length > 1:
        # Packed documents, by the rule of `create_causal_mask`.
        has_previous = nn.functional.pad(position_ids.diff(dim=-1) == 1, (1, 0), value=True)

    if has_previous is not None and not is_tracing(has_previous) and has_previous.all():
        has_previous = None
    return {"has_previous": has_previous, "last_real": last_real}


def check_cache(config: PreTrainedConfig, past_key_values: Cache, batch_size: int):
    """Raises `ValueError` for a cache from which the previous token's state cannot be read."""
    if "previous_token" not in config.layer_types:
        return
    remedy = "make it with `DynamicCache(config=model.config)` or `StaticCache(config=model.config, ...)`"
    layers = getattr(past_key_values, "layers", [])
    if getattr(past_key_values, "offloading", False):
        raise ValueError(f"An offloaded cache loses the previous token's state: {remedy}, without offloading.")
    if is_torchdynamo_exporting():
        raise ValueError(
            "An exported program keeps keys and values alone and would lose the previous token's state: export the "
            "model without a cache (`use_cache=False`)."
        )
    for layer_idx, layer_type in enumerate(config.layer_types):
        if layer_type != "previous_token":
            continue
        layer = layers[layer_idx] if layer_idx < len(layers) else None
        # By name: remote code has a copy of the class.
        if getattr(layer, "_layer_type", None) != "previous_token":
            raise ValueError(
                f"`past_key_values` ({type(past_key_values).__name__}, layer {layer_idx}: {layer}) has no place "
                f"for the state of the previous token, which a {config.model_type} model needs: {remedy}."
            )
        state = layer.conv_states[0] if layer.has_previous_state[0] else None
        if state is None or state.shape[-1] == 0:
            if not is_tracing() and layer.get_seq_length() > 0:
                raise ValueError(
                    f"`past_key_values` holds keys but not the previous token's state (layer {layer_idx}): another "
                    "model filled it, or it was cropped to before it began recording. Start with a new cache: "
                    f"{remedy}."
                )
        elif state.shape[0] != batch_size:
            raise ValueError(
                f"`past_key_values` holds a batch of {state.shape[0]}, not of {batch_size}: select or repeat its rows "
                "first (`batch_select_indices`, `batch_repeat_interleave`)."
            )


class PreviousTokenModel(LlamaModel):
    """
    `LlamaModel` whose layers are told which token comes before each, if one of `layer_types` is "previous_token".

    It tells packed documents (position ids that restart at 0) apart in evaluation too: Llama does so only where no
    cache is made.

    Raises:
        ValueError: the cache does not hold the previous token's state.
    """

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
        if past_key_values is not None:
            check_cache(self.config, past_key_values, inputs_embeds.shape[0])
        needs_state = "previous_token" in self.config.layer_types
        if needs_state and position_ids is None and kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("`cu_seq_lens_q` does not tell where documents begin: pass `position_ids` too.")

        # Before Llama makes a cache: with one, it does not tell packed documents apart.
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = self.create_masks_for_generate(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids
            )
        return super().forward(
            attention_mask=masks["full_attention"],
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            has_previous=masks["has_previous"],
            last_real=masks["last_real"],
            **kwargs,
        )


class PreviousTokenGeneration:
    """What `generate` needs to know of the state. Goes before `PreTrainedModel` among the bases."""

    @staticmethod
    def create_masks_for_generate(
        config: PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor | None]:
        """What all layers share. `generate` makes it outside the compiled forward pass and passes it as the mask."""
        attention_mask = read_mask(attention_mask, inputs_embeds, past_key_values)
        causal_mask = create_causal_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if "previous_token" not in config.layer_types:
            return {"full_attention": causal_mask, "has_previous": None, "last_real": None}
        return {
            "full_attention": causal_mask,
            **find_previous_tokens(attention_mask, position_ids, past_key_values, inputs_embeds),
        }

    def init_continuous_batching(self, *args, **kwargs):
        if "previous_token" in self.config.layer_types:
            raise ValueError(
                "Continuous batching (`generate_batch`) pages keys and values alone and would lose the state of "
                "the previous token: call `generate` with a padded batch."
            )
        return super().init_continuous_batching(*args, **kwargs)
