"""Callbacks that the training command adds to `Trainer`, one per concern."""

import json
import math
import textwrap
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState


# Prism's lambda at the first and the last step, as published (arXiv 2601.15540).
NOISE_COEFFICIENT_START, NOISE_COEFFICIENT_END = 0.01, 0.10


def noise_schedule(
    config: PreTrainedConfig, start: float | None, end: float | None, keep: bool
) -> tuple[float, float] | None:
    """
    Prism's lambda at the first and the last step; None: the model has no lambda.

    What is given counts. Otherwise a lambda that is not the default, or that is to be kept, stays, and the default
    rises as published.

    Raises:
        ValueError: a lambda is given for a model that has none.
    """
    if not hasattr(config, "noise_coefficient"):
        if (start, end) != (None, None):
            name = "noise_coefficient_end" if start is None else "noise_coefficient_start"
            raise ValueError(f"`{name}` is Prism's lambda, which a {config.model_type} does not have: leave it out.")
        return None
    own = config.noise_coefficient
    stays = keep or own != type(config).noise_coefficient
    first, last = (own, own) if stays else (NOISE_COEFFICIENT_START, NOISE_COEFFICIENT_END)
    return first if start is None else start, last if end is None else end


def scheduled_noise_coefficient(
    step: int, total_steps: int, start: float = NOISE_COEFFICIENT_START, end: float = NOISE_COEFFICIENT_END
) -> float:
    """
    lambda after `step` of `total_steps` optimizer steps: a half cosine from `start` up to `end` (arXiv 2601.15540).
    """
    return start + (end - start) * (1 - math.cos(math.pi * min(step / total_steps, 1))) / 2


class NoiseCoefficientCallback(TrainerCallback):
    """
    Raises Prism's lambda over the run. Step s (from 0) trains with lambda(s). A model evaluated or saved after it has
    lambda(s + 1), and the finished model has lambda(total) = `end`. The step alone decides lambda, so that a resumed
    run continues the schedule.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        value = scheduled_noise_coefficient(state.global_step, state.max_steps, self.start, self.end)
        model.set_noise_coefficient(value)

    on_step_end = on_train_begin

    def on_train_end(self, args, state, control, model=None, **kwargs):
        # The best weights need the lambda of their own step.
        if args.load_best_model_at_end and state.best_model_checkpoint:
            value = scheduled_noise_coefficient(state.best_global_step, state.max_steps, self.start, self.end)
            model.set_noise_coefficient(value)


class SampleStoryCallback(TrainerCallback):
    """Samples a story at every evaluation, with a fixed seed, prints it and appends it to a file."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, file: Path):
        self.tokenizer, self.prompt, self.max_new_tokens, self.file = tokenizer, prompt, max_new_tokens, file

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run repeats the evaluations that its checkpoint does not know, and their stories.
        if state.is_world_process_zero and self.file.is_file():
            known = {log["step"] for log in state.log_history if "eval_runtime" in log}
            # Split at line feeds alone: a story may hold other ends of lines.
            lines = self.file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            kept = [f"{line}\n" for line in lines if _step_of(line) in known]
            self.file.write_text("".join(kept), encoding="utf-8")

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        # Under FSDP a process holds a part of the weights only.
        if state.is_world_process_zero and not args.fsdp:
            story = tell_story(model, self.tokenizer, self.prompt, self.max_new_tokens)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": state.global_step, "story": story}, ensure_ascii=False) + "\n")
            tqdm.write(textwrap.indent(textwrap.fill(story), "    "))


