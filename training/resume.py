"""Finds out which run an output folder holds, and the checkpoint to resume it from."""

import dataclasses
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from training.callbacks import noise_schedule
from training.files import digest, digest_of, name_only, read_json, write_json
from training.tasks import Blocks


logger = logging.getLogger(__name__)

RUN_FILE, RESULTS_FILE, CHECKSUMS_FILE = "run.json", "results.json", "checksums.json"
# Files that are in a folder although nobody put them there.
NOT_CONTENT = ("lost+found", f".{RUN_FILE}.unfinished")
# Prefixes of the training options that a resumed run may change: logging, saving, sampling, pushing, hardware. All
# others decide the result.
HARMLESS_OPTIONS = (
    "_|accelerator_config|auto_find|dataloader_(num|persistent|pin|prefetch|multi|in_order)|ddp_|debug|deepspeed|disable_"
    "|distributed|do_|enable_|eval_|fsdp|full_determinism|gradient_accumulation|greater_|hub_|include_|label_names|liger"
    "|local_rank|log|logging|output_dir|parallelism|per_device|prediction_loss|project|push|remove_unused|report_to"
    "|restore_|resume_|run_name|sample_|save_|skip_memory|torch_empty|trackio|use_cache|use_cpu"
)
# Settings in run.json that say where a run was started, not which run it is. `config` describes a preset, whose folder
# may have moved with the checkout.
CIRCUMSTANCES = ("model_config", "cpu_threads")
# What `describe_inputs` adds to run.json. It is not known before the data and the model are loaded.
INPUTS = ("blocks_sha256", "weights_sha256")
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
    """
    Returns the settings that decide a run's result, as values that JSON and YAML can hold.

    A local file or folder counts by its name and contents: `run.json` may be published, and paths may not.
    """
    batch = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    training = dataclasses.asdict(training_arguments)
    run = {
        **dataclasses.asdict(model_arguments),
        **dataclasses.asdict(data_arguments),
        "global_batch_size": batch * training_arguments.world_size,
        **{name: value for name, value in training.items() if not re.match(HARMLESS_OPTIONS, name)},
        "config": _architecture(config),
    }
    given = training_arguments.noise_coefficient_start, training_arguments.noise_coefficient_end
    schedule = noise_schedule(config, *given, keep=bool(model_arguments.init_from))
    if schedule:
        # Not in `config`, as training changes it there.
        run |= zip(("noise_coefficient_start", "noise_coefficient_end"), schedule)
    # The number of tokenising processes decides nothing.
    del run["preprocessing_num_workers"]
    contents = {
        "init_from": ("*.safetensors", "*.bin"),
        "tokenizer_name": ("tokenizer*", "vocab*", "merges*"),
    }
    for name in ("model_config", "init_from", "dataset_name", "validation_file", "tokenizer_name"):
        path = Path(run[name]) if run[name] else None
        if path and path.exists():
            run[name] = path.resolve().name
            files = [path] if path.is_file() else [f for pattern in contents.get(name, ()) for f in path.glob(pattern)]
            if name in contents:
                run[f"{name}_sha256"] = digest(*sorted(files))
    files = data_arguments.local_files()
    run["corpus_sha256"] = digest(*files.values()) if files else None
    run["cpu_threads"] = torch.get_num_threads() if training_arguments.device.type == "cpu" else None
    run = {name: name_only(value) for name, value in run.items() if value is not None}
    return json.loads(json.dumps(run, default=str))


def describe_inputs(blocks: Blocks, model: PreTrainedModel | None) -> dict[str, str]:
    """
    The SHA-256 of the blocks, of a stream those of the validation part, and of the weights that a run starts from.

    A name on the hub does not tell which version of a dataset or a model is read.
    """
    parts = [part for part in (blocks.train, blocks.validation) if isinstance(part, Dataset)]
    rows = (batch for part in parts for batch in part.with_format("numpy").iter(1000))
    inputs = {"blocks_sha256": digest_of(batch[name].tobytes() for batch in rows for name in sorted(batch))}
    if model is not None:
        weights = (weight.cpu().contiguous().flatten() for _, weight in sorted(model.state_dict().items()))
        inputs["weights_sha256"] = digest_of(weight.view(torch.uint8).numpy() for weight in weights)
    return inputs


def _architecture(config: PreTrainedConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in BOOKKEEPING}


def check_output_dir(output_dir: Path, run: dict) -> None:
    """Raises `ValueError` for a folder that cannot be written, or that holds another run or other files."""
    shown = f"`output_dir`={str(output_dir)!r}"
    if any("\0" in part or len(part.encode()) > 255 for part in output_dir.parts):
        raise ValueError(f"{shown} has a name of more than 255 bytes or with a null byte: choose another.")
    if output_dir.is_symlink() and not output_dir.exists():
        raise ValueError(f"{shown} is a link to a folder that does not exist: create that folder, or name another.")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{shown} is a file: name a folder.")
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"{shown} lies below the file {str(existing)!r}: name another folder.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"{shown} cannot be written ({error.strerror}): name a folder of your own.") from None
    if existing != output_dir or not _contents(output_dir):
        return
    file = output_dir / RUN_FILE
    if not file.is_file():
        raise ValueError(f"{shown} is not empty and does not hold a run of this command: choose another.")
    found = read_json(file)
    unknown = {name for name in INPUTS if name not in found or name not in run}
    differences = _differences(*({**known, **dict.fromkeys((*CIRCUMSTANCES, *unknown))} for known in (found, run)))
    if differences and has_saved(output_dir):
        raise ValueError(
            f"{shown} holds another run ({differences}): choose another `output_dir`, repeat that run's settings to "
            "resume it, or delete the folder. To train a finished model further, start a new run with it as "
            "`init_from`."
        )


