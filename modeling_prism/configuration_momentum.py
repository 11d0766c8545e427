"""Momentum model configuration."""

import math
from typing import Any, ClassVar

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig

from .configuration_checks import (
    CheckedConfig,
    activation,
    at_least,
    checked,
    not_negative,
    one_of,
    positive,
    probability,
    strict,
)


def is_gamma(value: Any) -> bool:
    return all(math.isfinite(gamma) for gamma in (value if isinstance(value, list) else [value]))


@strict
class MomentumConfig(CheckedConfig, LlamaConfig):
    r"""
    Configuration of a Momentum model ("Momentum Attention: The Physics of In-Context Learning and Spectral Forensics
    for Mechanistic Interpretability", Maitra, arXiv 2602.04902): a `LlamaConfig` with three more fields. The config of
    any Llama folder is valid.

    Args:
        momentum_gamma (`float` or `list[float]`, *optional*): gamma, the weight of the difference to the previous
            token that is added to queries and keys: one number, or one per layer. 0 is plain Llama. Default: the
            published law `4.17 * num_hidden_layers ** -0.74`, resolved here, so that a saved config holds the number.
        momentum_streams (`str`, defaults to `"qk"`): what is sheared: `"qk"` queries and keys (as published), `"k"`
            keys alone, `"q"` queries alone.
        momentum_placement (`str`, defaults to `"post_rope"`): shear after the rotary embedding (`"post_rope"`, as
            published) or before it (`"pre_rope"`).
        kwargs: every field of `LlamaConfig`.

    Raises:
        ValueError: `momentum_gamma` is not finite or does not hold one number per layer; a size is below 1; a dropout
            is not a probability; an epsilon or RoPE base is not a finite number above 0; head counts do not divide;
            `head_dim` is odd; a stream, placement, activation or RoPE type is unknown.

    Example:

    ```python
    >>> from modeling_prism import MomentumConfig, MomentumForCausalLM

    >>> config = MomentumConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    >>> round(config.momentum_gamma, 3)
    1.495
    >>> model = MomentumForCausalLM(config)
    ```"""

    model_type = "momentum"
    mark: ClassVar[str] = "momentum_gamma"
    opens: ClassVar[tuple[str, ...]] = ("llama",)
    followed_fields: ClassVar[tuple[str, ...]] = ("momentum_gamma",)

    momentum_gamma: float | int | list[float | int] | None = checked(
        is_gamma, "must be a finite number, or a list of them (0 is plain Llama, None the published law)", default=None
    )
    momentum_streams: str = one_of(("qk", "k", "q"), default="qk")
    momentum_placement: str = one_of(("post_rope", "pre_rope"), default="post_rope")

    # Llama's fields and defaults, with conditions.
    vocab_size: int = at_least(1, default=32000)
    hidden_size: int = at_least(1, default=4096)
    intermediate_size: int = at_least(1, default=11008)
    num_hidden_layers: int = at_least(1, default=32)
    num_attention_heads: int = at_least(1, default=32)
    num_key_value_heads: int | None = at_least(1, default=None)
    head_dim: int | None = at_least(1, default=None)
    max_position_embeddings: int = at_least(1, default=2048)
    hidden_act: str = activation(default="silu")
    attention_dropout: int | float | None = probability(default=0.0)
    initializer_range: float = not_negative(default=0.02)
    rms_norm_eps: float | int = positive(default=1e-6)

    def __post_init__(self, **kwargs):
        # A property, below.
        kwargs.pop("layer_types", None)
        self.resolve_gamma()
        super().__post_init__(**kwargs)

    def resolve_gamma(self):
        """Replaces a `momentum_gamma` of None with the published law (arXiv 2602.04902)."""
        if self.momentum_gamma is None:
            self.momentum_gamma = 4.17 * self.num_hidden_layers**-0.74

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        for name in ("rope_theta", "rope_scaling"):
            if name in kwargs:
                raise ValueError(f"`{name}` does not change a saved config: give all of `rope_parameters`.")
        return super().from_dict(config_dict, **kwargs)

    @property
    def layer_gammas(self) -> list[float]:
        """gamma of each layer."""
        if isinstance(self.momentum_gamma, list):
            return self.momentum_gamma
        return [self.momentum_gamma] * self.num_hidden_layers

    @property
    def layer_types(self) -> list[str]:
        """What a cache holds for each layer: keys and values and, where gamma is not 0, the previous token's state."""
        return ["full_attention" if gamma == 0 else "previous_token" for gamma in self.layer_gammas]

    def validate_layer_type(self):
        """Accepts "previous_token", which transformers does not list."""

    def validate_architecture(self):
        """Checks how the fields fit together. Raises `ValueError`."""
        super().validate_architecture()
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"`num_key_value_heads`={self.num_key_value_heads} must divide `num_attention_heads`="
                f"{self.num_attention_heads}; leave it out for as many key heads as query heads."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(
                f"`head_dim`={self.head_dim} is odd and cannot be rotated in pairs; choose an even `head_dim`, or "
                "leave it out and choose `hidden_size` and `num_attention_heads` so that their quotient is even."
            )
        rope_type, theta = (self.rope_parameters.get(name) for name in ("rope_type", "rope_theta"))
        if rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(
                f"`rope_type` in `rope_parameters` must be one of default, {', '.join(ROPE_INIT_FUNCTIONS)}, got "
                f"{rope_type!r}."
            )
        if not (isinstance(theta, float | int) and math.isfinite(theta) and theta > 0):
            raise ValueError(f"`rope_theta` in `rope_parameters` must be a finite number above 0, got {theta!r}.")
        try:
            self.validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        factor = self.rope_parameters.get("factor", 1.0)
        if not (isinstance(factor, float | int) and math.isfinite(factor) and factor > 0):
            raise ValueError(f"`factor` in `rope_parameters` must be a finite number above 0, got {factor!r}.")
        if factor != 1 and rope_type == "default":
            raise ValueError(
                f"`factor`={factor} in `rope_parameters` has no effect with `rope_type`='default': choose another "
                "`rope_type`, such as 'linear'."
            )
        if len(self.layer_gammas) != self.num_hidden_layers:
            raise ValueError(
                f"`momentum_gamma` holds {len(self.layer_gammas)} numbers for `num_hidden_layers`="
                f"{self.num_hidden_layers}: give one number, or one per layer."
            )


__all__ = ["MomentumConfig"]
