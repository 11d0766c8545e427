"""Momentum model configuration."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.models.llama.configuration_llama import LlamaConfig


@strict
class MomentumConfig(LlamaConfig):
    r"""
    Configuration of a Momentum model ("Momentum Attention: The Physics of In-Context Learning and Spectral Forensics
    for Mechanistic Interpretability", Maitra, arXiv 2602.04902): a `LlamaConfig` with three fields more. The config of
    any Llama folder is one.

    Args:
        momentum_gamma (`float` or `list[float]`, *optional*): gamma, how much of the difference to the previous token
            is added to queries and keys: one number, or one for each layer. 0 is plain Llama. Default: the published
            law `4.17 * num_hidden_layers ** -0.74`, resolved here, so that a saved config holds the number.
        momentum_streams (`str`, defaults to `"qk"`): what is sheared: `"qk"` queries and keys (as published), `"k"`
            keys alone, `"q"` queries alone.
        momentum_placement (`str`, defaults to `"post_rope"`): shear after the rotary embedding (`"post_rope"`, as
            published) or before it (`"pre_rope"`).
        kwargs: every field of `LlamaConfig`.

    Raises:
        ValueError: a `momentum_gamma` that is not finite or has not one number a layer, an unknown `momentum_streams`
            or `momentum_placement`, head counts that do not divide, an unknown activation, or an epsilon that is not
            a finite number above 0.

    Example:

    ```python
    >>> from modeling_prism import MomentumConfig, MomentumForCausalLM

    >>> config = MomentumConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    >>> round(config.momentum_gamma, 3)
    1.495
    >>> model = MomentumForCausalLM(config)
    ```"""

    model_type = "momentum"
    # Saving a config saves this file beside it, so that `trust_remote_code=True` finds the class.
    _auto_class: ClassVar[str | None] = "AutoConfig"

    momentum_gamma: float | int | list[float | int] | None = None
    momentum_streams: str = "qk"
    momentum_placement: str = "post_rope"
    # Llama's, but whole numbers reach the check below.
    rms_norm_eps: float | int = 1e-6

    def __post_init__(self, **kwargs):
        # Derived from gamma, below.
        kwargs.pop("layer_types", None)
        self.resolve_gamma()
        super().__post_init__(**kwargs)
        # `@strict` would call it too, but wrap what it raises; from here users get a plain ValueError.
        self.validate_architecture()

    def resolve_gamma(self):
        """Replaces a `momentum_gamma` of None by the published law (arXiv 2602.04902)."""
        if self.momentum_gamma is None and self.num_hidden_layers > 0:
            self.momentum_gamma = 4.17 * self.num_hidden_layers**-0.74

    @property
    def layer_gammas(self) -> list[float]:
        """gamma of each layer."""
        if isinstance(self.momentum_gamma, list):
            return self.momentum_gamma
        return [self.momentum_gamma] * self.num_hidden_layers

    @property
    def layer_types(self) -> list[str]:
        """What a cache holds for each layer: keys and values and, where gamma is not 0, the previous token's state."""
        return ["full_attention" if gamma == 0 else "hybrid" for gamma in self.layer_gammas]

    def validate_architecture(self):
        """Checks what no field's type can say. Raises `ValueError`."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        super().validate_architecture()
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                "`hidden_act` must be an activation that transformers knows, such as gelu, relu, silu or tanh, got "
                f"{self.hidden_act!r}."
            )
        if not (math.isfinite(self.rms_norm_eps) and self.rms_norm_eps > 0):
            raise ValueError(f"`rms_norm_eps` must be a finite number above 0, got {self.rms_norm_eps}.")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"`num_key_value_heads`={self.num_key_value_heads} must divide `num_attention_heads`="
                f"{self.num_attention_heads}; leave it out for as many key as query heads."
            )
        gammas = self.layer_gammas
        if not all(isinstance(gamma, float | int) and math.isfinite(gamma) for gamma in gammas):
            raise ValueError(
                f"`momentum_gamma` must be a finite number, or a list of them, got {self.momentum_gamma}; 0 is plain "
                "Llama, None the published law."
            )
        if len(gammas) != self.num_hidden_layers:
            raise ValueError(
                f"`momentum_gamma` holds {len(gammas)} numbers for `num_hidden_layers`={self.num_hidden_layers}: give "
                "one number, or one for each layer."
            )
        for name, known in (("momentum_streams", ("qk", "k", "q")), ("momentum_placement", ("post_rope", "pre_rope"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")


__all__ = ["MomentumConfig"]
