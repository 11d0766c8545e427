"""Spherical model configuration."""

from typing import ClassVar

from transformers import PreTrainedConfig

from .configuration_checks import CheckedConfig, activation, at_least, one_of, positive, probability, strict


@strict
class SphericalConfig(CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of a Spherical model ("The Geometric Inductive Bias of Grokking: Bypassing Phase Transitions via
    Architectural Topology", Yildirim, arXiv 2603.05228). Sizes default to the published model.

    Args:
        vocab_size (`int`, defaults to 114): number of token embeddings (the residues of 113, and "=").
        hidden_size (`int`, defaults to 128): width d of the residual stream.
        intermediate_size (`int`, defaults to 512): width of the MLP's hidden layer.
        num_hidden_layers (`int`, defaults to 1): number of blocks.
        num_attention_heads (`int`, defaults to 4): number of heads, which must divide `hidden_size`.
        max_position_embeddings (`int`, defaults to 512): length of the learned position table, and so of the longest
            sequence (published: 3, the tokens of `a b =`).
        residual_norm (`str`, defaults to `"sphere"`): the norm of the residual stream, applied to the embeddings and
            after each sublayer's addition. `"sphere"` projects every vector to length 1; `"layer_norm"` and
            `"rms_norm"` are the baselines.
        norm_affine (`bool`, defaults to `True`): learn the gains (and biases) of `"layer_norm"` and `"rms_norm"`.
            With `False` they project to a sphere of radius sqrt(d). `"sphere"` learns nothing in either case.
        bounded_unembedding (`bool`, defaults to `True`): logits are `logit_scale` times the cosine between the
            residual vector and the token's row of the unembedding, whatever the norm. `False` is an ordinary linear
            layer; the published baselines combine it with `residual_norm="layer_norm"` or `"rms_norm"`.
        logit_scale (`float`, *optional*): tau, above 0, the bound of the bounded logits; 10 by default. It is 1 where
            logits are not bounded: `hidden @ lm_head.weight.T * logit_scale` gives the logits in every case.
        attention_routing (`str`, defaults to `"softmax"`): `"uniform"` replaces the attention scores with zeros, so
            that every token averages the values it may see. Queries and keys are then not computed and get no
            gradient.
        hidden_act (`str`, defaults to `"relu"`): activation of the MLP.
        attention_dropout (`float`, defaults to 0.0): dropout on the attention weights of `"softmax"` routing.
        hidden_dropout (`float`, defaults to 0.0): dropout on the embeddings and on each sublayer's output.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of `"layer_norm"` and `"rms_norm"`.
        tie_word_embeddings (`bool`, defaults to `False`): share the token embeddings with the language-model head.
        use_cache (`bool`, defaults to `True`): return keys and values or, with uniform routing, a running sum, for
            faster decoding.

    Raises:
        ValueError: a field is outside its interval or names no known option, sizes do not divide, or attention
            dropout meets uniform routing. Assigning such a value raises, too.

    Example:

    ```python
    >>> from modeling_prism import SphericalConfig, SphericalForCausalLM

    >>> SphericalForCausalLM(SphericalConfig(max_position_embeddings=3)).num_parameters()
    226816
    >>> config = SphericalConfig(vocab_size=4096, hidden_size=192, intermediate_size=480, num_hidden_layers=4)
    >>> model = SphericalForCausalLM(config)
    ```"""

    model_type = "spherical"
    mark: ClassVar[str] = "attention_routing"
    # The head reads it from here.
    free_fields: ClassVar[tuple[str, ...]] = (*CheckedConfig.free_fields, "logit_scale")
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embedding_norm": (["hidden_states"], ["hidden_states"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    }

    vocab_size: int = at_least(1, default=114)
    hidden_size: int = at_least(1, default=128)
    intermediate_size: int = at_least(1, default=512)
    num_hidden_layers: int = at_least(1, default=1)
    num_attention_heads: int = at_least(1, default=4)
    max_position_embeddings: int = at_least(1, default=512)
    residual_norm: str = one_of(("sphere", "layer_norm", "rms_norm"), default="sphere")
    norm_affine: bool = True
    bounded_unembedding: bool = True
    logit_scale: float | int | None = positive(default=None)
    attention_routing: str = one_of(("softmax", "uniform"), default="softmax")
    hidden_act: str = activation(default="relu")
    attention_dropout: float | int = probability(default=0.0)
    hidden_dropout: float | int = probability(default=0.0)
    layer_norm_eps: float | int = positive(default=1e-5)
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        # A property, below.
        kwargs.pop("layer_types", None)
        self.resolve_logit_scale()
        super().__post_init__(**kwargs)

    def resolve_logit_scale(self):
        """Fills in the default. Folders written before it depended on the head hold 10 for linear heads, too."""
        if self.logit_scale is None or (not self.bounded_unembedding and self.logit_scale == 10):
            self.logit_scale = 10.0 if self.bounded_unembedding else 1.0

    @property
    def layer_types(self) -> list[str]:
        """What a cache holds for each layer: keys and values or, with uniform routing, a running sum."""
        layer_type = "running_mean" if self.attention_routing == "uniform" else "full_attention"
        return [layer_type] * self.num_hidden_layers

    def validate_layer_type(self):
        """Accepts "running_mean", which transformers does not list."""

    def validate_architecture(self):
        """Checks how the fields fit together. Raises `ValueError`."""
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"`num_attention_heads`={self.num_attention_heads} must divide `hidden_size`={self.hidden_size}; "
                "change one of the two."
            )
        if not self.bounded_unembedding and self.logit_scale != 1:
            raise ValueError(
                f"`logit_scale`={self.logit_scale} has no effect with `bounded_unembedding=False`: leave it out."
            )
        if self.attention_routing == "uniform" and self.attention_dropout > 0:
            raise ValueError(
                f"`attention_dropout`={self.attention_dropout} has no effect: `attention_routing='uniform'` has no "
                "attention weights to drop. Set it to 0; `hidden_dropout` drops the attention's output."
            )


__all__ = ["SphericalConfig"]
