"""What the configurations of all families refuse: each field carries its own condition, checked whenever it is set."""

import difflib
import math
import weakref
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import dataclasses as hub
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN


def checked(holds: Callable[[Any], bool], requirement: str, default: Any) -> Any:
    """A dataclass field whose values other than None must satisfy `holds`; `requirement` completes the message."""
    return field(default=default, metadata={"holds": holds, "requirement": requirement})


def at_least(least: int, default: int | None) -> Any:
    return checked(lambda value: value >= least, f"must be at least {least}", default)


def probability(default: float) -> Any:
    return checked(lambda value: 0 <= value <= 1, "is a probability, from 0 to 1", default)


def positive(default: float) -> Any:
    return checked(lambda value: math.isfinite(value) and value > 0, "must be a finite number above 0", default)


def not_negative(default: float) -> Any:
    return checked(lambda value: math.isfinite(value) and value >= 0, "must be a finite number of at least 0", default)


def one_of(known: tuple[str, ...], default: str) -> Any:
    return checked(lambda value: value in known, f"must be one of {', '.join(known)}", default)


def activation(default: str) -> Any:
    known = "must be an activation that transformers knows, such as gelu, relu, silu or tanh"
    return checked(lambda value: value in ACT2FN, known, default)


WRITTEN_BY_TRANSFORMERS = ("auto_map", "quantization_config", "torch_dtype")
ARGUMENTS_OF_LOADING = (
    *("attn_implementation", "code_revision", "experts_implementation", "name_or_path", "return_unused_kwargs"),
    *("torch_dtype", "trust_remote_code"),
    # Of weights, from callers that hand one set of arguments to a config and to its model.
    *("device_map", "low_cpu_mem_usage", "max_memory", "offload_folder", "use_safetensors", "variant"),
    "tqdm_class",
    # `AutoTokenizer` hands on its own.
    *("add_bos_token", "add_eos_token", "add_prefix_space", "model_max_length", "padding_side", "truncation_side"),
    *("bos_token", "eos_token", "pad_token", "unk_token", "use_fast"),
)


def strict(config_class: type) -> type:
    """`huggingface_hub`'s check of types; a value of a wrong type raises `ValueError`, too."""
    config_class = hub.strict(config_class)
    set_checked = config_class.__setattr__

    def set_attribute(self, name: str, value: Any):
        try:
            set_checked(self, name, value)
        except StrictDataclassFieldValidationError:
            kind = config_class.__dataclass_fields__[name].type
            kind = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"`{name}` must be of type {kind}, got {value!r}.") from None

    config_class.__setattr__ = set_attribute
    return config_class


