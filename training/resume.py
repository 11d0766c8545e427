"""Finds out which run an output folder holds, and the checkpoint to resume it from."""

import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import TrainerState


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
# Prefixes of the training options that a resumed run may change: logging, saving, sampling, pushing, hardware. All
# others decide the result.
HARMLESS_OPTIONS = (
    "_|accelerator_config|auto_find|dataloader_(num|persistent|pin|prefetch|multi|in_order)|ddp_|debug|deepspeed|disable_"
    "|distributed|do_|enable_|eval_|fsdp|full_determinism|gradient_accumulation|greater_|hub_|include_|label_names|liger"
    "|local_rank|log|logging|output_dir|parallelism|per_device|prediction_loss|project|push|remove_unused|report_to"
    "|restore_|resume_|run_name|sample_|save_|skip_memory|torch_empty|trackio|use_cache|use_cpu"
)
# Config fields that do not describe the architecture: the origin, the tokenizer's tokens, and what training sets.
BOOKKEEPING = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "noise_coefficient",
    "pad_token_id",
    "transformers_version",
    "use_cache",
)


def describe_run(
    model_arguments, data_arguments, training_arguments: TrainingArguments, config: PreTrainedConfig
) -> dict:
    """Returns the settings that decide a run's result, as values that JSON and YAML can hold."""
    batch = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    training = dataclasses.asdict(training_arguments)
    run = {
        **dataclasses.asdict(model_arguments),
        **dataclasses.asdict(data_arguments),
        "corpus_bytes": _size_of(data_arguments.dataset_name),
        "global_batch_size": batch * training_arguments.world_size,
        **{name: value for name, value in training.items() if not re.match(HARMLESS_OPTIONS, name)},
        "config": _architecture(config),
    }
    # The number of tokenising processes decides nothing.
    del run["preprocessing_num_workers"]
    # Two paths to one folder are the same.
    for name in ("model_config", "init_from", "dataset_name", "validation_file", "tokenizer_name"):
        if run[name] and Path(run[name]).exists():
            run[name] = str(Path(run[name]).resolve())
    return json.loads(json.dumps({name: value for name, value in run.items() if value is not None}, default=str))


def _size_of(name: str) -> int | None:
    path = Path(name)
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) or None


def _architecture(config: PreTrainedConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in BOOKKEEPING}


def check_output_dir(output_dir: Path, run: dict) -> None:
    """Raises `ValueError` for a folder that holds another run or other files."""
    if output_dir.is_file():
        raise ValueError(f"`output_dir`={str(output_dir)!r} is a file: name a folder.")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    file = output_dir / RUN_FILE
    if not file.is_file():
        raise ValueError(
            f"`output_dir`={str(output_dir)!r} is not empty and does not hold a run of this command: choose another."
        )
    # `config` describes a preset whose folder may have moved with the checkout.
    found, wanted = (
        {**described, "model_config": None} for described in (json.loads(file.read_text(encoding="utf-8")), run)
    )
    differences = _differences(found, wanted)
    if differences:
        raise ValueError(
            f"`output_dir`={str(output_dir)!r} holds another run ({differences}): choose another `output_dir`, repeat "
            "that run's settings to resume it, or delete the folder. To train a finished model further, start a new "
            "run with it as `init_from`."
        )


def begin_run(output_dir: Path, run: dict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Creates the folder of `run`, with its tokenizer, atomically; does nothing if it exists."""
    if (output_dir / RUN_FILE).is_file():
        return
    unfinished = output_dir.with_name(output_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    write_json(unfinished / RUN_FILE, run)
    if output_dir.is_dir():
        output_dir.rmdir()
    unfinished.rename(output_dir)


def write_json(file: Path, content: dict) -> None:
    """Writes a JSON file atomically: a killed process leaves no partial file."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def _differences(found: dict, wanted: dict) -> str:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"`{name}` was {found.get(name)!r}, now {wanted.get(name)!r}" for name in names)


def check_checkpoint(checkpoint: str, config: PreTrainedConfig) -> None:
    """Raises `ValueError` for a checkpoint that is incomplete or holds another model."""
    if not _is_complete(Path(checkpoint)):
        raise ValueError(
            f"`resume_from_checkpoint`={checkpoint!r} is not a complete checkpoint: leave the option out to resume "
            "from the last complete one in `output_dir`."
        )
    differences = _differences(_architecture(AutoConfig.from_pretrained(checkpoint)), _architecture(config))
    if differences:
        raise ValueError(
            f"`resume_from_checkpoint`={checkpoint!r} holds another model ({differences}): resume with that model's "
            "settings, or start a new run in another `output_dir`."
        )


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Returns the newest complete checkpoint, or `None`."""
    steps = [re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in output_dir.glob("checkpoint-*")]
    for step in sorted((int(match[1]) for match in steps if match), reverse=True):
        folder = output_dir / f"checkpoint-{step}"
        if _is_complete(folder):
            return str(folder)
        logger.warning("Skipping %s: it is incomplete, because the run stopped while saving it.", folder)
    return None


def _is_complete(checkpoint: Path) -> bool:
    # `Trainer` writes its state last and deletes older checkpoints only after that. A checkpoint without the optimizer
    # (`save_only_model`) cannot be resumed.
    try:
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except (OSError, ValueError, TypeError):
        return False
    return (checkpoint / "scheduler.pt").is_file() and any(checkpoint.glob("optimizer*"))
