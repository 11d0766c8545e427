"""What the families share: saving with the code, the two heads, the start of a forward pass, learned positions."""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaPreTrainedModel
from transformers.utils.import_utils import is_tracing


class CommonPreTrainedModel(LlamaPreTrainedModel):
    """
    Llama's flags, and saving with the code. A family states `config`, `config_class`, `_no_split_modules` and
    `_can_record_outputs`; its classes are called after its configuration, its files after its `model_type`.
    """

    def save_pretrained(self, save_directory, **kwargs):
        # Whatever head is saved, every Auto class finds its class there with `trust_remote_code=True`.
        family, name = self.config_class.model_type, self.config_class.__name__.removesuffix("Config")
        self.config.auto_map = {
            "AutoConfig": f"configuration_{family}.{name}Config",
            "AutoModel": f"modeling_{family}.{name}Model",
            "AutoModelForCausalLM": f"modeling_{family}.{name}ForCausalLM",
            "AutoModelForSequenceClassification": f"modeling_{family}.{name}ForSequenceClassification",
        }
        super().save_pretrained(save_directory, **kwargs)

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings (B, S, d) of whichever of the two is given. Raises `ValueError` unless exactly one is."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


class CommonForCausalLM(LlamaForCausalLM):
    """A language-model head on `base_class`; `forward` is that of `LlamaForCausalLM`."""

    _auto_class = "AutoModelForCausalLM"
    base_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig):
        PreTrainedModel.__init__(self, config)
        self.model = self.base_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = self.make_head(config)
        self.post_init()

    def make_head(self, config: PreTrainedConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class CommonForSequenceClassification(GenericForSequenceClassification):
    """A linear classification head on `base_class`; it reads the last token that is not padding."""

    _auto_class = "AutoModelForSequenceClassification"
    base_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig):
        # Not the parent's, which looks for the base model among the Auto classes: remote code is not registered there.
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = self.base_class(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()


def learned_positions(
    config: PreTrainedConfig,
    position_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    past_key_values: Cache | None,
) -> torch.Tensor:
    """
    Positions (B or 1, S) in a learned table; without `position_ids` they go on from the cache.

    Raises:
        ValueError: a position lies beyond the table. Traced positions are not checked: that would break the graph.
    """
    length = inputs_embeds.shape[1]
    if position_ids is None:
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        position_ids = (torch.arange(length, device=inputs_embeds.device) + past)[None]
        last = length - 1 + (past if isinstance(past, int) else 0)
    else:
        last = 0 if is_tracing(position_ids) or position_ids.is_meta else int(position_ids.max())
    if last >= config.max_position_embeddings:
        raise ValueError(
            f"Position {last} lies beyond the learned position table of `max_position_embeddings`="
            f"{config.max_position_embeddings}: shorten the sequence (positions count from 0), or train a model with "
            "a longer table."
        )
    return position_ids