class CheckedConfig:
    """
    Goes before `PreTrainedConfig` among the bases of a configuration. Every refusal is a plain `ValueError`.

    A field that a model was built from cannot change any more: the model would compute with the old value and be
    saved with the new one. `followed_fields` are handed on to the model instead; `free_fields` are read where needed.
    """

    # Saves the configuration's file beside config.json, where `trust_remote_code=True` looks for it.
    _auto_class: ClassVar[str | None] = "AutoConfig"
    # A field of every folder that the family saves: other architectures use the same `model_type`.
    mark: ClassVar[str]
    # Model types whose folders the family opens, too.
    opens: ClassVar[tuple[str, ...]] = ()
    followed_fields: ClassVar[tuple[str, ...]] = ()
    free_fields: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "max_position_embeddings", "initializer_range", "use_cache"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp"),
        *(declared.name for declared in fields(PreTrainedConfig)),
    )
    # What other architectures call the fields.
    names_elsewhere: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("n_embd", "d_model", "dim"), "hidden_size"),
        **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
        **dict.fromkeys(("n_head", "n_heads", "num_heads"), "num_attention_heads"),
        **dict.fromkeys(("n_inner", "d_ff", "ffn_dim"), "intermediate_size"),
        **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), "max_position_embeddings"),
        **dict.fromkeys(("activation_function", "hidden_activation"), "hidden_act"),
        **dict.fromkeys(("dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout_prob"), "hidden_dropout"),
        **dict.fromkeys(("attn_pdrop", "attention_probs_dropout_prob"), "attention_dropout"),
        **dict.fromkeys(("gamma",), "momentum_gamma"),
        **dict.fromkeys(("tau",), "logit_scale"),
        **dict.fromkeys(("lambda", "lambda_", "lam", "noise_lambda", "noise_weight"), "noise_coefficient"),
    }

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # A saved configuration, which names its version, may hold what other tools wrote.
        if self.transformers_version is None:
            for name in kwargs:
                # transformers drops settings of `generate`.
                is_ignored = name in vars(self) or hasattr(GenerationConfig(), name)
                if is_ignored and not self.knows(name) and name not in WRITTEN_BY_TRANSFORMERS:
                    raise ValueError(f"`{name}` is not a field of {type(self).__name__}.")
        # `@strict` calls this too, but wraps the error in a type of its own.
        self.validate_architecture()

    def __setattr__(self, name: str, value: Any):
        # A tool that writes the value of a field under a name of its own, too, misleads nobody.
        if name not in self.names_elsewhere or value != getattr(self, self.names_elsewhere[name], None):
            self.check_name(name)
        self.check_field(name, value)
        models = self.attached_models() if name in type(self).__dataclass_fields__ else []
        free = (*self.free_fields, *self.followed_fields)
        if name == "max_position_embeddings" and any(hasattr(model, "embed_positions") for model in models):
            free = ()
        if models and name not in free and value != getattr(self, name):
            raise ValueError(
                f"`{name}` cannot change: a model was built with {getattr(self, name)!r}. Load its weights with "
                f"`from_pretrained(folder, {name}={value!r})`, or build a new model from "
                f"`{type(self).__name__}.from_dict({{**config.to_dict(), {name!r}: {value!r}}})`."
            )
        before = getattr(self, name, None)
        super().__setattr__(name, value)
        if models and name in self.followed_fields:
            try:
                self.validate_architecture()
            except ValueError:
                super().__setattr__(name, before)
                raise
            for model in models:
                model.follow_config(name, value)

    @classmethod
    def knows(cls, name: str) -> bool:
        return name.startswith("_") or hasattr(cls, name) or name in cls.__dataclass_fields__

    @classmethod
    def check_name(cls, name: str):
        """Raises `ValueError` if `name` is no field but looks like one, or is what another architecture calls one."""
        if name in cls.__dataclass_fields__ or (cls.knows(name) and name not in cls.names_elsewhere):
            return
        meant = [field for field in [cls.names_elsewhere.get(name)] if field is not None]
        if not meant and not hasattr(cls, name):
            meant = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1, cutoff=0.85)
            # Not of fields that all configurations have: `tp_plan` is an argument of loading.
            own = [field for field in cls.__dataclass_fields__ if field not in PreTrainedConfig.__dataclass_fields__]
            parts = [field for field in own if field.startswith(name) or field.endswith(name)]
            meant = meant or parts[: len(name) > 4]
        if meant and (meant[0] in cls.__dataclass_fields__ or " " in meant[0]):
            raise ValueError(f"`{name}` is not a field of {cls.__name__}: did you mean `{meant[0]}`?")

    @classmethod
    def check_field(cls, name: str, value: Any, shown_as: str | None = None):
        """Raises `ValueError` if the field `name` cannot hold `value`; the message calls it `shown_as`."""
        declared = cls.__dataclass_fields__.get(name)
        condition = {} if declared is None else declared.metadata
        if value is not None and "holds" in condition and not condition["holds"](value):
            raise ValueError(f"`{shown_as or name}` {condition['requirement']}, got {value!r}.")

    def attach(self, model: Any):
        """Notes that `model` was built from this configuration."""
        vars(self)["_models"] = [weakref.ref(known) for known in (*self.attached_models(), model)]

    def attached_models(self) -> list[Any]:
        models = (reference() for reference in vars(self).get("_models", ()))
        return [model for model in models if model is not None and model.config is self]

    def __getstate__(self) -> dict:
        # A copy has no models.
        return {name: value for name, value in vars(self).items() if name != "_models"}

    def _remove_keys_not_serialized(self, d: dict):
        super()._remove_keys_not_serialized(d)
        d.pop("_models", None)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, *cls.opens):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type `{found}`, but {cls.__name__} opens only "
                f"{' and '.join((cls.model_type, *cls.opens))}."
            )
        marked = {cls.mark: None} if found in cls.opens else {}
        return {**marked, **config_dict, "model_type": cls.model_type}, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        for name in kwargs:
            # transformers ignores them.
            if name in ARGUMENTS_OF_LOADING:
                continue
            cls.check_name(name)
            if not (kwargs.get("return_unused_kwargs") or cls.knows(name)):
                raise ValueError(f"`{name}` is not a field of {cls.__name__}.")
        foreign = [name for name in config_dict if not cls.knows(name) and name not in WRITTEN_BY_TRANSFORMERS]
        if foreign and cls.mark not in config_dict and config_dict.get("model_type") == cls.model_type:
            raise ValueError(
                f"A configuration of type `{cls.model_type}` that has `{foreign[0]}`, but not `{cls.mark}`, belongs "
                "to another architecture: load it in a program that does not import modeling_prism."
            )
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        # A model saves its files first. A configuration that is saved alone names its own file alone.
        named, files = getattr(self, "auto_map", None), {path.stem for path in Path(save_directory).glob("*.py")}
        if named is not None:
            self.auto_map = {
                name: place for name, place in named.items() if "--" in place or place.partition(".")[0] in files
            }
        super().save_pretrained(save_directory, **kwargs)
        if named is not None:
            self.auto_map = named
