"""What the families share: saving with the code, the heads, the start of a forward pass, learned positions."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaPreTrainedModel
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing


logger = logging.get_logger(__name__)

# Those of Llama.
HEADS = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
HEAD_WEIGHTS = ("lm_head.", "score.", "qa_outputs.")


class CommonPreTrainedModel(LlamaPreTrainedModel):
    """
    Llama's flags, and saving with the code. A family states `config`, `config_class`, `_no_split_modules` and
    `_can_record_outputs`; its classes are called after its configuration, its files after its `model_type`.
    """

    # The heads of a folder's other models.
    _keys_to_ignore_on_load_unexpected = [f"^{name}" for name in HEAD_WEIGHTS]

    def begin(self, config: PreTrainedConfig):
        """What every `__init__` begins with. Raises `ValueError` for the config of another architecture."""
        # Remote code has a copy of the class.
        of_family = getattr(config, "model_type", None) == self.config_class.model_type
        if not (of_family or isinstance(config, self.config_class)):
            raise ValueError(f"`config` must be a {self.config_class.__name__}, got a {type(config).__name__}.")
        PreTrainedModel.__init__(self, config)

    def save_pretrained(self, save_directory, **kwargs):
        # Whatever head is saved, every Auto class finds its class there with `trust_remote_code=True`.
        family, name = self.config_class.model_type, self.config_class.__name__.removesuffix("Config")
        self.config.auto_map = {
            "AutoConfig": f"configuration_{family}.{name}Config",
            "AutoModel": f"modeling_{family}.{name}Model",
            **{f"AutoModel{head}": f"modeling_{family}.{name}{head}" for head in HEADS},
        }
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As in transformers.

        Raises:
            ValueError: the folder holds the weights of another architecture.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = sorted(name for name in info["missing_keys"] if not name.startswith(HEAD_WEIGHTS))
        if missing and info["unexpected_keys"]:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not fit {cls.__name__}: it lacks {missing[0]} "
                f"({len(missing)} such) and holds {min(info['unexpected_keys'])}, which belongs elsewhere."
            )
        return (model, info) if output_loading_info else model

    def __setstate__(self, state: dict):
        # `copy.deepcopy` and `torch.load` come through here.
        super().__setstate__(state)
        self.config.attach(self)

    def embed(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        """Token embeddings (B, S, d) of the ids or embeddings; raises `ValueError` unless exactly one is given."""
        if past_key_values is not None and not hasattr(past_key_values, "get_seq_length"):
            raise ValueError(
                f"`past_key_values` must be a `Cache`, such as `DynamicCache(config=model.config)`, got a "
                f"{type(past_key_values).__name__}."
            )
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


class CommonForCausalLM(LlamaForCausalLM):
    """A language-model head on `base_class`; `forward` is that of `LlamaForCausalLM`."""

    _auto_class = "AutoModelForCausalLM"
    base_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig):
        self.begin(config)
        self.model = self.base_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = self.make_head(config)
        self.post_init()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # For label smoothing, `Trainer` shifts the labels of the classes that it finds here, and of no other.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__

    def load_state_dict(self, state_dict, *args, **kwargs):
        # A tied head is saved once; Trainer, which resumes through here, would report it missing.
        for tied, source in self.all_tied_weights_keys.items():
            if source in state_dict:
                state_dict = {tied: state_dict[source], **state_dict}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _prepare_generation_config(self, generation_config, **kwargs):
        # A saved folder holds a `max_length`. transformers would warn of it whenever `max_new_tokens` is given.
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        saved = (None, self.generation_config.max_length)
        is_saved = generation_config is None or generation_config.max_length in saved
        if prepared.max_new_tokens is not None and kwargs.get("max_length") is None and is_saved:
            prepared.max_length = None
        return prepared, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, batch_size, max_cache_length):
        # The step of `generate` that knows both positions and length. At the end of a learned position table it stops:
        # the model would raise, and the text would be lost.
        positions = model_kwargs.get("position_ids")
        if hasattr(self.model, "embed_positions") and positions is not None:
            room = max(self.config.max_position_embeddings - 1 - int(positions.max()), 1)
            surplus = max_cache_length + 1 - positions.shape[-1] - room
            if surplus > 0:
                logger.warning(
                    f"Generation stops after {room} tokens, where the position table of `max_position_embeddings`="
                    f"{self.config.max_position_embeddings} ends."
                )
                generation_config.max_length -= surplus
                max_cache_length -= surplus
        super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, batch_size, max_cache_length)

    def make_head(self, config: PreTrainedConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class BuiltOnBaseClass:
    """
    Builds what transformers' generic heads build, on `base_class`: they look for the base model among the Auto
    classes, where remote code is not registered. Goes before the generic head, which has the `forward`.
    """

    base_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig):
        self.begin(config)
        self.num_labels = config.num_labels
        self.model = self.base_class(config)
        self.make_head(config)
        self.post_init()


class CommonForSequenceClassification(BuiltOnBaseClass, GenericForSequenceClassification):
    """A linear classification head on `base_class`; it reads the last token that is not padding."""

    _auto_class = "AutoModelForSequenceClassification"

    def make_head(self, config: PreTrainedConfig):
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)


class CommonForTokenClassification(BuiltOnBaseClass, GenericForTokenClassification):
    """A linear classification head on `base_class`, for every token."""

    _auto_class = "AutoModelForTokenClassification"

    def make_head(self, config: PreTrainedConfig):
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout", 0.0))
        self.score = nn.Linear(config.hidden_size, config.num_labels)


class CommonForQuestionAnswering(BuiltOnBaseClass, GenericForQuestionAnswering):
    """A linear head on `base_class` that scores every token as start and as end of the answer."""

    _auto_class = "AutoModelForQuestionAnswering"

    def make_head(self, config: PreTrainedConfig):
        self.qa_outputs = nn.Linear(config.hidden_size, 2)


def lora_targets(model: PreTrainedModel) -> dict[str, list[str]]:
    """
    Arguments of `peft.LoraConfig` that adapt every weight matrix of the layers which the model uses; the head and the
    embeddings stay. PEFT's "all-linear" leaves out Prism's dictionary, which is not an `nn.Linear`.

    ```python
    >>> peft_model = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.0, **lora_targets(model)))
    ```
    """
    layers = model.base_model.layers
    linear = {name.rpartition(".")[2] for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    if getattr(model.config, "attention_routing", None) == "uniform":
        linear -= {"q_proj", "k_proj"}
    dictionary = ["self_attn.dictionary.weight"] if hasattr(layers[0].self_attn, "dictionary") else None
    return {"target_modules": sorted(linear), "target_parameters": dictionary}


class ReplacedStates:
    """
    States of width 1 (B, C, 1) that follow every change of a dynamic cache. Goes before a `LinearAttentionLayer`.

    transformers neither selects nor repeats such states, and overwrites them in place: a shallow copy of the layer,
    which shares the tensors, would change with the original.
    """

    def set_state(self, state_idx: int, state: torch.Tensor | None):
        # New dictionaries: a shallow copy shares the old ones.
        self.conv_states = {**self.conv_states, state_idx: state}
        self.has_previous_state = {**self.has_previous_state, state_idx: state is not None}
        self.is_conv_states_initialized = self.has_previous_state
        self.conv_kernel_size = {**self.conv_kernel_size, state_idx: 1}
        if state is not None:
            self.device, self.dtype = state.device, state.dtype

    def update_conv_state(self, conv_states: torch.Tensor, state_idx: int = 0, **kwargs) -> torch.Tensor:
        if not self.record_past:
            # Without the clone, this slice would keep a whole prompt in memory.
            conv_states = conv_states[..., -1:].clone()
        elif self.has_previous_state[state_idx]:
            conv_states = torch.cat((self.conv_states[state_idx], conv_states), dim=-1)
        self.set_state(state_idx, conv_states)
        return conv_states

    def map_states(self, change: Callable[[torch.Tensor], torch.Tensor]):
        for state_idx, state in self.conv_states.items():
            if self.has_previous_state[state_idx]:
                self.set_state(state_idx, change(state))

    def crop(self, tokens_to_remove: int):
        self.conv_states = dict(self.conv_states)
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor):
        self.conv_states = dict(self.conv_states)
        super().reorder_cache(beam_idx)

    def reset(self):
        super().reset()
        for state_idx in self.conv_states:
            self.set_state(state_idx, None)

    def batch_repeat_interleave(self, repeats: int):
        self.map_states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        self.map_states(lambda state: state[indices])


def read_mask(attention_mask, inputs_embeds: torch.Tensor, past_key_values: Cache | None):
    """
    Reads a padding mask (B, T or more) as Llama does: whatever is not 0 is a token, and columns beyond the T cached
    and new tokens do not count. A mask of four dimensions, None or what `generate` prepared stays as it is.

    Raises:
        ValueError: the mask has other dimensions, other than B rows, or less than T columns.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim == 4:
        return attention_mask
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` has {attention_mask.ndim} dimensions: pass a padding mask of two, (batch, tokens), or "
            "a prepared one of four."
        )
    batch_size, length = inputs_embeds.shape[:2]
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    if not is_tracing(attention_mask) and not attention_mask.is_meta:
        if attention_mask.shape[0] != batch_size:
            raise ValueError(f"`attention_mask` has {attention_mask.shape[0]} rows for a batch of {batch_size}.")
        if past + length > attention_mask.shape[1]:
            raise ValueError(
                f"`attention_mask` has {attention_mask.shape[1]} columns for {int(past)} cached and {length} new "
                "tokens: it must cover them all."
            )
    if isinstance(past, int):
        attention_mask = attention_mask[:, : past + length]
    return attention_mask.to(device=inputs_embeds.device, dtype=torch.bool)


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