def _contents(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name not in NOT_CONTENT]


def has_saved(output_dir: Path) -> bool:
    """Whether the run in a folder has saved weights. One that has not may be replaced by another."""
    return any(any(output_dir.glob(name)) for name in ("checkpoint-*", RESULTS_FILE, "*.safetensors", "*.bin"))


def begin_run(output_dir: Path, run: dict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a folder that of `run`, with its tokenizer, unless the run has saved weights there already."""
    output_dir.mkdir(parents=True, exist_ok=True)
    if not (output_dir / RUN_FILE).is_file() or not has_saved(output_dir):
        write_json(output_dir / RUN_FILE, run)
        tokenizer.save_pretrained(output_dir)


def threads_of_run(output_dir: Path) -> int:
    """The number of CPU threads that the run in a folder started with, or that of this process if it is unknown."""
    run = read_json(output_dir / RUN_FILE) if (output_dir / RUN_FILE).is_file() else {}
    threads = run.get("cpu_threads", torch.get_num_threads())
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"`cpu_threads` in {output_dir / RUN_FILE} must be a number of threads, got {threads!r}.")
    return threads


def _differences(found: dict, wanted: dict) -> str:
    differences = []
    for name in {**found, **wanted}:
        before, now = found.get(name), wanted.get(name)
        if before != now:
            nested = isinstance(before, dict) and isinstance(now, dict)
            differences.append(_differences(before, now) if nested else f"`{name}` was {before!r}, now {now!r}")
    return "; ".join(differences)


def seal_checkpoint(checkpoint: Path) -> None:
    """Writes the checksums of a checkpoint's files, which is the last thing that makes it complete."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != CHECKSUMS_FILE)
    write_json(checkpoint / CHECKSUMS_FILE, {str(file.relative_to(checkpoint)): digest(file) for file in files})


def fault_of(checkpoint: Path) -> str | None:
    """What keeps a run from resuming exactly from a checkpoint, or `None`."""
    if not (checkpoint / CHECKSUMS_FILE).is_file():
        return f"{CHECKSUMS_FILE} is missing, because the run stopped while saving or something else saved it"
    try:
        checksums = read_json(checkpoint / CHECKSUMS_FILE)
    except ValueError:
        return f"{CHECKSUMS_FILE} is damaged"
    for required in ("trainer_state.json", "scheduler.pt", "optimizer", "rng_state"):
        # Without the optimizer (`save_only_model`) there is nothing to resume.
        if not any(name.startswith(required) for name in checksums):
            return f"{required} was not saved"
    for name, checksum in checksums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if digest(checkpoint / name) != checksum:
            return f"{name} is not as it was saved"
    return None


def find_checkpoint(output_dir: Path, wanted: str | None, config: PreTrainedConfig) -> str | None:
    """
    Returns the checkpoint `wanted`, or else the last complete one in `output_dir` if there is one.

    Raises:
        ValueError: `wanted` is not intact, or the checkpoint holds another model.
    """
    fault = fault_of(Path(wanted)) if wanted else None
    if fault:
        raise ValueError(
            f"`resume_from_checkpoint`={wanted!r} is not a complete checkpoint ({fault}): leave the option out to "
            "resume from the last complete one in `output_dir`."
        )
    checkpoint = wanted or last_complete_checkpoint(output_dir)
    if checkpoint is None:
        return None
    differences = _differences(_architecture(AutoConfig.from_pretrained(checkpoint)), _architecture(config))
    if differences:
        raise ValueError(
            f"`resume_from_checkpoint`={checkpoint!r} holds another model ({differences}): resume with that model's "
            "settings, or start a new run in another `output_dir`."
        )
    return checkpoint


def _steps_in(output_dir: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order."""
    matches = [re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in output_dir.glob("checkpoint-*")]
    return sorted(int(match[1]) for match in matches if match)


def remove_checkpoints(output_dir: Path, limit: int | None, keep: set[int | None]) -> None:
    """Removes old checkpoints until `limit` are left, but not those of `keep`, the newest and perhaps the best."""
    steps = _steps_in(output_dir)
    newest = max(step for step in keep if step is not None)
    # Later steps come from before a resume that passed over them.
    removable = sorted((step for step in steps if step not in keep), key=lambda step: (step < newest, step))
    for step in removable[: max(0, len(steps) - limit) if limit else 0]:
        shutil.rmtree(output_dir / f"checkpoint-{step}")


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Returns the newest intact checkpoint, or `None`; says which newer ones it passes over, and why."""
    steps = _steps_in(output_dir)
    for step in reversed(steps):
        folder = output_dir / f"checkpoint-{step}"
        fault = fault_of(folder)
        if not fault:
            return str(folder)
        logger.warning("Skipping %s: %s.", folder, fault)
    if steps:
        logger.warning("%s has no intact checkpoint: the run starts from the beginning.", output_dir)
    return None
