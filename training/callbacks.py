"""Callbacks that the training command adds to `Trainer`, one per concern."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback


# Prism's lambda at the first and the last step, as published (arXiv 2601.15540).
NOISE_COEFFICIENT_START, NOISE_COEFFICIENT_END = 0.01, 0.10


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
        if args.load_best_model_at_end and state.best_global_step:
            value = scheduled_noise_coefficient(state.best_global_step, state.max_steps, self.start, self.end)
            model.set_noise_coefficient(value)


class SampleStoryCallback(TrainerCallback):
    """Samples a story at every evaluation, with a fixed seed, prints it and appends it to a file."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, file: Path):
        self.tokenizer, self.prompt, self.max_new_tokens, self.file = tokenizer, prompt, max_new_tokens, file

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        # Under FSDP a process holds a part of the weights only.
        if state.is_world_process_zero and not args.fsdp:
            story = tell_story(model, self.tokenizer, self.prompt, self.max_new_tokens)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": state.global_step, "story": story}, ensure_ascii=False) + "\n")
            print(f"\n[step {state.global_step}] {story}\n", flush=True)


def tell_story(model, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, seed: int = 0) -> str:
    """Continues `prompt` by sampling (temperature 0.8, top-p 0.95) and leaves torch's random state unchanged."""
    inputs = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    # A position table limits the length.
    room = (getattr(model.config, "max_position_embeddings", None) or 2**31) - inputs["input_ids"].shape[1]
    was_training = model.training
    model.eval()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max(1, min(max_new_tokens, room)),
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
        )
    model.train(was_training)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


class ThroughputCallback(TrainerCallback):
    """Measures training speed: the time of the steps, without evaluations and saves."""

    def __init__(self):
        self.tokens, self.seconds = 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun, self.tokens_before = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun
        # The tokens that were read: the last batch of an epoch is smaller.
        self.tokens += state.num_input_tokens_seen - self.tokens_before

    def tokens_per_second(self) -> float:
        """Tokens per second of all processes, over the steps that this process has seen."""
        return self.tokens / self.seconds if self.tokens else float("nan")
