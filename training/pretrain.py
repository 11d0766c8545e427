"""
Trains a causal language model from a recipe, with the stock `Trainer`.

```bash
python -m training.pretrain configuration/recipes/quickstart.yaml
python -m training.pretrain configuration/recipes/tinystories_50m.yaml --learning_rate 3e-4 --output_dir outputs/mine
accelerate launch --config_file configuration/accelerate/ddp.yaml -m training.pretrain RECIPE
```

Any option of the recipe can be given again on the command line, where it wins. A stopped run goes on from its last
complete checkpoint when the same command is given again.
"""

import dataclasses
import difflib
import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import modeling_prism  # noqa: F401  (registers the architectures)
from modeling_prism.configuration_prism import validate_noise_coefficient
from training.callbacks import NoiseCoefficientCallback, SampleStoryCallback, ThroughputCallback
from training.data import DataArguments, load_texts, load_tokenizer, make_blocks, train_tokenizer
from training.flops import training_flops_per_token
from training.metrics import language_modeling_metrics, score_tokens
from training.model_card import code_revision, render_model_card
from training.resume import check_checkpoint, check_output_dir, describe_run, last_complete_checkpoint, save_run


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Which model."""

    model_config: str | None = field(
        default=None, metadata={"help": "Folder or hub name with a config.json: train this model from scratch."}
    )
    init_from: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a trained model: fine-tune it with its tokenizer."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to the config, 'key=value,key=value'."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "'eager', 'sdpa', 'flash_attention_2' or 'flex_attention'. Default: the best."}
    )


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` and what this command adds to them."""

    noise_coefficient_start: float = field(default=0.01, metadata={"help": "Prism's lambda at the first step."})
    noise_coefficient_end: float = field(default=0.10, metadata={"help": "Prism's lambda at the last step."})
    sample_prompt: str = field(
        default="Once upon a time", metadata={"help": "Beginning of the story told at every evaluation."}
    )
    sample_max_new_tokens: int = field(default=150, metadata={"help": "Length of that story in tokens; 0: none."})

    def __post_init__(self):
        validate_noise_coefficient(self.noise_coefficient_start)
        validate_noise_coefficient(self.noise_coefficient_end)
        super().__post_init__()


class PretrainTrainer(Trainer):
    """
    The stock `Trainer`, but whatever it saves or pushes carries the project's model card.

    Args:
        card (`dict`): what `render_model_card` needs beyond the model and the state of the run.
    """

    def __init__(self, *args, card: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.card = card

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        self.create_model_card(output_dir=output_dir)

    def create_model_card(self, *args, output_dir: str | None = None, **kwargs):
        """Writes README.md beside the weights, with the results of the last evaluation so far."""
        evaluation = next((log for log in reversed(self.state.log_history) if "eval_bits_per_byte" in log), None)
        metrics = {name: evaluation[f"eval_{name}"] for name in METRICS} if evaluation else {}
        card = render_model_card(self.model, step=self.state.global_step, metrics=metrics, **self.card)
        card.save(Path(output_dir or self.args.output_dir, "README.md"))


METRICS = ("nats_per_token", "perplexity", "bits_per_byte", "next_token_accuracy")
RESULTS_FILE = "results.json"
ARGUMENTS = (ModelArguments, DataArguments, PretrainArguments)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PretrainArguments]:
    """Reads a recipe (first argument, optional) and command-line options, which win. Unknown keys are refused."""
    parser = HfArgumentParser(ARGUMENTS, prog="python -m training.pretrain", allow_abbrev=False)
    if argv and not argv[0].startswith("-"):
        recipe_file, *argv = argv
        if not Path(recipe_file).is_file():
            raise ValueError(
                f"There is no recipe {recipe_file!r}; those of the project are in configuration/recipes/."
            )
        recipe = yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8")) or {}
        known = {entry.name for arguments in ARGUMENTS for entry in dataclasses.fields(arguments) if entry.init}
        for key in recipe.keys() - known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "`--help` lists the options."
            raise ValueError(f"{recipe_file} has an unknown key `{key}`: {hint}")
        parser.set_defaults(**recipe)
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def load_config(arguments: ModelArguments) -> PreTrainedConfig:
    """Reads the config of the model to train and applies the overrides."""
    if bool(arguments.model_config) == bool(arguments.init_from):
        raise ValueError(
            "Give either `model_config` (train from scratch) or `init_from` (fine-tune; empty the recipe's "
            "`model_config` with `--model_config ''`)."
        )
    config = AutoConfig.from_pretrained(arguments.model_config or arguments.init_from)
    overrides = yaml.safe_load("{" + (arguments.config_overrides or "").replace("=", ": ") + "}")
    for key in overrides:
        if not hasattr(config, key):
            raise ValueError(f"`config_overrides` names `{key}`, which a {config.model_type} config does not have.")
    if overrides:
        # From the file again, so that values derived from the overridden ones are derived anew.
        values, _ = PreTrainedConfig.get_config_dict(arguments.model_config or arguments.init_from)
        config = AutoConfig.for_model(**{**values, **overrides})
    return config


