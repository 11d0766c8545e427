"""The `Trainer` of `training.pretrain`, and how a run starts, stops and ends."""

import contextlib
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from training.callbacks import LossCallback
from training.command import TrainingDiverged, reaching_the_hub
from training.files import name_only
from training.model_card import render_model_card
from training.resume import RESULTS_FILE, fault_of, remove_checkpoints, seal_checkpoint
from training.tasks import Blocks


logger = logging.getLogger(__name__)


class PretrainTrainer(Trainer):
    """
    The stock `Trainer`, except that

    - saved and pushed folders get the project's model card, and decode with a cache; logs record lambda;
    - a run whose loss, weights or evaluation are not finite stops, without saving them;
    - checkpoints carry checksums, and resumed logs continue as if the run had not stopped.

    Args:
        blocks (`Blocks`): the data.
        card (`dict`): arguments of `render_model_card` beyond the model, the data and the state of the run.
    """

    def __init__(self, *args, blocks: Blocks, card: dict, **kwargs):
        self.use_cache = getattr(kwargs["model"].config, "use_cache", None)
        super().__init__(*args, train_dataset=blocks.train, eval_dataset=blocks.validation, **kwargs)
        self.blocks, self.card, self.resumed_from = blocks, card, None
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
            checkpoint = folder / f"checkpoint-{step}"
            # `find_best` knows the folder by its step: a path may not be published, and the run may be moved.
            dataclasses.replace(self.state, best_model_checkpoint=None).save_to_json(checkpoint / TRAINER_STATE_NAME)
            seal_checkpoint(checkpoint)
            best = self.state.best_global_step if self.state.best_model_checkpoint else None
            remove_checkpoints(folder, self.save_total_limit, {step, best})
            if self.args.push_to_hub:
                self.push_sealed(checkpoint)

    def _issue_warnings_after_load(self, load_result):
        tied = set(self.model.all_tied_weights_keys or ())
        missing, unexpected = set(load_result.missing_keys) - tied, load_result.unexpected_keys
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint holds another model (missing {sorted(missing)}, unexpected {unexpected})."
            )

    def _save(self, output_dir: str | None = None, state_dict=None):
        # `Trainer` turns the cache off, which is for training alone.
        while_training, self.model.config.use_cache = self.model.config.use_cache, self.use_cache
        super()._save(output_dir, state_dict)
        self.model.config.use_cache = while_training
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
        """Does nothing yet: `Trainer` calls it before the checkpoint is complete."""

    def init_hf_repo(self, *args, **kwargs):
        with reaching_the_hub("see to the network and `hf auth login`, or leave out `push_to_hub`."):
            super().init_hf_repo(*args, **kwargs)

    def push_sealed(self, checkpoint: Path):
        """Pushes what `hub_strategy` says of a complete checkpoint."""
        # `Trainer` pushes weights and config from here. The config names model files, which must be there too.
        for file in (*checkpoint.glob("*.py"), checkpoint / "README.md"):
            shutil.copy(file, self.args.output_dir)
        try:
            super()._push_from_checkpoint(str(checkpoint))
        # Whatever the network does, the run goes on; the next checkpoint is pushed again.
        except Exception as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s was not pushed (%s). Training goes on.", checkpoint.name, cause)

    def find_best(self):
        """Finds the best checkpoint so far beside the one that the run resumes from; passes over a damaged one."""
        if not (self.args.load_best_model_at_end and self.resumed_from and self.state.best_global_step):
            return
        best = self.resumed_from.parent / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best)
        if fault := fault_of(best):
            logger.warning("Skipping %s, the best so far: %s. The best of the later ones counts.", best, fault)
            self.state.best_model_checkpoint = self.state.best_global_step = self.state.best_metric = None

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
    """Says what a stopped run can go on from: its end, or a checkpoint, if there is one."""
    if (output_dir / RESULTS_FILE).is_file():
        return f"Kept: {output_dir}, finished."
    steps = [int(file.parent.name.partition("-")[2]) for file in output_dir.glob("checkpoint-*/checksums.json")]
    return f"Kept: {output_dir / f'checkpoint-{max(steps)}'}." if steps else None


@contextlib.contextmanager
def explaining_an_interrupt(output_dir: Path) -> Iterator[None]:
    """Adds to Ctrl-C what was kept, in two lines."""
    try:
        yield
    except KeyboardInterrupt:
        kept = kept_in(output_dir)
        raise KeyboardInterrupt(
            f"Interrupted. {kept or 'Nothing was kept: no checkpoint yet.'}\n"
            f"The same command {'continues the run from there' if kept else 'starts the run again'}."
        ) from None


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


def train(trainer: PretrainTrainer, checkpoint: str | None) -> None:
    """Trains to the end, from `checkpoint` if there is one, and evaluates. A last step's checkpoint is only loaded."""
    trainer.resumed_from = Path(checkpoint) if checkpoint else None
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))) if checkpoint else None
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
