"""White-box attention architectures for transformers. Importing this package registers them with the Auto classes."""

import transformers

from .configuration_momentum import MomentumConfig
from .configuration_prism import PrismConfig
from .configuration_spherical import SphericalConfig
from .modeling_common import HEADS, lora_targets
from .modeling_momentum import (
    MomentumForCausalLM,
    MomentumForQuestionAnswering,
    MomentumForSequenceClassification,
    MomentumForTokenClassification,
    MomentumModel,
    MomentumPreTrainedModel,
)
from .modeling_prism import (
    PrismForCausalLM,
    PrismForQuestionAnswering,
    PrismForSequenceClassification,
    PrismForTokenClassification,
    PrismModel,
    PrismPreTrainedModel,
)
from .modeling_spherical import (
    SphericalForCausalLM,
    SphericalForQuestionAnswering,
    SphericalForSequenceClassification,
    SphericalForTokenClassification,
    SphericalModel,
    SphericalPreTrainedModel,
)


__version__ = "0.1.0"

for config_class in (PrismConfig, MomentumConfig, SphericalConfig):
    name = config_class.__name__.removesuffix("Config")
    transformers.AutoConfig.register(config_class.model_type, config_class)
    transformers.AutoModel.register(config_class, globals()[f"{name}Model"])
    for head in HEADS:
        auto_class = getattr(transformers, f"AutoModel{head}")
        auto_class.register(config_class, globals()[f"{name}{head}"])

__all__ = [
    "MomentumConfig",
    "MomentumForCausalLM",
    "MomentumForQuestionAnswering",
    "MomentumForSequenceClassification",
    "MomentumForTokenClassification",
    "MomentumModel",
    "MomentumPreTrainedModel",
    "PrismConfig",
    "PrismForCausalLM",
    "PrismForQuestionAnswering",
    "PrismForSequenceClassification",
    "PrismForTokenClassification",
    "PrismModel",
    "PrismPreTrainedModel",
    "SphericalConfig",
    "SphericalForCausalLM",
    "SphericalForQuestionAnswering",
    "SphericalForSequenceClassification",
    "SphericalForTokenClassification",
    "SphericalModel",
    "SphericalPreTrainedModel",
    "lora_targets",
]
