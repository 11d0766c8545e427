"""What the configurations of all families refuse: each field carries its own condition, checked whenever it is set."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

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


class CheckedConfig:
    """Goes before `PreTrainedConfig` among the bases of a configuration. Every refusal is a plain `ValueError`."""

    # Saves the configuration's file beside config.json, where `trust_remote_code=True` looks for it.
    _auto_class: ClassVar[str | None] = "AutoConfig"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # `@strict` calls this too, but wraps the error in a type of its own.
        self.validate_architecture()

    def __setattr__(self, name: str, value: Any):
        self.check_field(name, value)
        super().__setattr__(name, value)

    @classmethod
    def check_field(cls, name: str, value: Any, shown_as: str | None = None):
        """Raises `ValueError` if the field `name` cannot hold `value`; the message calls it `shown_as`."""
        declared = cls.__dataclass_fields__.get(name)
        condition = {} if declared is None else declared.metadata
        if value is not None and "holds" in condition and not condition["holds"](value):
            raise ValueError(f"`{shown_as or name}` {condition['requirement']}, got {value!r}.")
