"""
Trains a causal language model from a recipe with the stock `Trainer`.

```bash
python -m training.pretrain configuration/recipes/quickstart.yaml
python -m training.pretrain configuration/recipes/tinystories_50m.yaml --learning_rate 3e-4 --output_dir outputs/mine
accelerate launch --config_file configuration/accelerate/ddp.yaml -m training.pretrain RECIPE
```

Command-line options after the recipe override it. The same command resumes a stopped run from its last complete
checkpoint. On a CPU, the resumed run uses as many threads as before and ends with the same weights, bit for bit.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import shutil
import sys
import time
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    get_scheduler,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks

import modeling_prism  # noqa: F401  (registers the architectures)
from modeling_prism import PrismConfig
from training.callbacks import (
    NOISE_COEFFICIENT_END,
    NOISE_COEFFICIENT_START,
    LossCallback,
    NoiseCoefficientCallback,
    SampleStoryCallback,
    ThroughputCallback,
)
from training.command import CommandParser, TrainingDiverged, run, suggest
from training.data import DataArguments, load_data
from training.files import name_only, read_json, write_json
from training.flops import training_flops_per_token
from training.loading import check_causal, load_causal_lm
from training.metrics import language_modeling_metrics, score_tokens
from training.model_card import code_revision, render_model_card
from training.resume import (
    RESULTS_FILE,
    begin_run,
    check_output_dir,
    describe_run,
    find_checkpoint,
    remove_checkpoints,
    seal_checkpoint,
    threads_of_run,
)
from training.tasks import Blocks


logger = logging.getLogger(__name__)


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
        default=None, metadata={"help": "Changes to the config, 'key=value,key=value'."}
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
    **dict.fromkeys(("dataloader_num_workers", "sample_max_new_tokens"), (0, math.inf)),
    # numpy takes no others.
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
}


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` and the options that this command adds."""

    noise_coefficient_start: float | None = field(
        default=None,
        metadata={
            "help": f"Prism's lambda at the first step. Default: {NOISE_COEFFICIENT_START}, or the trained model's."
        },
    )
    noise_coefficient_end: float | None = field(
        default=None,
        metadata={
            "help": f"Prism's lambda at the last step. Default: {NOISE_COEFFICIENT_END}, or the trained model's."
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
        for name in ("logging_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be above 0 and finite, got {value}.")
        if self.include_num_input_tokens_seen is not True:
            raise ValueError(
                f"`include_num_input_tokens_seen`={self.include_num_input_tokens_seen!r} would leave the results "
                "without the number of tokens: leave it out."
            )
        if self.remove_unused_columns is not False:
            raise ValueError(
                f"`remove_unused_columns`={self.remove_unused_columns!r} would drop `shift_labels`, without which a "
                "lookup table trains on wrong labels: leave it out."
            )
        super().__post_init__()
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


class PretrainTrainer(Trainer):
    """
    The stock `Trainer`, except that

    - saved and pushed folders get the project's model card, and logs record lambda;
    - a run whose loss, weights or evaluation are not finite stops, without saving them;
    - checkpoints carry checksums, and resumed logs continue as if the run had not stopped.

    Args:
        blocks (`Blocks`): the data.
        card (`dict`): arguments of `render_model_card` beyond the model, the data and the state of the run.
    """

    def __init__(self, *args, blocks: Blocks, card: dict, **kwargs):
        super().__init__(*args, train_dataset=blocks.train, eval_dataset=blocks.validation, **kwargs)
        self.blocks, self.card = blocks, card
        # `Trainer` would remove older checkpoints before the new one is complete, and folders with similar names.
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        losses = LossCallback()
        losses.trainer = self
        self.add_callback(losses)

    def get_decay_parameter_names(self, model) -> list[str]:
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            self._stop_diverged(f"the loss is {loss.item()}", self.state.global_step + 1)
        return loss

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        name = f"eval_{self.blocks.metrics['nats_per_token']}"
        if not math.isfinite(output.metrics[name]):
            self._stop_diverged(f"`{name}` is {output.metrics[name]}", self.state.global_step)
        return output

    def check_weights(self) -> None:
        """Raises `TrainingDiverged` if a weight is not finite."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._stop_diverged(f"`{name}` is not finite", self.state.global_step)

    def _stop_diverged(self, what: str, step: int) -> None:
        args = self.args
        causes = [f"`learning_rate`={args.learning_rate:g} is too high"]
        causes += ["there is no warm-up (`warmup_steps`=0)"] * (not args.warmup_steps)
        causes += ["gradients are not clipped (`max_grad_norm`=0)"] * (not args.max_grad_norm)
        causes += ["16-bit floats overflow"] * (args.fp16 or args.bf16)
        raise TrainingDiverged(
            f"Training diverged at step {step}: {what}. Likely causes: {', or '.join(causes)}. "
            f"{kept_in(Path(args.output_dir)) or 'No checkpoint was saved.'}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if hasattr(self.model.config, "noise_coefficient"):
            logs["noise_coefficient"] = self.model.config.noise_coefficient
        if "train_loss" in logs:
            # Over the whole run, not over the steps since a resume.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        # Logs become JSON, which has no infinity: an untrained model may have an infinite perplexity.
        finite = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in logs.items()
        }
        super().log(finite, start_time)

    def last_evaluation(self) -> dict[str, float]:
        """The last evaluation: its `step` (`None` without an evaluation) and its metrics by name."""
        names = self.blocks.metrics.values()
        evaluation = next((log for log in reversed(self.state.log_history) if "eval_runtime" in log), {})
        return {"step": evaluation.get("step"), **{name: evaluation[f"eval_{name}"] for name in names if evaluation}}

    def _save_checkpoint(self, model, trial):
        self.check_weights()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder, step = Path(self.args.output_dir), self.state.global_step
            seal_checkpoint(folder / f"checkpoint-{step}")
            best = self.state.best_global_step if self.state.best_model_checkpoint else None
            remove_checkpoints(folder, self.save_total_limit, {step, best})

    def _issue_warnings_after_load(self, load_result):
        tied = set(self.model.all_tied_weights_keys or ())
        missing, unexpected = set(load_result.missing_keys) - tied, load_result.unexpected_keys
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint holds another model (missing {sorted(missing)}, unexpected {unexpected})."
            )

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        self.create_model_card(output_dir=output_dir)

    def create_model_card(self, *args, output_dir: str | None = None, **kwargs):
        """Writes README.md beside the weights."""
        metrics = self.last_evaluation()
        name = self.hub_model_id if self.args.push_to_hub else self.args.output_dir
        card = render_model_card(
            self.model,
            repo_id=name_only(name),
            step=self.state.global_step,
            tokens_seen=self.state.num_input_tokens_seen,
            evaluated_at=metrics.pop("step"),
            metrics=metrics,
            data=self.blocks.card,
            **self.card,
        )
        card.save(Path(output_dir or self.args.output_dir, "README.md"))

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # `Trainer` pushes weights and config from here. The config names model files, which must be there too.
        for file in (*Path(checkpoint_folder).glob("*.py"), Path(checkpoint_folder, "README.md")):
            shutil.copy(file, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def finish(self, state: TrainerState) -> None:
        """Ends a run whose state is that of its last step, as `train` ends it."""
        self.state = state
        self._memory_tracker.start()
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=self.args.device), 0.0
        self._initial_global_step = self._globalstep_last_logged = state.global_step
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.control.should_training_stop = True
        self._finalize_training(None, 0, time.time())


def kept_in(output_dir: Path) -> str | None:
    """Says which checkpoint a stopped run can resume from, if there is one."""
    steps = [int(file.parent.name.partition("-")[2]) for file in output_dir.glob("checkpoint-*/checksums.json")]
    return f"Kept: {output_dir / f'checkpoint-{max(steps)}'}." if steps else None


@contextlib.contextmanager
def explaining_an_interrupt(trainer: Trainer) -> Iterator[None]:
    """Adds to Ctrl-C what was kept, in two lines."""
    try:
        yield
    except KeyboardInterrupt:
        kept = kept_in(Path(trainer.args.output_dir))
        raise KeyboardInterrupt(
            f"Interrupted after step {trainer.state.global_step}. {kept or 'Nothing was kept: no checkpoint yet.'}\n"
            f"The same command {'continues the run from there' if kept else 'starts the run again'}."
        ) from None


ARGUMENTS = (ModelArguments, DataArguments, PretrainArguments)
# Options that a reader of a card looks for even if they have their default.
SHOWN_DEFAULTS = (
    *("dataset_name", "block_size", "train_fraction", "modulus", "tokenizer_vocab_size", "max_steps", "seed"),
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PretrainArguments]:
    """Reads an optional recipe, the first argument, and options that override it. Refuses unknown keys."""
    parser = CommandParser(ARGUMENTS, prog="python -m training.pretrain")
    if argv and not argv[0].startswith("-"):
        recipe_file, *argv = argv
        parser.set_defaults(**read_recipe(recipe_file))
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


def load_config(arguments: ModelArguments, vocab_size: int | None = None) -> PreTrainedConfig:
    """
    Reads the config of the model and applies the overrides.

    Args:
        vocab_size (`int`, *optional*): number of tokens if the data decide it. A new model gets as many, unless an
            override sets another number.
    """
    if bool(arguments.model_config) == bool(arguments.init_from):
        raise ValueError(
            "Give either `model_config` (train from scratch) or `init_from` (fine-tune; empty the recipe's "
            "`model_config` with `--model_config ''`)."
        )
    option = "model_config" if arguments.model_config else "init_from"
    source = getattr(arguments, option)
    try:
        config = AutoConfig.from_pretrained(source)
    # A damaged config.json raises all kinds of errors.
    except Exception as error:
        raise ValueError(
            f"`{option}`={source!r} is neither a folder with a config.json nor an available hub model "
            f"({(str(error) or type(error).__name__).strip().splitlines()[0]}); the project's presets are in "
            "configuration/models/."
        ) from error
    text = arguments.config_overrides or ""
    is_fixed = bool(arguments.init_from) or "vocab_size" in parse_overrides(text)
    if vocab_size not in (None, config.vocab_size) and not is_fixed:
        logger.info("Using `vocab_size`=%d, as many tokens as the data have, not %d.", vocab_size, config.vocab_size)
        text = f"vocab_size={vocab_size},{text}"
    return override_config(config, source, text)


def override_config(config: PreTrainedConfig, source: str, text: str) -> PreTrainedConfig:
    """Returns the config read from `source` with the overrides in `text`, 'key=value,key=value'."""
    overrides = parse_overrides(text)
    for key in overrides:
        if not hasattr(config, key):
            raise ValueError(f"`config_overrides` names `{key}`, which a {config.model_type} config does not have.")
    if overrides:
        # Start from the file again, so that derived values follow the overrides.
        values, _ = PreTrainedConfig.get_config_dict(source)
        config = AutoConfig.for_model(**{**values, **overrides})
    return config


def parse_overrides(text: str) -> dict:
    """Parses 'key=value,key=value'. Values are numbers, true, false, null, or text."""
    overrides = {}
    for entry in filter(None, text.split(",")):
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"`config_overrides`={text!r} has {entry!r}, which is not of the form key=value.")
        value = yaml.safe_load(value)
        # YAML reads 1e-2, without a point, as text.
        with contextlib.suppress(TypeError, ValueError):
            value = float(value) if isinstance(value, str) else value
        overrides[key.strip()] = value
    return overrides


def check_sizes(config: PreTrainedConfig, vocab_size: int | None, block_size: int) -> None:
    """Refuses blocks and vocabularies that do not fit the model; a `vocab_size` of `None` is not known yet."""
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise ValueError(
            f"The data have {vocab_size} tokens, but the model has only `vocab_size`={config.vocab_size}: train a new "
            f"model with `--config_overrides vocab_size={vocab_size}`, or lower `tokenizer_vocab_size` if the "
            "tokenizer is trained on text."
        )
    # Some architectures have no such limit.
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and block_size > limit:
        raise ValueError(
            f"`block_size`={block_size} is longer than the model's `max_position_embeddings`={limit}: shorten the "
            f"blocks, or `--config_overrides max_position_embeddings={block_size}`."
        )


def build_model(
    arguments: ModelArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, blocks: Blocks
) -> PreTrainedModel:
    """Builds or loads the model; its configs and the tokenizer get special tokens and lengths that fit each other."""
    options = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if arguments.init_from:
        model = load_causal_lm(arguments.init_from, "init_from", config=config, **options)
    else:
        model = AutoModelForCausalLM.from_config(config, **options)
        check_causal(model, "model_config")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    length = getattr(config, "max_position_embeddings", None)
    if length:
        tokenizer.model_max_length = length
        model.generation_config.max_length = length
    if blocks.label_shift == 0:
        # Behind the answer there is nothing.
        model.generation_config.max_length, model.generation_config.max_new_tokens = None, 1
    return model


def main(argv: list[str] | None = None) -> dict[str, float | int | str]:
    """Trains, evaluates and saves one model; returns the closing table, which results.json holds too."""
    argv = sys.argv[1:] if argv is None else argv
    model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)

    check_combination(model_arguments, data_arguments, training_arguments)
    config = load_config(model_arguments, data_arguments.vocab_size)
    tokenizer_name = model_arguments.init_from or data_arguments.tokenizer_name
    known_vocab_size = data_arguments.vocab_size or (None if tokenizer_name else data_arguments.tokenizer_vocab_size)
    check_sizes(config, known_vocab_size, data_arguments.block_size)
    output_dir = Path(training_arguments.output_dir)
    description = describe_run(model_arguments, data_arguments, training_arguments, config)

    # Processes share folders, on a cluster through a file system that all machines see.
    with training_arguments.main_process_first(local=False, desc="reading and tokenising the corpus"):
        check_output_dir(output_dir, description)
        if (output_dir / RESULTS_FILE).is_file():
            result = read_json(output_dir / RESULTS_FILE)
            logger.info("%s holds this run, finished.", output_dir)
            print_table(result)
            return result
        checkpoint = find_checkpoint(output_dir, training_arguments.resume_from_checkpoint, config)
        tokenizer_name = checkpoint or tokenizer_name
        # The main process has just saved the tokenizer that it trained.
        if tokenizer_name is None and not training_arguments.should_save and output_dir.is_dir():
            tokenizer_name = str(output_dir)
        tokenizer, blocks = load_data(data_arguments, training_arguments.seed, tokenizer_name)
        check_sizes(config, blocks.vocab_size, data_arguments.block_size)
        if training_arguments.label_smoothing_factor and blocks.label_shift != 1:
            raise ValueError(
                "`label_smoothing_factor` shifts labels, but those of a lookup table are in place: omit it."
            )
        unused = config.vocab_size - blocks.vocab_size
        if unused and training_arguments.should_log:
            logger.warning(
                "The model has `vocab_size`=%d, but the tokenizer has %d tokens: %d rows are never used.",
                *(config.vocab_size, blocks.vocab_size, unused),
            )
        model = build_model(model_arguments, config, tokenizer, blocks)
        if training_arguments.should_save:
            begin_run(output_dir, description, tokenizer)

    throughput = ThroughputCallback()
    if checkpoint:
        logger.info("%s: continuing from %s.", output_dir, Path(checkpoint).name)
        # The run has evaluated before its first step.
        training_arguments.eval_on_start = False
    trainer = PretrainTrainer(
        model=model,
        args=training_arguments,
        blocks=blocks,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=language_modeling_metrics(
            blocks.validation_bytes_per_token, blocks.label_shift, blocks.metrics
        ),
        preprocess_logits_for_metrics=functools.partial(score_tokens, shift=blocks.label_shift),
        callbacks=[throughput, *make_callbacks(model_arguments, training_arguments, model, tokenizer, blocks)],
        card={
            "init_from": model_arguments.init_from,
            "command": ["python", "-m", "training.pretrain", *argv],
            "recipe": options_that_mattered(description, blocks),
        },
    )
    threads = threads_of_run(Path(checkpoint).parent) if checkpoint else torch.get_num_threads()
    with cpu_threads(threads), explaining_an_interrupt(trainer):
        train(trainer, checkpoint)
        trainer.save_model()
        # This file may be pushed.
        trainer.state.best_model_checkpoint = name_only(trainer.state.best_model_checkpoint)
        trainer.save_state()

    metrics = trainer.last_evaluation()
    result = {
        "model": config.model_type,
        "parameters": model.num_parameters(),
        "training_flops_per_token": training_flops_per_token(config, data_arguments.block_size),
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "tokens_per_second": throughput.tokens_per_second(),
        **{name: metrics[name] for name in blocks.metrics.values()},
        "seed": training_arguments.seed,
        "revision": code_revision(),
        "saved_in": name_only(str(output_dir)),
    }
    if trainer.is_world_process_zero():
        write_json(output_dir / RESULTS_FILE, result)
        print_table(result)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return result


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Runs with `count` threads, because another number rounds sums differently."""
    before = torch.get_num_threads()
    if count != before:
        logger.info("Using %d CPU threads, as before, and not %d.", count, before)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def options_that_mattered(description: dict, blocks: Blocks) -> dict:
    """The settings of a run without those that concern other data, and without defaults that nobody asks about."""
    fields = {entry.name: entry for arguments in ARGUMENTS for entry in dataclasses.fields(arguments)}
    data_options = {entry.name for entry in dataclasses.fields(DataArguments)}
    # As JSON, like the description.
    config_defaults = json.loads(PreTrainedConfig().to_json_string(use_diff=False))
    shown = {}
    for name, value in description.items():
        is_default = name in fields and value == fields[name].default
        is_foreign = name in data_options and name not in blocks.card.options
        is_idle = name == "num_train_epochs" and description["max_steps"] > 0
        if not (is_foreign or is_idle or (is_default and name not in SHOWN_DEFAULTS)):
            shown[name] = value
    config = description["config"].items()
    shown["config"] = {name: value for name, value in config if (name, value) not in config_defaults.items()}
    return shown


def check_combination(model: ModelArguments, data: DataArguments, training: PretrainArguments) -> None:
    """Refuses, with a `ValueError`, options that contradict each other."""
    if model.init_from and data.tokenizer_name:
        raise ValueError("`tokenizer_name` is for a new model; with `init_from`, the model brings its tokenizer.")
    if data.streaming and training.max_steps <= 0:
        raise ValueError("`streaming` reads a corpus of unknown length: give `max_steps`.")
    if data.streaming and not (model.init_from or data.tokenizer_name or data.num_train_stories):
        raise ValueError(
            "`streaming` with a new tokenizer would read the whole stream to train it: give `tokenizer_name`, or "
            "`num_train_stories`."
        )


def make_callbacks(
    model_arguments: ModelArguments,
    training_arguments: PretrainArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
) -> list[TrainerCallback]:
    """Makes the callback for lambda, if the model has one, and the one for the story, if it can tell one."""
    callbacks = []
    if hasattr(model, "set_noise_coefficient"):
        # A fine-tuned model keeps its lambda by default.
        own = model.config.noise_coefficient if model_arguments.init_from else None
        defaults = (NOISE_COEFFICIENT_START, NOISE_COEFFICIENT_END) if own is None else (own, own)
        given = (training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end)
        schedule = (default if value is None else value for value, default in zip(given, defaults))
        callbacks.append(NoiseCoefficientCallback(*schedule))
    if training_arguments.sample_max_new_tokens > 0 and blocks.card.task == "text-generation":
        file = Path(training_arguments.output_dir, "samples.jsonl")
        prompt, length = training_arguments.sample_prompt, training_arguments.sample_max_new_tokens
        callbacks.append(SampleStoryCallback(tokenizer, prompt, length, file))
    return callbacks


def train(trainer: PretrainTrainer, checkpoint: str | None) -> None:
    """Trains to the end, from `checkpoint` if there is one, and evaluates. A last step's checkpoint is only loaded."""
    state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json"))) if checkpoint else None
    if state is None or state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    else:
        trained = type(trainer.model).from_pretrained(checkpoint)
        trainer.model.load_state_dict(trained.state_dict())
        if hasattr(trained, "set_noise_coefficient"):
            trainer.model.set_noise_coefficient(trained.config.noise_coefficient)
        trainer.finish(state)
    trainer.check_weights()
    if trainer.last_evaluation()["step"] != trainer.state.global_step:
        trainer.evaluate()


def print_table(result: dict[str, float | int | str]) -> None:
    """Prints the results of a run."""
    width = max(map(len, result))
    print("\n" + "-" * 60)
    for name, value in result.items():
        text = "unknown" if value is None else f"{value:,}" if isinstance(value, int) else value
        text = f"{value:,.0f}" if isinstance(value, float) and value > 100 else text
        text = f"{value:.4f}" if isinstance(value, float) and not value > 100 else text
        print(f"{name.replace('_', ' '):<{width}}  {text}")
    print("-" * 60, flush=True)


if __name__ == "__main__":
    run(main)
