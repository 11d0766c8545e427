"""Spherical's bookkeeping: positions and, for uniform routing, what a running mean reads and what a cache keeps.

Shapes: B batch, S new tokens, T tokens averaged over, d hidden_size, H num_attention_heads.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer, StaticLayer
from transformers.masking_utils import create_causal_mask, find_packed_sequence_indices
from transformers.utils.import_utils import is_torchdynamo_exporting, is_tracing

from .configuration_spherical import SphericalConfig
from .modeling_common import ReplacedStates, learned_positions, read_mask


def find_slots(past_key_values: Cache | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """The columns of a padding mask (B, T) that belong to the new tokens (S,)."""
    past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
    return past_length + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)


def find_positions(
    config: SphericalConfig,
    position_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
    past_key_values: Cache | None,
) -> torch.Tensor:
    """Positions (B or 1, S) of the new tokens; without `position_ids` they count real tokens and skip padding."""
    if position_ids is None and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        position_ids = position_ids[:, find_slots(past_key_values, inputs_embeds)]
    return learned_positions(config, position_ids, inputs_embeds, past_key_values)


def create_running_mean_mask(
    config: SphericalConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """
    What every layer needs to know of padding and documents; the arguments are those of `create_causal_mask`.

    Returns:
        `counts` (B, 1, S), how many of the new tokens each of them sees;
        `real` (B, 1, S), False at padding; None without padding;
        `first` (B, 1, S), where each token's document begins; None without packed documents;
        `weights` (B, H, S, T), the attention weights, with `attn_implementation="eager"`; None otherwise.

    Raises:
        ValueError: the mask has other than two dimensions, or the cache does not keep running means.
    """
    if isinstance(attention_mask, dict):
        return attention_mask
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` has {attention_mask.ndim} dimensions, but uniform routing takes only a padding mask "
            "(B, T): for packed documents pass `position_ids` that restart at 0 and no mask, or use softmax routing."
        )
    if past_key_values is not None:
        check_running_means(past_key_values)

    batch_size, length = inputs_embeds.shape[:2]
    steps = torch.arange(length, device=inputs_embeds.device)
    real = first = weights = None
    counts = (steps + 1).expand(batch_size, -1)
    if attention_mask is not None:
        real = attention_mask[:, find_slots(past_key_values, inputs_embeds)]
        counts = real.cumsum(-1)
        real = None if not is_tracing(real) and real.all() else real[:, None]
    elif position_ids is not None and past_key_values is None:
        # Packed documents, by the rule of `create_causal_mask`.
        documents = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
        if documents is not None:
            first = torch.searchsorted(documents, documents)
            counts = steps + 1 - first
            first = first[:, None]
    if config._attn_implementation == "eager":
        # As published: a softmax of zeros over what a token may see.
        mask = create_causal_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids)
        weights = mask.softmax(-1).expand(-1, config.num_attention_heads, -1, -1)
    return {"counts": counts[:, None].float(), "real": real, "first": first, "weights": weights}


def running_sum(states: torch.Tensor, real: torch.Tensor | None, first: torch.Tensor | None) -> torch.Tensor:
    """
    Sums `states` (B, d, S) up to each token, within its document and without padding, in fp32 at least; `real` and
    `first` as in `create_running_mean_mask`.
    """
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if real is not None:
        states = states.masked_fill(~real, 0)
    if first is None:
        return states.cumsum(-1)
    # A short document late in a long row is a small difference of large sums. (MPS has no fp64.)
    dtype = torch.float32 if states.device.type == "mps" else torch.float64
    until = nn.functional.pad(states.to(dtype).cumsum(-1), (1, 0))
    return (until[..., 1:] - until.gather(-1, first.expand_as(states))).to(states.dtype)


class RunningMeanLayer(ReplacedStates, LinearAttentionLayer, CacheLayerMixin):
    """
    All that uniform routing keeps of the past: the sum of the values (B, d, 1) and their number (B, 1, 1).

    Both are stored as convolution states of width 1, which transformers can reorder and, while recording, crop.
    """

    _layer_type = "running_mean"
    # The length is a Python number: every length would compile a graph of its own.
    is_compileable = False

    def __init__(self, **kwargs):
        CacheLayerMixin.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=2)
        self.cumulative_length = 0

    def update(self, sums: torch.Tensor, counts: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the past to the `sums` (B, d, S) and `counts` (B, 1, S) of new tokens; keeps the last of both."""
        totals = [sums, counts]
        for state_idx, new in enumerate((sums, counts)):
            if self.has_previous_state[state_idx]:
                kept = self.conv_states[state_idx][..., -1:]
                if kept.shape[0] != new.shape[0]:
                    raise ValueError(f"`past_key_values` holds a batch of {kept.shape[0]}, not of {new.shape[0]}.")
                totals[state_idx] = new + kept
            self.update_conv_state(totals[state_idx], state_idx, conv_kernel_size=1)
        self.cumulative_length += sums.shape[-1]
        return totals[0], totals[1]

    @property
    def keys(self) -> None:
        """None while nothing is kept. Afterwards raises: a cache rebuilt by iterating over this one would be empty."""
        if self.cumulative_length:
            raise ValueError(
                "`past_key_values` keeps running means, not keys and values that could be read: copy it with "
                "`copy.deepcopy`."
            )

    @keys.setter
    def keys(self, value: None):
        """`CacheLayerMixin` sets it to None."""

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def reset(self):
        super().reset()
        CacheLayerMixin.reset(self)

    def crop(self, tokens_to_remove: int):
        if self.cumulative_length == 0:
            return
        super().crop(tokens_to_remove)
        self.cumulative_length -= min(abs(tokens_to_remove), int(self.cumulative_length))
        if self.conv_states[0].shape[-1] == 0:
            if self.cumulative_length > 0:
                raise ValueError(
                    f"`past_key_values` was cropped by {abs(tokens_to_remove)} tokens, further back than it recorded: "
                    "call `activate_past_recording` before the tokens that may be removed, or start with a new cache."
                )
            # Empty, so as good as new.
            for state_idx in self.conv_states:
                self.set_state(state_idx, None)


