"""
Can one layer do induction? Arms with and without the shear, controls, several seeds, each arm at the best of the same
learning rates.

```bash
python -m training.experiments induction
```
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from modeling_prism.analysis.heads import prefix_matching_score
from training.experiments.common.arguments import SmallRunArguments, check_arms, settings_of
from training.experiments.common.jobs import run_jobs, write_results
from training.experiments.common.stacks import AnswersOnly, answer_loss, answers_of, small_momentum, train_stack
from training.experiments.common.statistics import first_step_at
from training.experiments.induction.arms import ARMS
from training.tasks.induction import draw_induction, draw_repeats


# A seed has locked in when half of its answers are right; chance is 1 / num_distinct.
LOCKED_IN, MASTERED = 0.5, 0.9
REPEATED_SEQUENCES = 64


@dataclass
class Arguments(SmallRunArguments):
    """The experiment's own options."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}."})
    vocab_size: int = field(default=64, metadata={"help": "Tokens of the task."})
    num_distinct: int = field(default=32, metadata={"help": "Tokens shown before the questions."})
    num_queries: int = field(default=16, metadata={"help": "Questions per sequence."})

    def __post_init__(self):
        super().__post_init__()
        check_arms(self, ARMS)
        self.draw(1, seed=0)

    def draw(self, num_examples: int, seed) -> tuple[np.ndarray, np.ndarray]:
        return draw_induction(
            num_examples,
            vocab_size=self.vocab_size,
            num_distinct=self.num_distinct,
            num_queries=self.num_queries,
            seed=seed,
        )

    @property
    def length(self) -> int:
        return self.num_distinct + 2 * self.num_queries


def build(arguments: Arguments, name: str, seed: int) -> AnswersOnly:
    """The model of an arm before training."""
    arm = ARMS[name]
    fields = {"momentum_streams": arm.streams, "momentum_placement": arm.placement}
    model = small_momentum(arguments, seed, arguments.vocab_size, arguments.length, arm.gamma, arm.layers, **fields)
    if arm.attention is not None:
        for layer_idx, layer in enumerate(model.causal_lm.model.layers):
            plain = layer.self_attn
            layer.self_attn = arm.attention(plain.config, layer_idx)
            del layer.self_attn.gamma
            layer.self_attn.register_buffer("gamma", plain.gamma)
            layer.self_attn.load_state_dict(plain.state_dict(), strict=False)
    return model


@torch.no_grad()
def look_at_repeats(model: AnswersOnly, arguments: Arguments) -> dict:
    """Loss on, and prefix-matching score of every head over, random tokens with one segment repeated."""
    segment = arguments.length // 4
    drawn = draw_repeats(
        REPEATED_SEQUENCES, vocab_size=arguments.vocab_size, length=arguments.length, segment=segment, seed=0
    )
    batch = answers_of(*drawn, arguments.device)
    attentions = model.causal_lm(batch[0], use_cache=False, output_attentions=True).attentions
    return {
        "repeats_loss": answer_loss(model, *batch).item(),
        "prefix_matching": [prefix_matching_score(layer, batch[0]).tolist() for layer in attentions],
    }


def run_job(arguments: Arguments, name: str, stem: Path) -> list[dict]:
    """All runs of an arm: the grid with the first seed, then the other seeds at the best learning rate."""
    first, *others = arguments.seeds
    plan = [(rate, first) for rate in arguments.learning_rates]
    rows = []
    for phase in ("grid", "seeds"):
        models = [build(arguments, name, seed) for _, seed in plan]
        rates, seeds = [rate for rate, _ in plan], [seed for _, seed in plan]
        accuracies, stack = train_stack(models, seeds, rates, arguments.draw, arguments, Path(f"{stem}.{phase}.pt"))
        for index, (rate, seed) in enumerate(plan):
            models[index].load_state_dict(stack.unstack(index), strict=False)
            curve = [round(float(accuracy), 4) for accuracy in accuracies[index]]
            rows.append(
                {
                    "arm": name,
                    "learning_rate": rate,
                    "seed": seed,
                    "parameters": sum(parameter.numel() for parameter in models[index].parameters()),
                    "accuracy": curve[-1],
                    "mean_accuracy": float(np.mean(curve)),
                    "steps_to_lock_in": first_step_at(curve, LOCKED_IN, arguments.eval_steps),
                    "steps_to_master": first_step_at(curve, MASTERED, arguments.eval_steps),
                    **look_at_repeats(models[index], arguments),
                    "curve": curve,
                }
            )
        best = max(rows[: len(arguments.learning_rates)], key=lambda row: row["mean_accuracy"])
        plan = [(best["learning_rate"], seed) for seed in others]
        if not plan:
            break
    return rows


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and writes all rows to `results`."""
    settings = settings_of(arguments, "arms")
    jobs = {arm: arm for arm in arguments.arms}
    rows = run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    write_results(results, rows, settings)
