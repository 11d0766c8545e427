"""Prism model configuration."""

import math
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .configuration_checks import (
    CheckedConfig,
    activation,
    at_least,
    checked,
    not_negative,
    positive,
    probability,
    strict,
)


@strict
class PrismConfig(CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of a Prism model ("PRISM: Deriving the Transformer as a Signal-Denoising Operator via Maximum Coding
    Rate Reduction", Huang, arXiv 2601.15540).

    Args:
        vocab_size (`int`, defaults to 50304): number of token embeddings (the GPT-2 vocabulary, padded, as published).
        hidden_size (`int`, defaults to 512): width d of the residual stream.
        intermediate_size (`int`, defaults to 2048): width of the MLP's hidden layer.
        num_hidden_layers (`int`, defaults to 8): number of blocks.
        num_attention_heads (`int`, defaults to 16): number of all heads, signal and noise together.
        num_signal_heads (`int`, *optional*): number of signal heads, from 1 to `num_attention_heads - 1`; the others
            are noise heads. Default: half of `num_attention_heads`.
        dictionary_expansion (`int`, defaults to 2): overcompleteness R of each bank when both have equally many heads.
        head_dim (`int`, *optional*): width D of a head, derived as `dictionary_expansion * hidden_size /
            num_signal_heads`. A contradicting value is refused.
        signal_rope_theta (`float`, defaults to 10000 * pi): RoPE base of the signal heads.
        noise_rope_theta (`float`, defaults to 10000 / pi): RoPE base of the noise heads.
        noise_coefficient (`float`, defaults to 0.1): lambda, the weight of the subtracted noise heads, from -1 to 1.
            Training raises it from 0.01 to 0.1; a saved model keeps its value. A negative lambda adds the noise heads,
            and -1 gives all heads the same weight; training leaves it as it is.
        output_step (`float`, defaults to 1.0): step size of the ascent, as a factor on the published
            `1 / sqrt(num_attention_heads * dictionary_expansion)`.
        rotary_values (`bool`, defaults to `False`): rotate values like keys, and the heads' outputs back. The update
            is then a gradient step on the rate of the rotated codes, which the scores compare.
        query_gain (`bool`, defaults to `False`): multiply the queries by one learned complex number per head and
            rotary plane, 1 at the start.
        output_gain (`bool`, defaults to `False`): the same for the heads' outputs: a turn in the space of codes.
        key_shift (`bool`, defaults to `False`): mix into each key the code of the previous token, `s h_t + (1 - s)
            h_(t-1)`, with one learned s per head, 1/2 at the start.
        learned_position_embeddings (`bool`, defaults to `False`): add a learned table of absolute positions to the
            token embeddings, as the published code does. Off by default, because it confounds the effect of RoPE.
        max_position_embeddings (`int`, defaults to 512): training context, and the length of the learned table.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP (exact GELU).
        attention_dropout (`float`, defaults to 0.0): dropout on the attention weights.
        hidden_dropout (`float`, defaults to 0.0): dropout on the embeddings and on each sublayer's output.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of the layer norms.
        tie_word_embeddings (`bool`, defaults to `True`): share the token embeddings with the language-model head.
        use_cache (`bool`, defaults to `True`): return keys and values for faster decoding.

    Raises:
        ValueError: a field is outside its interval, sizes do not divide, a head width is odd, or `head_dim`
            contradicts the other sizes. Assigning a value outside its interval raises, too.

    Example:

    ```python
    >>> from modeling_prism import PrismConfig, PrismForCausalLM

    >>> config = PrismConfig(vocab_size=4096, hidden_size=192, intermediate_size=768, num_hidden_layers=3)
    >>> model = PrismForCausalLM(config)
    ```"""

    model_type = "prism"
    mark: ClassVar[str] = "num_signal_heads"
    followed_fields: ClassVar[tuple[str, ...]] = ("noise_coefficient",)
    names_elsewhere: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("rope_theta", "rope_scaling", "rope_parameters"), "signal_rope_theta` and `noise_rope_theta"),
        **CheckedConfig.names_elsewhere,
    }
    keys_to_ignore_at_inference = ["past_key_values"]
    # The MLP is split and attention replicated: a dictionary that is applied on both sides has no column- or row-wise
    # split.
    base_model_tp_plan = {
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = at_least(1, default=50304)
    hidden_size: int = at_least(1, default=512)
    intermediate_size: int = at_least(1, default=2048)
    num_hidden_layers: int = at_least(1, default=8)
    num_attention_heads: int = at_least(2, default=16)
    num_signal_heads: int | None = None
    dictionary_expansion: int = at_least(1, default=2)
    head_dim: int | None = None
    signal_rope_theta: float | int = positive(default=10000 * math.pi)
    noise_rope_theta: float | int = positive(default=10000 / math.pi)
    noise_coefficient: float | int = checked(
        lambda value: -1 <= value <= 1, "must be a number from -1 to 1 (published: 0.01 to 0.1)", default=0.1
    )
    output_step: float | int = positive(default=1.0)
    rotary_values: bool = False
    query_gain: bool = False
    output_gain: bool = False
    key_shift: bool = False
    learned_position_embeddings: bool = False
    max_position_embeddings: int = at_least(1, default=512)
    hidden_act: str = activation(default="gelu")
    attention_dropout: float | int = probability(default=0.0)
    hidden_dropout: float | int = probability(default=0.0)
    initializer_range: float = not_negative(default=0.02)
    layer_norm_eps: float | int = positive(default=1e-5)
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        # A property, below.
        kwargs.pop("layer_types", None)
        if self.transformers_version is not None:
            # Derived, in `to_dict`.
            kwargs.pop("num_key_value_heads", None)
        if self.num_signal_heads is None:
            self.num_signal_heads = self.num_attention_heads // 2
        # `validate_architecture` reports an impossible head count, with the remedy.
        if self.head_dim is None and self.num_signal_heads > 0:
            self.head_dim = self.dictionary_expansion * self.hidden_size // self.num_signal_heads
        super().__post_init__(**kwargs)

    @property
    def layer_types(self) -> list[str]:
        """What a cache holds for each layer: keys and values and, with `key_shift`, the previous token's codes."""
        return ["previous_token" if self.key_shift else "full_attention"] * self.num_hidden_layers

    def validate_layer_type(self):
        """Accepts "previous_token", which transformers does not list."""

    def to_dict(self) -> dict[str, Any]:
        # PEFT's prefix tuning reads the shape of keys and values here, and `head_dim` only beside this.
        return {**super().to_dict(), "num_key_value_heads": self.num_attention_heads}

    def validate_architecture(self):
        """Checks how the fields fit together. Raises `ValueError`."""
        if not 1 <= self.num_signal_heads <= self.num_attention_heads - 1:
            raise ValueError(
                f"`num_signal_heads` must leave at least one head to each bank, got {self.num_signal_heads} of "
                f"`num_attention_heads`={self.num_attention_heads}: choose a value from 1 to "
                f"{self.num_attention_heads - 1}."
            )
        bank_width = self.dictionary_expansion * self.hidden_size
        if bank_width % self.num_signal_heads != 0:
            raise ValueError(
                f"`num_signal_heads`={self.num_signal_heads} does not divide `dictionary_expansion * hidden_size` = "
                f"{self.dictionary_expansion} * {self.hidden_size} = {bank_width}; change one of the three."
            )
        head_dim = bank_width // self.num_signal_heads
        if self.head_dim != head_dim:
            raise ValueError(
                f"`head_dim`={self.head_dim} contradicts `dictionary_expansion * hidden_size / num_signal_heads` = "
                f"{head_dim}; leave `head_dim` out, it is derived, or give that value."
            )
        if head_dim % 2 != 0:
            raise ValueError(
                f"`head_dim`={head_dim} is odd and cannot be rotated in pairs; choose `hidden_size`, "
                "`dictionary_expansion` and `num_signal_heads` so that their head width is even."
            )


__all__ = ["PrismConfig"]
