"""
Trains a causal language model from a recipe with the stock `Trainer`.

```bash
python -m training.pretrain configuration/recipes/quickstart.yaml
python -m training.pretrain configuration/recipes/tinystories_50m.yaml --learning_rate 3e-4 --output_dir outputs/mine
accelerate launch --config_file configuration/accelerate/ddp.yaml -m training.pretrain RECIPE
```

Command-line options after the recipe override it. The same command resumes a stopped run from its last complete
checkpoint.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import modeling_prism  # noqa: F401  (registers the architectures)
from modeling_prism import PrismConfig
from training.callbacks import (
    NOISE_COEFFICIENT_END,
    NOISE_COEFFICIENT_START,
    NoiseCoefficientCallback,
    SampleStoryCallback,
    ThroughputCallback,
)
from training.data import DataArguments, load_data
from training.flops import training_flops_per_token
from training.metrics import language_modeling_metrics, score_tokens
from training.model_card import code_revision, render_model_card
from training.resume import (
    begin_run,
    check_checkpoint,
    check_output_dir,
    describe_run,
    last_complete_checkpoint,
    write_json,
)
from training.tasks import CardFacts


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
        if not isinstance(self.max_steps, int) or self.max_steps == 0 or self.num_train_epochs <= 0:
            raise ValueError(
                f"`max_steps`={self.max_steps} with `num_train_epochs`={self.num_train_epochs} trains nothing: give a "
                "positive integer number of steps, or -1 and a positive number of epochs."
            )
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
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


class PretrainTrainer(Trainer):
    """
    The stock `Trainer`. Saved and pushed folders get the project's model card, and logs record lambda.

    Args:
        card (`dict`): arguments of `render_model_card` beyond the model and the state of the run.
    """

    def __init__(self, *args, card: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.card = card

    def get_decay_parameter_names(self, model) -> list[str]:
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if hasattr(self.model.config, "noise_coefficient"):
            logs["noise_coefficient"] = self.model.config.noise_coefficient
        super().log(logs, start_time)

    def last_evaluation(self) -> dict[str, float]:
        """The last evaluation: its `step` (`None` without an evaluation) and its metrics by name."""
        evaluation = next((log for log in reversed(self.state.log_history) if f"eval_{METRICS[0]}" in log), {})
        return {"step": evaluation.get("step"), **{name: evaluation[f"eval_{name}"] for name in METRICS if evaluation}}

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        self.create_model_card(output_dir=output_dir)

    def create_model_card(self, *args, output_dir: str | None = None, **kwargs):
        """Writes README.md beside the weights."""
        metrics = self.last_evaluation()
        name = self.hub_model_id if self.args.push_to_hub else self.args.output_dir
        card = render_model_card(
            self.model,
            repo_id=name if not Path(name).is_absolute() else Path(name).name,
            step=self.state.global_step,
            tokens_seen=self.state.num_input_tokens_seen,
            evaluated_at=metrics.pop("step"),
            metrics=metrics,
            **self.card,
        )
        card.save(Path(output_dir or self.args.output_dir, "README.md"))

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # `Trainer` pushes weights and config from here. The config names model files, which must be there too.
        for file in (*Path(checkpoint_folder).glob("*.py"), Path(checkpoint_folder, "README.md")):
            shutil.copy(file, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)


METRICS = ("nats_per_token", "perplexity", "bits_per_byte", "next_token_accuracy")
RESULTS_FILE = "results.json"
ARGUMENTS = (ModelArguments, DataArguments, PretrainArguments)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PretrainArguments]:
    """Reads an optional recipe, the first argument, and options that override it. Refuses unknown keys."""
    parser = HfArgumentParser(ARGUMENTS, prog="python -m training.pretrain", allow_abbrev=False)
    if argv and not argv[0].startswith("-"):
        recipe_file, *argv = argv
        if not Path(recipe_file).is_file():
            raise ValueError(
                f"There is no recipe {recipe_file!r}; the project's recipes are in configuration/recipes/."
            )
        try:
            recipe = yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"The recipe {recipe_file!r} is not valid YAML: {error}") from None
        if not isinstance(recipe, dict):
            raise ValueError(f"The recipe {recipe_file!r} must consist of `key: value` lines, one per option.")
        known = {entry.name for arguments in ARGUMENTS for entry in dataclasses.fields(arguments) if entry.init}
        for key in recipe.keys() - known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "`--help` lists the options."
            raise ValueError(f"{recipe_file} has an unknown key `{key}`: {hint}")
        parser.set_defaults(**recipe)
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


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
    except OSError as error:
        raise ValueError(
            f"`{option}`={source!r} is neither a folder with a config.json nor an available hub model "
            f"({str(error).splitlines()[0]}); the project's presets are in configuration/models/."
        ) from None
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
    arguments: ModelArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Builds or loads the model and sets the tokenizer's special tokens in its configs."""
    options = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if arguments.init_from:
        model = AutoModelForCausalLM.from_pretrained(arguments.init_from, config=config, **options)
    else:
        model = AutoModelForCausalLM.from_config(config, **options)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
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
    run = describe_run(model_arguments, data_arguments, training_arguments, config)

    # Processes share folders, on a cluster through a file system that all machines see.
    with training_arguments.main_process_first(local=False, desc="reading and tokenising the corpus"):
        check_output_dir(output_dir, run)
        if (output_dir / RESULTS_FILE).is_file():
            result = json.loads((output_dir / RESULTS_FILE).read_text(encoding="utf-8"))
            logger.info("%s holds this run, finished.", output_dir)
            print_table(result)
            return result
        checkpoint = training_arguments.resume_from_checkpoint or last_complete_checkpoint(output_dir)
        if checkpoint:
            check_checkpoint(checkpoint, config)
        tokenizer_name = checkpoint or tokenizer_name
        # The main process has just saved the tokenizer that it trained.
        if tokenizer_name is None and not training_arguments.should_save and output_dir.is_dir():
            tokenizer_name = str(output_dir)
        tokenizer, blocks = load_data(data_arguments, training_arguments.seed, tokenizer_name)
        check_sizes(config, blocks.vocab_size, data_arguments.block_size)
        unused = config.vocab_size - blocks.vocab_size
        if unused and training_arguments.should_log:
            logger.warning(
                "The model has `vocab_size`=%d, but the tokenizer has %d tokens: %d rows are never used.",
                *(config.vocab_size, blocks.vocab_size, unused),
            )
        model = build_model(model_arguments, config, tokenizer)
        if training_arguments.should_save:
            begin_run(output_dir, run, tokenizer)

    throughput = ThroughputCallback()
    callbacks = make_callbacks(model_arguments, training_arguments, model, tokenizer, blocks.card)
    trainer = PretrainTrainer(
        model=model,
        args=training_arguments,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=language_modeling_metrics(blocks.validation_bytes_per_token, blocks.label_shift),
        preprocess_logits_for_metrics=functools.partial(score_tokens, shift=blocks.label_shift),
        callbacks=[throughput, *callbacks],
        card={
            "data": blocks.card,
            "init_from": model_arguments.init_from,
            "command": ["python", "-m", "training.pretrain", *argv],
            "recipe": run,
        },
    )
    train(trainer, checkpoint)
    if trainer.last_evaluation()["step"] != trainer.state.global_step:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    metrics = trainer.last_evaluation()
    result = {
        "model": config.model_type,
        "parameters": model.num_parameters(),
        "training_flops_per_token": training_flops_per_token(config, data_arguments.block_size),
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "tokens_per_second": throughput.tokens_per_second(),
        **{name: metrics[name] for name in METRICS},
        "seed": training_arguments.seed,
        "revision": code_revision(),
        "saved_in": str(output_dir),
    }
    if trainer.is_world_process_zero():
        write_json(output_dir / RESULTS_FILE, result)
        print_table(result)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return result


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
    card: CardFacts,
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
    if training_arguments.sample_max_new_tokens > 0 and card.task == "text-generation":
        file = Path(training_arguments.output_dir, "samples.jsonl")
        prompt, length = training_arguments.sample_prompt, training_arguments.sample_max_new_tokens
        callbacks.append(SampleStoryCallback(tokenizer, prompt, length, file))
    return callbacks


def train(trainer: Trainer, checkpoint: str | None) -> None:
    """Trains to the end, from `checkpoint` if there is one. A checkpoint of the last step is only loaded."""
    state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json"))) if checkpoint else None
    if state is None or state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    trained = type(trainer.model).from_pretrained(checkpoint)
    trainer.model.load_state_dict(trained.state_dict())
    if hasattr(trained, "set_noise_coefficient"):
        trainer.model.set_noise_coefficient(trained.config.noise_coefficient)
    trainer.state = state
    trainer.control.should_training_stop = True


def print_table(result: dict[str, float | int | str]) -> None:
    """Prints the results of a run."""
    width = max(map(len, result))
    print("\n" + "-" * 60)
    for name, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else value
        text = f"{value:,.0f}" if isinstance(value, float) and value > 100 else text
        text = f"{value:.4f}" if isinstance(value, float) and not value > 100 else text
        print(f"{name.replace('_', ' '):<{width}}  {text}")
    print("-" * 60, flush=True)


if __name__ == "__main__":
    main()
