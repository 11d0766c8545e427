"""What the training command adds to `Trainer`, one callback a concern."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback


def scheduled_noise_coefficient(step: int, total_steps: int, start: float = 0.01, end: float = 0.10) -> float:
    """
    lambda after `step` of `total_steps` optimiser steps: a half cosine from `start` up to `end` (arXiv 2601.15540).
    """
    return start + (end - start) * (1 - math.cos(math.pi * min(step / total_steps, 1))) / 2


class NoiseCoefficientCallback(TrainerCallback):
    """
    Raises Prism's lambda over the run. Step s (from 0) trains with lambda(s); whatever is evaluated or saved after it
    carries lambda(s + 1), and the finished model lambda(total) = `end`. A function of the step alone, so a resumed run
    continues where it was.
    """

    def __init__(self, start: float = 0.01, end: float = 0.10):
        self.start, self.end = start, end

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        value = scheduled_noise_coefficient(state.global_step, state.max_steps, self.start, self.end)
        model.set_noise_coefficient(value)

    on_step_end = on_train_begin

    def on_train_end(self, args, state, control, model=None, **kwargs):
        # The best weights go with the lambda of their own step.
        if args.load_best_model_at_end and state.best_global_step:
            value = scheduled_noise_coefficient(state.best_global_step, state.max_steps, self.start, self.end)
            model.set_noise_coefficient(value)


class SampleStoryCallback(TrainerCallback):
    """At every evaluation, the model tells a story (sampled with a fixed seed), printed and kept in a file."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, file: Path):
        self.tokenizer, self.prompt, self.max_new_tokens, self.file = tokenizer, prompt, max_new_tokens, file

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        # Under FSDP the weights are not all here.
        if state.is_world_process_zero and not args.fsdp:
            story = tell_story(model, self.tokenizer, self.prompt, self.max_new_tokens)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": state.global_step, "story": story}, ensure_ascii=False) + "\n")
            print(f"\n[step {state.global_step}] {story}\n", flush=True)


def tell_story(model, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, seed: int = 0) -> str:
    """Continues `prompt` by sampling (temperature 0.8, nucleus 0.95) without disturbing torch's random state."""
    inputs = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    # Models with a position table cannot go beyond it.
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
    """Measures training speed: the time of the steps alone, without evaluating and saving."""

    def __init__(self):
        self.tokens, self.seconds = 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun, self.tokens_before = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun
        # What was read, which at the end of the data is less than a batch.
        self.tokens += state.num_input_tokens_seen - self.tokens_before

    def tokens_per_second(self) -> float:
        """Tokens of all processes a second, over the steps of this process's lifetime."""
        return self.tokens / self.seconds if self.tokens else float("nan")
