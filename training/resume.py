"""Which run an output folder holds, and from where it goes on."""

import dataclasses
import json
import logging
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
# The training options that decide a run's result. Others (logging, saving, hardware) may change when it goes on.
DECISIVE_OPTIONS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "fp16",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "noise_coefficient_end",
    "noise_coefficient_start",
    "num_train_epochs",
    "optim",
    "seed",
    "warmup_steps",
    "weight_decay",
)


# What of a config says nothing about the architecture: where it came from, the tokenizer's, and what training sets.
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
    """The settings that decide a run's result, as values that JSON and YAML can hold."""
    batch = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    run = {
        **dataclasses.asdict(model_arguments),
        **dataclasses.asdict(data_arguments),
        "global_batch_size": batch * training_arguments.world_size,
        **{name: getattr(training_arguments, name) for name in DECISIVE_OPTIONS},
        "config": _architecture(config),
    }
    # How many processes tokenise decides nothing.
    del run["preprocessing_num_workers"]
    return json.loads(json.dumps({name: value for name, value in run.items() if value is not None}, default=str))


def check_output_dir(output_dir: Path, run: dict) -> None:
    """
    Refuses a folder in which `run` would overwrite something else.

    Raises:
        ValueError: the folder holds another run that has saved something, or files of something else.
    """
    file = output_dir / RUN_FILE
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not file.is_file():
        raise ValueError(
            f"`output_dir`={str(output_dir)!r} is not empty and holds no run of this command: choose another one."
        )
    found = json.loads(file.read_text(encoding="utf-8"))
    differences = _differences(found, run)
    if differences and (last_complete_checkpoint(output_dir) or (output_dir / "config.json").is_file()):
        raise ValueError(
            f"`output_dir`={str(output_dir)!r} holds another run ({differences}): choose another `output_dir`, give "
            "the settings of that run to go on with it, or delete the folder."
        )


def save_run(output_dir: Path, run: dict) -> None:
    """Marks `output_dir` as the folder of `run`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _differences(found: dict, wanted: dict) -> str:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"`{name}` was {found.get(name)!r}, now {wanted.get(name)!r}" for name in names)


def _architecture(config: PreTrainedConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in BOOKKEEPING}


def check_checkpoint(checkpoint: str, config: PreTrainedConfig) -> None:
    """Refuses, with a `ValueError`, to go on from a checkpoint that is not whole or holds another model."""
    if not _is_complete(Path(checkpoint)):
        raise ValueError(
            f"`resume_from_checkpoint`={checkpoint!r} is not a complete checkpoint: leave the option out to go on "
            "from the last complete one of `output_dir`."
        )
    saved, wanted = _architecture(AutoConfig.from_pretrained(checkpoint)), _architecture(config)
    differences = _differences(saved, wanted)
    if differences:
        raise ValueError(
            f"`resume_from_checkpoint`={checkpoint!r} holds another model ({differences}): go on with that model, or "
            "start a new run in another `output_dir`."
        )


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end, or `None`."""
    folders = sorted(
        output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda folder: int(folder.name.split("-")[-1]), reverse=True
    )
    for folder in folders:
        if _is_complete(folder):
            return str(folder)
        logger.warning("%s is incomplete (interrupted while saving): passing over it.", folder)
    return None


def _is_complete(checkpoint: Path) -> bool:
    # `Trainer` writes this file last, and deletes older checkpoints only after that.
    try:
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except (OSError, ValueError, TypeError):
        return False
    return True
