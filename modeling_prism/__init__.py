"""White-box attention architectures for transformers. Importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .configuration_prism import PrismConfig
from .modeling_prism import (
    PrismForCausalLM,
    PrismForSequenceClassification,
    PrismModel,
    PrismPreTrainedModel,
)


AutoConfig.register("prism", PrismConfig)
AutoModel.register(PrismConfig, PrismModel)
AutoModelForCausalLM.register(PrismConfig, PrismForCausalLM)
AutoModelForSequenceClassification.register(PrismConfig, PrismForSequenceClassification)

__all__ = [
    "PrismConfig",
    "PrismForCausalLM",
    "PrismForSequenceClassification",
    "PrismModel",
    "PrismPreTrainedModel",
]
