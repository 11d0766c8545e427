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
from training.callbacks import ModelCardCallback, NoiseCoefficientCallback, SampleStoryCallback
from training.data import DataArguments, load_texts, load_tokenizer, make_blocks, train_tokenizer
from training.flops import training_flops_per_token
from training.metrics import language_modeling_metrics, score_tokens
from training.model_card import code_revision, render_model_card
from training.resume import begin_or_resume_run, last_complete_checkpoint


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


class PretrainTrainer(Trainer):
    """The stock `Trainer`, whose `push_to_hub` keeps our model card."""

    def create_model_card(self, *args, **kwargs):
        self.write_model_card(Path(self.args.output_dir), self.state)


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
    if (arguments.model_config is None) == (arguments.init_from is None):
        raise ValueError("Give either `model_config` (train from scratch) or `init_from` (fine-tune), not both.")
    config = AutoConfig.from_pretrained(arguments.model_config or arguments.init_from)
    overrides = yaml.safe_load("{" + (arguments.config_overrides or "").replace("=", ": ") + "}")
    for key in overrides:
        if not hasattr(config, key):
            raise ValueError(f"`config_overrides` names `{key}`, which a {config.model_type} config does not have.")
    if overrides:
        # Derived values must be derived again.
        derived = {"head_dim": None} if config.model_type == "prism" and "head_dim" not in overrides else {}
        config = type(config)(**{**config.to_dict(), **derived, **overrides})
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


def main(argv: list[str] | None = None) -> dict[str, float | int | str]:
    """Trains, evaluates and saves one model; returns the row of the closing table."""
    argv = sys.argv[1:] if argv is None else argv
    model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)

    config = load_config(model_arguments)
    if model_arguments.init_from is None and data_arguments.tokenizer_name is None:
        check_sizes(config, data_arguments.tokenizer_vocab_size, data_arguments.block_size)
    if data_arguments.streaming and training_arguments.max_steps <= 0:
        raise ValueError("`streaming` has no end that could be known before: give `max_steps`.")
    output_dir = Path(training_arguments.output_dir)

    with training_arguments.main_process_first(desc="reading and tokenising the corpus"):
        recipe = begin_or_resume_run(output_dir, model_arguments, data_arguments, training_arguments, config)
        texts = load_texts(data_arguments)
        tokenizer_name = model_arguments.init_from or data_arguments.tokenizer_name
        if (output_dir / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(str(output_dir))
        elif tokenizer_name:
            tokenizer = load_tokenizer(tokenizer_name)
        else:
            tokenizer = train_tokenizer(texts["train"], data_arguments.tokenizer_vocab_size)
        check_sizes(config, len(tokenizer), data_arguments.block_size)
        if training_arguments.should_save:
            tokenizer.save_pretrained(output_dir)
        blocks = make_blocks(texts, tokenizer, data_arguments)

    model = build_model(model_arguments, config, tokenizer)
    trainer = PretrainTrainer(
        model=model,
        args=training_arguments,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=language_modeling_metrics(blocks.validation_bytes_per_token),
        preprocess_logits_for_metrics=score_tokens,
    )
    tokens_a_step = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    tokens_a_step *= training_arguments.world_size * data_arguments.block_size

    def write_model_card(folder: Path, state) -> None:
        metrics = next((log for log in reversed(state.log_history) if "eval_bits_per_byte" in log), {})
        render_model_card(
            model,
            model_name=training_arguments.hub_model_id or output_dir.name,
            dataset=data_arguments.dataset_name,
            tokens_seen=state.global_step * tokens_a_step,
            command="python -m training.pretrain " + " ".join(argv),
            recipe=recipe,
            metrics={name: metrics[f"eval_{name}"] for name in METRICS if f"eval_{name}" in metrics},
        ).save(folder / "README.md")

    trainer.write_model_card = write_model_card
    trainer.add_callback(ModelCardCallback(write_model_card))
    if config.model_type == "prism":
        trainer.add_callback(
            NoiseCoefficientCallback(
                training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end
            )
        )
    if training_arguments.sample_max_new_tokens > 0:
        trainer.add_callback(
            SampleStoryCallback(
                tokenizer,
                training_arguments.sample_prompt,
                training_arguments.sample_max_new_tokens,
                output_dir / "samples.jsonl",
            )
        )

    checkpoint = training_arguments.resume_from_checkpoint or last_complete_checkpoint(output_dir)
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    result = {
        "model": config.model_type,
        "parameters": model.num_parameters(),
        "training_flops_per_token": training_flops_per_token(config, data_arguments.block_size),
        "tokens_seen": trainer.state.global_step * tokens_a_step,
        "tokens_per_second": round(trained.metrics["train_samples_per_second"] * data_arguments.block_size),
        **{name: metrics[f"eval_{name}"] for name in METRICS},
        "seed": training_arguments.seed,
        "revision": code_revision(),
        "saved_in": str(output_dir),
    }
    if trainer.is_world_process_zero():
        write_model_card(output_dir, trainer.state)
        (output_dir / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print_table(result)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return result


METRICS = ("nats_per_token", "perplexity", "bits_per_byte", "next_token_accuracy")


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
