"""Which run an output folder holds, and from where it goes on."""

import dataclasses
import json
import logging
from pathlib import Path

from transformers import PreTrainedConfig, TrainingArguments
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


def begin_or_resume_run(
    output_dir: Path,
    model_arguments,
    data_arguments,
    training_arguments: TrainingArguments,
    config: PreTrainedConfig,
) -> dict:
    """
    Writes what this run is into `output_dir`, or checks that the run already there is this one.

    Returns:
        `dict`: the settings that decide the run's result.

    Raises:
        ValueError: the folder holds another run (another model, corpus or schedule), or files of something else.
    """
    batch = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
    run = {
        **dataclasses.asdict(model_arguments),
        **dataclasses.asdict(data_arguments),
        "global_batch_size": batch * training_arguments.world_size,
        **{name: getattr(training_arguments, name) for name in DECISIVE_OPTIONS},
        "config": config.to_diff_dict(),
    }
    # How many processes tokenise decides nothing.
    del run["preprocessing_num_workers"]
    run = json.loads(json.dumps(run, default=str))
    file = output_dir / RUN_FILE
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in {**found, **run} if found.get(name) != run.get(name)]
        if changed:
            details = "; ".join(f"`{name}` was {found.get(name)!r}, now {run.get(name)!r}" for name in changed)
            raise ValueError(
                f"`output_dir`={str(output_dir)!r} holds another run ({details}): choose another `output_dir`, give the "
                "settings of that run to go on with it, or delete the folder."
            )
        logger.info("%s holds this run already: going on with it.", output_dir)
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(
            f"`output_dir`={str(output_dir)!r} is not empty and holds no run of this command: choose another one."
        )
    elif training_arguments.should_save:
        output_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return run


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """
    The newest checkpoint that was written to its end, or `None`.

    `Trainer` writes `trainer_state.json` last and deletes older checkpoints only after that; a folder where it is missing
    or cut off was interrupted while saving.
    """
    folders = sorted(
        output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda folder: int(folder.name.split("-")[-1]), reverse=True
    )
    for folder in folders:
        try:
            TrainerState.load_from_json(str(folder / "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            logger.warning("%s is incomplete (interrupted while saving): passing over it.", folder)
            continue
        return str(folder)
    return None
