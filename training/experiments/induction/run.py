"""
Can one layer do induction? Arms with and without the shear, controls, several seeds, each arm at the best of the same
learning rates. Finished arms are kept, so a stopped experiment goes on where it was.

```bash
python -m training.experiments.induction
```
"""

import functools
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import HfArgumentParser

from modeling_prism.analysis.heads import prefix_matching_score
from training.experiments.induction.arms import ARMS
from training.experiments.small_runs import (
    AnswersOnly,
    SmallRunArguments,
    answer_loss,
    answers_of,
    at_best_rate,
    check_arms,
    first_step_at,
    run_jobs,
    small_momentum,
    train_stack,
    write_results,
)
from training.tasks.induction import draw_induction, draw_repeats


# A seed has locked in when half of its answers are right; chance is 1 / num_distinct.
LOCKED_IN, MASTERED = 0.5, 0.9
REPEATED_SEQUENCES = 64


@dataclass
class InductionArguments(SmallRunArguments):
    """The experiment's own options."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}."})
    vocab_size: int = field(default=64, metadata={"help": "Tokens of the task."})
    num_distinct: int = field(default=32, metadata={"help": "Tokens shown before the questions."})
    num_queries: int = field(default=16, metadata={"help": "Questions a sequence."})
    output_dir: str = field(default="outputs/induction", metadata={"help": "Where finished arms are kept."})
    results_dir: str = field(
        default=str(Path(__file__).parent), metadata={"help": "Where results.jsonl, table.md and the plot go."}
    )

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


def build(arguments: InductionArguments, name: str, seed: int) -> AnswersOnly:
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
def look_at_repeats(model: AnswersOnly, arguments: InductionArguments) -> dict:
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


def run_arm(arguments: InductionArguments, name: str, stem: Path) -> list[dict]:
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


def steps_of(rows: list[dict], key: str) -> str:
    """Median and extremes of the steps of the seeds that got there."""
    steps = [row[key] for row in rows if row[key] is not None]
    if not steps:
        return "never"
    missing = f" ({len(steps)} of {len(rows)})" if len(steps) < len(rows) else ""
    return f"{np.median(steps):.0f} [{min(steps)}, {max(steps)}]{missing}"


def make_table(rows: list[dict]) -> str:
    """The Markdown table of the README, a row an arm."""
    lines = [
        "| arm | best learning rate | locked in | steps to 50 %, median [extremes] | steps to 90 % "
        "| final accuracy, mean ± std | prefix matching of the best head | loss on repeats, nats |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        best = at_best_rate(rows, arm=arm)
        accuracy = np.array([row["accuracy"] for row in best])
        spread = f" ± {accuracy.std(ddof=1):.3f}" if len(best) > 1 else ""
        locked = sum(row["steps_to_lock_in"] is not None for row in best)
        heads = [max(max(layer) for layer in row["prefix_matching"]) for row in best]
        lines.append(
            f"| {arm} | {best[0]['learning_rate']:g} | {locked} of {len(best)} | {steps_of(best, 'steps_to_lock_in')} "
            f"| {steps_of(best, 'steps_to_master')} | {accuracy.mean():.3f}{spread} "
            f"| {np.mean(heads):.2f} | {np.mean([row['repeats_loss'] for row in best]):.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], arguments: InductionArguments, file: Path) -> None:
    """Accuracy against steps, every seed, a panel an arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    columns = min(6, len(arms))
    figure, axes = plt.subplots(
        -(-len(arms) // columns),
        columns,
        figsize=(2.4 * columns, 2 * -(-len(arms) // columns)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis, arm in zip(axes.flat, arms):
        for row in at_best_rate(rows, arm=arm):
            axis.plot(np.arange(len(row["curve"])) * arguments.eval_steps, row["curve"], color="black", linewidth=0.8)
        axis.axhline(1 / arguments.num_distinct, color="grey", linestyle=":", linewidth=0.8)
        axis.set_title(arm, fontsize=9)
        axis.set_ylim(0, 1)
    figure.supxlabel("steps", fontsize=9)
    figure.supylabel("share of answers right (dotted: a guess among the tokens shown)", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(InductionArguments).parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    apart = ("arms", "output_dir", "results_dir", "jobs", "device", "torch_compile", "save_steps")
    settings = {key: value for key, value in asdict(arguments).items() if key not in apart}
    rows = run_jobs(
        functools.partial(run_arm, arguments),
        {arm: arm for arm in arguments.arms},
        Path(arguments.output_dir),
        settings,
        arguments.jobs,
    )
    results = Path(arguments.results_dir)
    write_results(results, rows, settings)
    table = make_table(rows)
    (results / "table.md").write_text(table, encoding="utf-8")
    plot(rows, arguments, results / "accuracy.png")
    print(table)


if __name__ == "__main__":
    main()