def _step_of(line: str) -> int | None:
    """The step of a line of samples.jsonl; `None` if it is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def tell_story(model, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, seed: int = 0) -> str:
    """Continues `prompt` by sampling (temperature 0.8, top-p 0.95) and leaves torch's random state unchanged."""
    inputs = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    max_new_tokens = min(max_new_tokens, room_for_tokens(model, inputs["input_ids"].shape[1]))
    if max_new_tokens == 0:
        return prompt
    was_training = model.training
    model.eval()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            # `max_new_tokens` beside a saved `max_length` would cause a warning.
            max_length=inputs["input_ids"].shape[1] + max_new_tokens,
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
        )
    model.train(was_training)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def room_for_tokens(model: PreTrainedModel, length: int) -> int:
    """The number of tokens that fit behind `length` ones into the model's `max_position_embeddings`."""
    return max(0, (getattr(model.config, "max_position_embeddings", None) or 2**31) - length)


class ThroughputCallback(TrainerCallback, ExportableState):
    """Measures training speed: the time of the steps, without evaluations and saves. Checkpoints keep the sums."""

    def __init__(self):
        self.tokens, self.seconds = 0, 0.0

    def state(self) -> dict:
        return {"args": {}, "attributes": {"tokens": self.tokens, "seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        vars(self).update(state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"])

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun, self.tokens_before = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun
        # The tokens that were read: the last batch of an epoch is smaller.
        self.tokens += state.num_input_tokens_seen - self.tokens_before

    def tokens_per_second(self) -> float | None:
        """Tokens per second of all processes, over the steps of the whole run; `None` if they are unknown."""
        return self.tokens / self.seconds if self.tokens else None


class ProgressLineCallback(TrainerCallback):
    """
    One bar for the run and one line for each evaluation, in place of `Trainer`'s bars and dictionaries.

    Args:
        throughput (`ThroughputCallback`): tells the speed and the time left; it comes first in the list of callbacks.
    """

    def __init__(self, throughput: ThroughputCallback):
        self.throughput = throughput

    def speed(self) -> list[str]:
        """What is known of it: nothing in a run resumed from a checkpoint that kept no sums."""
        speed = self.throughput.tokens_per_second()
        return [] if speed is None else [f"{speed:,.0f} tokens/s"]

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = args.disable_tqdm or not state.is_world_process_zero
        steps = {"total": state.max_steps, "initial": state.global_step}
        self.bar = tqdm(desc="Training", unit="step", dynamic_ncols=True, disable=hidden, **steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.bar.set_postfix_str(", ".join([f"loss {logs['loss']:.3f}", *self.speed()]))

    def on_prediction_step(self, args, state, control, **kwargs):
        if not self.bar.disable and not self.bar.desc.startswith("Evaluating"):
            self.bar.set_description("Evaluating")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not state.is_world_process_zero:
            return
        done, total = state.global_step, state.max_steps
        names = {"loss": "loss", "bits_per_byte": "bits per byte", "accuracy": "accuracy"}
        found = {text: metrics.get(f"eval_{name}") for name, text in names.items()}
        parts = [f"{text} {value:.3f}" for text, value in found.items() if value is not None]
        if done:
            left = self.throughput.seconds / done * (total - done)
            parts += [*self.speed(), f"{tqdm.format_interval(left)} left"]
        tqdm.write(f"Step {done:,} of {total:,}: {', '.join(parts)}")
        self.bar.set_description("Training", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class LossCallback(TrainerCallback, ExportableState):
    """Keeps, over a resume, what `Trainer` starts anew: the sums behind the logged losses, and the best checkpoint."""

    trainer = None

    def state(self) -> dict:
        pending = getattr(self.trainer, "_tr_loss", None)
        if pending is None:
            return {"args": {}, "attributes": {}}
        names = ("_total_loss_scalar", "_globalstep_last_logged")
        sums = {name: getattr(self.trainer, name) for name in names}
        return {"args": {}, "attributes": {"_tr_loss": pending.item(), **sums}}

    def on_train_begin(self, args, state, control, **kwargs):
        sums = dict(state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"])
        if state.global_step and sums:
            self.trainer._tr_loss.fill_(sums.pop("_tr_loss"))
            vars(self.trainer).update(sums)
        self.trainer.find_best()