class StaticRunningMeanLayer(RunningMeanLayer, StaticLayer):
    """The same for a `StaticCache`; its length is a tensor, so that one graph serves every length."""

    is_compileable = True
    # In place: one address for every token.
    update_conv_state = LinearAttentionLayer.update_conv_state

    def __init__(self, max_cache_len: int, **kwargs):
        super().__init__()
        self.max_cache_len = max_cache_len
        self.cumulative_length = torch.tensor(0)

    def lazy_initialization(self, *args, **kwargs):
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)
        self.cumulative_length = self.cumulative_length.to(self.device)
        if not is_tracing():
            torch._dynamo.mark_static_address(self.cumulative_length)

    def reset(self):
        LinearAttentionLayer.reset(self)
        CacheLayerMixin.reset(self)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        return self.max_cache_len


def check_running_means(past_key_values: Cache):
    """Raises `ValueError` for a cache that was not made for uniform routing, and while a program is exported."""
    if is_torchdynamo_exporting():
        raise ValueError(
            "An exported program keeps keys and values alone, and uniform routing has none: export the model without "
            "a cache (`use_cache=False`)."
        )
    layers = getattr(past_key_values, "layers", None) or [past_key_values]
    # By name: remote code has a copy of the class.
    wrong = next((layer for layer in layers if getattr(layer, "_layer_type", None) != "running_mean"), None)
    if wrong is not None or getattr(past_key_values, "offloading", False):
        raise ValueError(
            f"`past_key_values` ({type(past_key_values).__name__}, holding {type(wrong or layers[0]).__name__}) "
            "cannot keep the running means of uniform routing: make it with `DynamicCache(config=model.config)` or "
            "`StaticCache(config=model.config, ...)`, without offloading."
        )


class SphericalGeneration:
    """What `generate` needs to know of the routing. Goes before `PreTrainedModel` among the bases."""

    @staticmethod
    def create_masks_for_generate(
        config: SphericalConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | dict[str, torch.Tensor | None] | None:
        """What all layers share. `generate` makes it outside the compiled forward pass and passes it as the mask."""
        attention_mask = read_mask(attention_mask, inputs_embeds, past_key_values)
        create_mask = create_running_mean_mask if config.attention_routing == "uniform" else create_causal_mask
        return create_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids)

    def init_continuous_batching(self, *args, **kwargs):
        if self.config.attention_routing == "uniform":
            raise ValueError(
                "Continuous batching (`generate_batch`) pages keys and values, and uniform routing has none: call "
                "`generate` with a padded batch."
            )
        return super().init_continuous_batching(*args, **kwargs)


class FreeHead:
    """A head other than that of a language model, whose scores have no bound, whatever the config says. Goes first."""

    def __init__(self, config: SphericalConfig):
        super().__init__(config)
        self.model.norm = nn.Identity()


class BoundedHead:
    """What transformers needs to know of a head whose parameter is not called `weight`. Goes first."""

    def post_init(self):
        if hasattr(self.lm_head, "rows"):
            self._tied_weights_keys = {"lm_head.rows": "model.embed_tokens.weight"}
        super().post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if "lm_head.rows" in info["missing_keys"]:
            # As it was called in folders of before.
            renamed = {"^lm_head.weight$": "lm_head.rows"}
            model, info = super().from_pretrained(*args, output_loading_info=True, key_mapping=renamed, **kwargs)
            model._weight_conversions = None
        return (model, info) if output_loading_info else model

    def _get_resized_lm_head(self, old_lm_head: nn.Module, *args, **kwargs) -> nn.Module:
        if not hasattr(old_lm_head, "rows"):
            return super()._get_resized_lm_head(old_lm_head, *args, **kwargs)
        # transformers resizes an `nn.Linear`; the head takes its rows.
        vocab_size, hidden_size = old_lm_head.rows.shape
        plain = nn.Linear(hidden_size, vocab_size, bias=False, device="meta")
        plain.weight = old_lm_head.rows
        old_lm_head.rows = super()._get_resized_lm_head(plain, *args, **kwargs).weight
        return old_lm_head
