"""The options of `training.pretrain`: of the model, the data and the run, from a recipe and the command line."""

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import trainer_log_levels

from modeling_prism import PrismConfig
from training.callbacks import NOISE_COEFFICIENT_END, NOISE_COEFFICIENT_START
from training.command import CommandParser, suggest
from training.data import DataArguments
from training.files import name_only
from training.tasks import Blocks


@dataclass
class ModelArguments:
    """Options for the model."""

    model_config: str | None = field(
        default=None, metadata={"help": "Folder or hub name with a config.json: train a new model."}
    )
    init_from: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a model to fine-tune, with its tokenizer."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to the config, 'key=value,key=[value,value]'."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "'eager', 'sdpa', 'flash_attention_2' or 'flex_attention'."}
    )


# Least value of an option, and the value that it must stay below.
INTERVALS = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, math.inf)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), (0, math.inf)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, 1)),
    **dict.fromkeys(("dataloader_num_workers", "sample_max_new_tokens", "save_total_limit"), (0, math.inf)),
    "neftune_noise_alpha": (0, math.inf),
    # numpy takes no others.
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
}

# Values that options must keep, and what any other would do.
NEEDED = {
    "include_num_input_tokens_seen": (True, "leave the results without the number of tokens"),
    "remove_unused_columns": (False, "drop `shift_labels`, without which a lookup table trains on wrong labels"),
    "prediction_loss_only": (False, "leave the results without metrics"),
    "eval_do_concat_batches": (True, "give the metrics batches that they do not read"),
    "batch_eval_metrics": (False, "give the metrics batches that they do not read"),
}


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` and the options that this command adds."""

    noise_coefficient_start: float | None = field(
        default=None,
        metadata={
            "help": f"Prism's lambda at the first step. Default: {NOISE_COEFFICIENT_START}, or the lambda of "
            "`init_from`, or of a config that sets another."
        },
    )
    noise_coefficient_end: float | None = field(
        default=None,
        metadata={
            "help": f"Prism's lambda at the last step. Default: {NOISE_COEFFICIENT_END}, or the lambda of "
            "`init_from`, or of a config that sets another."
        },
    )
    decay_all_parameters: bool = field(
        default=False,
        metadata={"help": "Apply weight decay to norms, biases and embeddings too, as published for grokking."},
    )
    sample_prompt: str = field(
        default="Once upon a time", metadata={"help": "Start of the story told at every evaluation."}
    )
    sample_max_new_tokens: int = field(
        default=150, metadata={"help": "Length of that story in tokens; 0 for no story."}
    )
    include_num_input_tokens_seen: bool = field(
        default=True, metadata={"help": "Must stay true: the results report the number of tokens."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the model reads every column of a block."}
    )

    def __post_init__(self):
        for name in ("noise_coefficient_start", "noise_coefficient_end"):
            if getattr(self, name) is not None:
                PrismConfig.check_field("noise_coefficient", getattr(self, name), shown_as=name)
        has_epochs = 0 < self.num_train_epochs < math.inf
        if self.max_steps < -1 or self.max_steps == 0 or (self.max_steps == -1 and not has_epochs):
            raise ValueError(
                f"`max_steps`={self.max_steps} with `num_train_epochs`={self.num_train_epochs} trains nothing: give a "
                "positive integer number of steps, or -1 and a positive number of epochs."
            )
        for name, (least, most) in INTERVALS.items():
            value = getattr(self, name)
            # Not a number is in no interval.
            if value is not None and not (least <= value < most):
                limits = f"at least {least} and " + ("finite" if most == math.inf else f"below {most}")
                raise ValueError(f"`{name}` must be {limits}, got {value}.")
        for name in ("log_level", "log_level_replica"):
            if getattr(self, name) not in trainer_log_levels:
                raise ValueError(f"`{name}`={getattr(self, name)!r} must be one of {', '.join(trainer_log_levels)}.")
        for name in ("logging_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be above 0 and finite, got {value}.")
        for name, (needed, consequence) in NEEDED.items():
            if getattr(self, name) is not needed:
                raise ValueError(f"`{name}`={getattr(self, name)!r} would {consequence}: leave it out.")
        try:
            super().__post_init__()
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.doc!r}, the value of an option that takes JSON, is not valid: {error}") from None
        # Of `accelerator_config` and its kin.
        except TypeError as error:
            raise ValueError(f"An option that takes JSON has a wrong entry: {error}") from None
        self._check_extensions()

    def _check_extensions(self):
        """Refuses names that `Trainer` would refuse at the first step."""
        try:
            get_scheduler(
                self.lr_scheduler_type,
                optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0),
                num_warmup_steps=0,
                num_training_steps=1,
                scheduler_specific_kwargs=dict(self.lr_scheduler_kwargs or {}),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`lr_scheduler_type`={str(self.lr_scheduler_type.value)!r} with `lr_scheduler_kwargs`="
                f"{self.lr_scheduler_kwargs} is not a schedule: {error}"
            ) from None
        try:
            for callback in get_reporting_integration_callbacks(self.report_to):
                callback()
        except (ImportError, RuntimeError, ValueError) as error:
            raise ValueError(f"`report_to`={self.report_to}: {error}") from None

    def to_dict(self) -> dict:
        # Loggers write this into files that may be published.
        return {name: _without_paths(value) for name, value in super().to_dict().items()}

    def __getstate__(self) -> dict:
        # `Trainer` saves this as training_args.bin beside every model, and pushes it.
        state = {name: _without_paths(value) for name, value in self.__dict__.items()}
        return {**state, "hub_token": None}


def _without_paths(value):
    return [name_only(entry) for entry in value] if isinstance(value, list) else name_only(value)


ARGUMENTS = (ModelArguments, DataArguments, PretrainArguments)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PretrainArguments]:
    """Reads an optional recipe, the first argument, and options that override it. Refuses unknown keys."""
    parser = CommandParser(ARGUMENTS, prog="python -m training.pretrain")
    if argv and not argv[0].startswith("-"):
        recipe_file, *argv = argv
        recipe = read_recipe(recipe_file)
        # Of two options that exclude each other, that of the command line wins.
        given = {word.partition("=")[0].replace("-", "_") for word in argv}
        for option, other in itertools.permutations(("model_config", "init_from")):
            if f"__{option}" in given and f"__{other}" not in given:
                recipe.pop(other, None)
        parser.set_defaults(**recipe)
    return parser.parse(argv)


def read_recipe(file: str) -> dict:
    """Reads a recipe; raises `ValueError` for what is not one, for unknown keys and for values of a wrong type."""
    if not Path(file).is_file():
        raise ValueError(f"There is no recipe {file!r}; the project's recipes are in configuration/recipes/.")
    try:
        recipe = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {file!r} is not valid YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {file!r} must consist of `key: value` lines, one per option.")
    known = {}
    for arguments in ARGUMENTS:
        hints = typing.get_type_hints(arguments)
        known |= {entry.name: hints[entry.name] for entry in dataclasses.fields(arguments) if entry.init}
    for key, value in recipe.items():
        if key not in known:
            raise ValueError(f"{file} has an unknown key `{key}`: {suggest(key, known)}")
        allowed = set(_plain_types(known[key]))
        # The parser converts text, as on the command line, and refuses what it cannot convert.
        if type(value) not in allowed | ({int} if float in allowed else set()) | {str}:
            wanted = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in allowed))
            hint = " Write `no` in quotes." if value is False else ""
            raise ValueError(f"{file}: `{key}` must be {wanted}, got {value!r} ({type(value).__name__}).{hint}")
    return recipe


def _plain_types(hint) -> Iterator[type]:
    """The types of YAML that a type hint allows."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _plain_types(part)
    else:
        kind = typing.get_origin(hint) or hint
        yield kind if kind in (bool, int, float, str, list, dict, type(None)) else str


def check_combination(model: ModelArguments, data: DataArguments, training: PretrainArguments) -> None:
    """Refuses, with a `ValueError`, options that contradict each other."""
    if model.init_from and data.tokenizer_name:
        raise ValueError("`tokenizer_name` is for a new model; with `init_from`, the model brings its tokenizer.")
    if training.save_strategy == "best" and training.metric_for_best_model is None:
        raise ValueError("`save_strategy`='best' needs `metric_for_best_model`, for example `loss`.")
    if data.streaming and training.max_steps <= 0:
        raise ValueError("`streaming` reads a corpus of unknown length: give `max_steps`.")
    if data.streaming and not (model.init_from or data.tokenizer_name or data.num_train_stories):
        raise ValueError(
            "`streaming` with a new tokenizer would read the whole stream to train it: give `tokenizer_name`, or "
            "`num_train_stories`."
        )


def check_blocks(training: PretrainArguments, blocks: Blocks) -> None:
    """Refuses, with a `ValueError`, options that contradict the data."""
    if training.label_smoothing_factor and blocks.label_shift != 1:
        raise ValueError("`label_smoothing_factor` shifts labels, but those of a lookup table are in place: omit it.")
    best, known = training.metric_for_best_model, ("loss", *blocks.metrics.values())
    if best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(f"`metric_for_best_model`={best!r} is not evaluated: choose one of {', '.join(known)}.")