def check_sizes(config: PreTrainedConfig, tokenizer_size: int, block_size: int) -> None:
    """Refuses blocks or vocabularies that the model cannot hold."""
    if tokenizer_size > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer_size} tokens but the model only `vocab_size`={config.vocab_size}: choose "
            f"`tokenizer_vocab_size` at most {config.vocab_size}, or `--config_overrides vocab_size={tokenizer_size}`."
        )
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"`block_size`={block_size} is longer than the model's `max_position_embeddings`="
            f"{config.max_position_embeddings}: shorten the blocks, or `--config_overrides "
            f"max_position_embeddings={block_size}`."
        )


def build_model(
    arguments: ModelArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Builds or loads the model and gives it the tokenizer's special tokens."""
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


def get_tokenizer(
    model_arguments: ModelArguments, data_arguments: DataArguments, output_dir: Path, texts: DatasetDict
) -> PreTrainedTokenizerBase:
    """The tokenizer of this run if it has begun before, of the model to fine-tune, the one named, or a new one."""
    if (output_dir / "tokenizer.json").is_file():
        return load_tokenizer(str(output_dir))
    if model_arguments.init_from or data_arguments.tokenizer_name:
        return load_tokenizer(model_arguments.init_from or data_arguments.tokenizer_name)
    return train_tokenizer(texts["train"], data_arguments.tokenizer_vocab_size)


def main(argv: list[str] | None = None) -> dict[str, float | int | str]:
    """Trains, evaluates and saves one model; returns the closing table, which is also saved as results.json."""
    argv = sys.argv[1:] if argv is None else argv
    model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)

    config = load_config(model_arguments)
    if model_arguments.init_from is None and data_arguments.tokenizer_name is None:
        check_sizes(config, data_arguments.tokenizer_vocab_size, data_arguments.block_size)
    if data_arguments.streaming and training_arguments.max_steps <= 0:
        raise ValueError("`streaming` reads a corpus whose length is not known before: give `max_steps`.")
    output_dir = Path(training_arguments.output_dir)
    recipe = describe_run(model_arguments, data_arguments, training_arguments, config)

    with training_arguments.main_process_first(desc="reading and tokenising the corpus"):
        check_output_dir(output_dir, recipe)
        if (output_dir / RESULTS_FILE).is_file():
            result = json.loads((output_dir / RESULTS_FILE).read_text(encoding="utf-8"))
            logger.info("%s holds this run, finished.", output_dir)
            print_table(result)
            return result
        checkpoint = training_arguments.resume_from_checkpoint or last_complete_checkpoint(output_dir)
        if checkpoint:
            check_checkpoint(checkpoint, config)
        texts = load_texts(data_arguments)
        tokenizer = get_tokenizer(model_arguments, data_arguments, output_dir, texts)
        check_sizes(config, len(tokenizer), data_arguments.block_size)
        blocks = make_blocks(texts, tokenizer, data_arguments)
        if training_arguments.should_save:
            save_run(output_dir, recipe)
            tokenizer.save_pretrained(output_dir)

    model = build_model(model_arguments, config, tokenizer)
    tokens_a_step = recipe["global_batch_size"] * data_arguments.block_size
    throughput = ThroughputCallback(tokens_a_step)
    callbacks = [throughput]
    if config.model_type == "prism":
        callbacks.append(
            NoiseCoefficientCallback(
                training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end
            )
        )
    if training_arguments.sample_max_new_tokens > 0:
        callbacks.append(
            SampleStoryCallback(
                tokenizer,
                training_arguments.sample_prompt,
                training_arguments.sample_max_new_tokens,
                output_dir / "samples.jsonl",
            )
        )
    trainer = PretrainTrainer(
        model=model,
        args=training_arguments,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=language_modeling_metrics(blocks.validation_bytes_per_token),
        preprocess_logits_for_metrics=score_tokens,
        callbacks=callbacks,
        card={
            "model_name": training_arguments.hub_model_id or output_dir.name,
            "dataset": data_arguments.dataset_name,
            "tokens_a_step": tokens_a_step,
            "command": " ".join(["python -m training.pretrain", *argv]),
            "recipe": recipe,
        },
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    result = {
        "model": config.model_type,
        "parameters": model.num_parameters(),
        "training_flops_per_token": training_flops_per_token(config, data_arguments.block_size),
        "tokens_seen": trainer.state.global_step * tokens_a_step,
        "tokens_per_second": throughput.tokens_per_second(),
        **{name: metrics[f"eval_{name}"] for name in METRICS},
        "seed": training_arguments.seed,
        "revision": code_revision(),
        "saved_in": str(output_dir),
    }
    if trainer.is_world_process_zero():
        (output_dir / RESULTS_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print_table(result)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return result


def print_table(result: dict[str, float | int | str]) -> None:
    """Prints the closing table of a run."""
    width = max(map(len, result))
    print("\n" + "-" * 60)
    for name, value in result.items():
        text = f"{value:,.4f}" if isinstance(value, float) and abs(value) < 1e4 else value
        text = f"{value:,}" if isinstance(value, int) else text
        print(f"{name.replace('_', ' '):<{width}}  {text}")
    print("-" * 60, flush=True)


if __name__ == "__main__":
    main()
