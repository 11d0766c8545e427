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

import dataclasses
import functools
import json
import logging
import sys
from pathlib import Path

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    default_data_collator,
    set_seed,
)

from training.callbacks import (
    NoiseCoefficientCallback,
    ProgressLineCallback,
    SampleStoryCallback,
    ThroughputCallback,
    noise_schedule,
)
from training.command import reaching_the_hub, run
from training.data import DataArguments, load_data
from training.files import name_only, read_json, write_json
from training.flops import training_flops_per_token
from training.loading import build_model, check_sizes, load_config
from training.metrics import language_modeling_metrics, score_tokens
from training.model_card import code_revision
from training.options import (
    ARGUMENTS,
    ModelArguments,
    PretrainArguments,
    check_blocks,
    check_combination,
    parse_arguments,
)
from training.resume import (
    RESULTS_FILE,
    begin_run,
    check_output_dir,
    describe_inputs,
    describe_run,
    find_checkpoint,
    threads_of_run,
)
from training.tasks import Blocks
from training.trainer import PretrainTrainer, cpu_threads, explaining_an_interrupt, train


logger = logging.getLogger(__name__)

# Options that a reader of a card looks for even if they have their default.
SHOWN_DEFAULTS = (
    *("dataset_name", "block_size", "train_fraction", "modulus", "tokenizer_vocab_size", "max_steps", "seed"),
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
)


def main(argv: list[str] | None = None) -> dict[str, float | int | str]:
    """Trains, evaluates and saves one model; returns the closing table, which results.json holds too."""
    argv = sys.argv[1:] if argv is None else argv
    model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    with explaining_an_interrupt(Path(training_arguments.output_dir)):
        return pretrain(model_arguments, data_arguments, training_arguments, argv)


def pretrain(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: PretrainArguments,
    argv: list[str],
) -> dict[str, float | int | str]:
    """What `main` does with its options; `argv` is for the card."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if training_arguments.should_log else logging.WARNING)
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
            if training_arguments.push_to_hub and training_arguments.should_log:
                logger.warning("It is not pushed again. To push it: %s.", push_command(training_arguments))
            return result
        checkpoint = find_checkpoint(output_dir, training_arguments.resume_from_checkpoint, config)
        tokenizer_name = checkpoint or tokenizer_name
        # The main process has just saved the tokenizer that it trained.
        if tokenizer_name is None and not training_arguments.should_save and output_dir.is_dir():
            tokenizer_name = str(output_dir)
        tokenizer, blocks = load_data(data_arguments, training_arguments.seed, tokenizer_name)
        check_sizes(config, blocks.vocab_size, data_arguments.block_size)
        check_blocks(training_arguments, blocks)
        unused = config.vocab_size - blocks.vocab_size
        if unused and training_arguments.should_log:
            logger.warning(
                "The model has `vocab_size`=%d, but the tokenizer has %d tokens: %d rows are never used.",
                *(config.vocab_size, blocks.vocab_size, unused),
            )
        model = build_model(model_arguments, config, tokenizer, blocks)
        description |= describe_inputs(blocks, model if model_arguments.init_from else None)
        check_output_dir(output_dir, description)
        if training_arguments.should_save:
            begin_run(output_dir, description, tokenizer)

    throughput = ThroughputCallback()
    progress = [throughput, ProgressLineCallback(throughput)]
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
        callbacks=[*progress, *make_callbacks(model_arguments, training_arguments, model, tokenizer, blocks)],
        card={
            "init_from": model_arguments.init_from,
            "command": ["python", "-m", "training.pretrain", *argv],
            "recipe": options_that_mattered(description, blocks),
        },
    )
    trainer.remove_callback(PrinterCallback if training_arguments.disable_tqdm else ProgressCallback)
    threads = threads_of_run(Path(checkpoint).parent) if checkpoint else torch.get_num_threads()
    with cpu_threads(threads):
        train(trainer, checkpoint)
        # Pushes nothing yet: the results come first.
        trainer.save_model(_internal_call=True)
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
        with reaching_the_hub(f"{output_dir} holds the finished run. To push it: {push_command(training_arguments)}."):
            trainer.push_to_hub()
    return result


def push_command(training_arguments: PretrainArguments) -> str:
    """What pushes the folder of a finished run."""
    folder = Path(training_arguments.output_dir)
    name = training_arguments.hub_model_id or folder.name
    return f"`hf upload {name} {folder} . --exclude 'checkpoint-*/*'`"


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


def make_callbacks(
    model_arguments: ModelArguments,
    training_arguments: PretrainArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
) -> list[TrainerCallback]:
    """Makes the callback for lambda, if the model has one, and the one for the story, if it can tell one."""
    callbacks = []
    given = training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end
    # A fine-tuned model keeps its lambda.
    schedule = noise_schedule(model.config, *given, keep=bool(model_arguments.init_from))
    if schedule:
        callbacks.append(NoiseCoefficientCallback(*schedule))
    if training_arguments.sample_max_new_tokens > 0 and blocks.card.task == "text-generation":
        file = Path(training_arguments.output_dir, "samples.jsonl")
        prompt, length = training_arguments.sample_prompt, training_arguments.sample_max_new_tokens
        callbacks.append(SampleStoryCallback(tokenizer, prompt, length, file))
    return callbacks


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
