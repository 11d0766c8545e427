"""
The models in TransformerLens (`pip install transformer-lens`):

```python
>>> from modeling_prism.hooked import boot
>>> model = boot("hub_cards/prism-tinystories")
>>> logits, cache = model.run_with_cache("Once upon a time")
>>> cache["blocks.0.attn.hook_z"]  # (B, S, H, D), signal heads first
```

Every module runs its own `forward`, with hooks around its parts: queries, keys and values before positions and shear,
the heads' outputs, the residual stream. Patterns can be read; TransformerLens warns of a change to them, which has no
effect.

Shapes: B batch, S tokens, d width, H heads of width D.
"""

from importlib.util import find_spec
from typing import Any

import torch


if find_spec("transformer_lens") is None:
    raise ImportError("modeling_prism.hooked needs TransformerLens: pip install transformer-lens")

from transformer_lens.factories import architecture_adapter_factory as factory  # noqa: E402
from transformer_lens.hook_points import HookPoint  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter  # noqa: E402
from transformer_lens.model_bridge.generalized_components import (  # noqa: E402
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent  # noqa: E402
from transformer_lens.model_bridge.generalized_components.opaque_block import OpaqueBlockBridge  # noqa: E402
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter  # noqa: E402


class NativeAttention(AttentionBridge):
    """An attention module that computes by itself, with hooks on its projections."""

    def __init__(self, config: Any, submodules: dict[str, GeneralizedComponent]):
        super().__init__("self_attn", config, submodules=submodules, maintain_native_attention=True)


def projections() -> dict[str, GeneralizedComponent]:
    return {name: LinearBridge(name=f"{name}_proj") for name in "qkvo"}


class MomentumAdapter(LlamaArchitectureAdapter):
    def _build_attention_bridge(self) -> AttentionBridge:
        return NativeAttention(self.cfg, projections())


class DictionaryBridge(GeneralizedComponent):
    """Prism's dictionary, which runs twice: `hook_codes` is `U z` (B, S, H, D), `hook_z` the heads' outputs."""

    def __init__(self, config: Any):
        super().__init__("dictionary", config)
        self.hook_codes, self.hook_z = HookPoint(), HookPoint()

    def forward(self, states: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        heads = (self.config.n_heads, -1)
        if transposed:
            states = self.hook_z(states.unflatten(-1, heads)).flatten(-2)
            return self.hook_out(self.original_component(states, transposed=True))
        codes = self.original_component(self.hook_in(states))
        return self.hook_codes(codes.unflatten(-1, heads)).flatten(-2)


class PrismAttention(NativeAttention):
    hook_aliases = {**dict.fromkeys(("hook_q", "hook_k", "hook_v"), "u.hook_codes"), "hook_z": "u.hook_z"}
    property_aliases = {}


class PrismAdapter(ArchitectureAdapter):
    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.cfg.normalization_type, self.cfg.positional_embedding_type = "LN", "rotary"
        self.cfg.final_rms = self.cfg.gated_mlp = self.cfg.attn_only = False
        mlp = {"in": LinearBridge(name="up_proj"), "out": LinearBridge(name="down_proj")}
        block = {
            "ln1": NormalizationBridge(name="input_layernorm", config=self.cfg),
            "attn": PrismAttention(self.cfg, {"u": DictionaryBridge(self.cfg)}),
            "ln2": NormalizationBridge(name="post_attention_layernorm", config=self.cfg),
            "mlp": MLPBridge(name="mlp", submodules=mlp),
        }
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "blocks": BlockBridge(name="model.layers", submodules=block),
            "ln_final": NormalizationBridge(name="model.norm", config=self.cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }


class SphericalAdapter(ArchitectureAdapter):
    """Norms stand on the residual stream itself, after each addition: a block has hooks before and after them all."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.cfg.normalization_type, self.cfg.positional_embedding_type = "LN", "standard"
        self.cfg.final_rms = self.cfg.gated_mlp = self.cfg.attn_only = False
        mlp = {"in": LinearBridge(name="up_proj"), "out": LinearBridge(name="down_proj")}
        block = {"attn": NativeAttention(self.cfg, projections()), "mlp": MLPBridge(name="mlp", submodules=mlp)}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "pos_embed": PosEmbedBridge(name="model.embed_positions"),
            "blocks": OpaqueBlockBridge(name="model.layers", submodules=block),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }


ADAPTERS = {
    "MomentumForCausalLM": MomentumAdapter,
    "PrismForCausalLM": PrismAdapter,
    "SphericalForCausalLM": SphericalAdapter,
}
for architecture, adapter in ADAPTERS.items():
    factory.ArchitectureAdapterFactory.register_adapter(architecture, adapter)
# Where TransformerLens looks for the architecture of a config.
factory.SUPPORTED_ARCHITECTURES.update(ADAPTERS)


def boot(name: str, **options) -> TransformerBridge:
    """`TransformerBridge.boot_transformers` of a folder or a hub name; `options` are its own."""
    return TransformerBridge.boot_transformers(name, **options)
