"""
Compares training a `Stack` of small models with training the same models one at a time, in one process.

    python -m training.benchmarks.stacking --models 8 --torch_compile --output stacking.json

Models, batches and thread count are the experiments' defaults: `induction` (sheared keys), `recall` and `grokking`
(addition on the sphere). AdamW trains each model on one batch, drawn in advance: one model at a time with
`torch.optim.AdamW(fused=True)`, all of them as a stack and, with `--torch_compile`, all of them as a compiled stack. A
seed-step is one step of one model. In `grokking`, a single model runs its full forward pass over three positions; the
stack computes only what the read-out needs.

One thread, as in the experiments. Each round times every way, in rotating order, after one that is discarded. Ratios
are taken within a round; the result keeps their median and extremes. Extremes that lie far apart mean a busy machine
and a worthless ratio.
"""

import copy
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from training.benchmarks.throughput import (
    compare,
    describe_run,
    format_ratio,
    interleaved,
    make_folder_of,
    make_synchronize,
    spread,
    write_result,
)
from training.command import CommandParser
from training.experiments.common.arguments import check_device, check_positive
from training.experiments.common.readme import make_table as make_text_table
from training.experiments.common.stacks import answer_loss, answers_of, small_momentum
from training.experiments.grokking import run as grokking
from training.experiments.induction import run as induction
from training.experiments.recall_scaling import run as recall_scaling
from training.stacked import Stack
from training.tasks.arithmetic import make_table, split_table


ALONE, STACKED, COMPILED = "one at a time", "stack", "compiled stack"
LEARNING_RATE = 1e-3


@dataclass
class StackingArguments:
    experiments: list[str] = field(
        default_factory=lambda: list(SETTINGS), metadata={"help": "Of: induction, recall, grokking."}
    )
    models: int = field(default=8, metadata={"help": "Models per stack."})
    rounds: int = field(default=5, metadata={"help": "Measurements per way to train."})
    steps: int = field(default=10, metadata={"help": "Steps per model and measurement."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Also time a compiled stack; on a CPU this needs a C++ compiler."}
    )
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self):
        unknown = [name for name in self.experiments if name not in SETTINGS]
        if unknown or not self.experiments:
            raise ValueError(f"`experiments` must be one or more of {', '.join(SETTINGS)}, got {self.experiments}.")
        check_positive(self, "models", "rounds", "steps")
        check_device(self.device)
        make_folder_of(self.output)


@dataclass
class Way:
    """What to train: models, `loss(model or forward, *batch)`, and one batch per model."""

    models: list[nn.Module]
    loss: Callable
    batches: list[tuple[torch.Tensor, ...]]
    chunk_size: int | None = None


def prepare_momentum(options, fields: dict, arguments: StackingArguments) -> tuple[Way, Way]:
    """The same models twice: one at a time, and stacked."""
    options = options(torch_compile=arguments.torch_compile, device=arguments.device)
    seeds = range(arguments.models)
    models = [small_momentum(options, seed, options.vocab_size, options.length, 1.0, 1, **fields) for seed in seeds]
    models = [model.to(arguments.device) for model in models]
    batches = [answers_of(*options.draw(options.batch_size, seed=seed), arguments.device) for seed in seeds]
    return Way(copy.deepcopy(models), answer_loss, batches), Way(models, answer_loss, batches)


def full_pass_loss(model: nn.Module, input_ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(input_ids, use_cache=False).logits[:, -1], answers)


def prepare_grokking(arguments: StackingArguments) -> tuple[Way, Way]:
    """Full models, one at a time, and the stack of their read-outs."""
    options = grokking.Arguments(device=arguments.device)
    input_ids, answers = (tensor.to(arguments.device) for tensor in make_table(options.table, options.modulus))
    read_outs, full_batches, batches = [], [], []
    for seed in range(arguments.models):
        read_outs.append(grokking.build(options, "sphere", seed).to(arguments.device))
        rows = split_table(len(answers), options.train_fraction, seed)[0].to(arguments.device)
        full_batches.append((input_ids[rows], answers[rows]))
        batches.append((input_ids[rows, :2], answers[rows]))
    alone = [copy.deepcopy(read_out.causal_lm) for read_out in read_outs]
    chunk_size = grokking.chunk_size(arguments.device)
    return Way(alone, full_pass_loss, full_batches), Way(read_outs, grokking.read_out_loss, batches, chunk_size)


SETTINGS = {
    "induction": functools.partial(prepare_momentum, induction.Arguments, {"momentum_streams": "k"}),
    "recall": functools.partial(prepare_momentum, recall_scaling.Arguments, {}),
    "grokking": prepare_grokking,
}


def prepare_alone(way: Way, steps: int) -> Callable[[], None]:
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True) for model in way.models]

    def run():
        for model, optimizer, batch in zip(way.models, optimizers, way.batches):
            for _ in range(steps):
                way.loss(model, *batch).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return run


def prepare_stack(stack: Stack, batches: list[tuple], steps: int) -> Callable[[], None]:
    batch = tuple(torch.stack(parts) for parts in zip(*batches))

    def run():
        for _ in range(steps):
            stack.step(*batch)

    return run


def measure(ways: dict[str, Callable[[], None]], arguments: StackingArguments) -> dict[str, dict]:
    """Times every way in interleaved rounds; returns, per way, the spread of seconds, rate and ratio."""
    synchronize = make_synchronize(torch.device(arguments.device))
    # The first call of a compiled stack times the compiler.
    for run in ways.values():
        run()
    rounds = {name: [] for name in ways}
    for name in interleaved(list(ways), arguments.rounds):
        synchronize()
        start = time.perf_counter()
        ways[name]()
        synchronize()
        rounds[name].append(time.perf_counter() - start)
    seed_steps = arguments.models * arguments.steps
    return {
        name: {
            "seconds": spread(seconds),
            "seed_steps_per_second": spread([seed_steps / value for value in seconds]),
            "ratio": compare(seconds, rounds[ALONE]),
        }
        for name, seconds in rounds.items()
    }


def run_benchmark(arguments: StackingArguments) -> dict:
    """
    Measures all experiments and writes the result to `arguments.output`, if set.

    Returns:
        `header` (machine and versions), `arguments`, `reference` and `experiments` (per name: parameters of one model
        and, in `ways`, medians, extremes and ratios).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    header = describe_run(arguments.device)
    experiments = {}
    for name in arguments.experiments:
        alone, stacked = SETTINGS[name](arguments)
        ways = {ALONE: prepare_alone(alone, arguments.steps)}
        for way in (STACKED, COMPILED) if arguments.torch_compile else (STACKED,):
            stack = Stack(
                stacked.models,
                stacked.loss,
                learning_rate=LEARNING_RATE,
                chunk_size=stacked.chunk_size,
                compile=way == COMPILED,
            )
            ways[way] = prepare_stack(stack, stacked.batches, arguments.steps)
        experiments[name] = {
            "parameters": sum(parameter.numel() for parameter in alone.models[0].parameters()),
            "ways": measure(ways, arguments),
        }
    torch.set_num_threads(threads)
    result = {"header": header, "arguments": asdict(arguments), "reference": ALONE, "experiments": experiments}
    write_result(result, arguments.output)
    return result


def format_report(result: dict) -> str:
    """The result of `run_benchmark` as markdown: a header and a table."""
    arguments = result["arguments"]
    lines = [f"- {key}: {value}" for key, value in result["header"].items()]
    lines += ["- " + ", ".join(f"{option} {arguments[option]}" for option in ("models", "rounds", "steps"))]
    lines += [f"- medians of {arguments['rounds']} rounds; ratios to {result['reference']}: median (min to max)", ""]
    cells = [
        [name, way, f"{experiment['parameters']:,}", f"{entry['seed_steps_per_second']['median']:,.1f}"]
        + [format_ratio(entry["ratio"])]
        for name, experiment in result["experiments"].items()
        for way, entry in experiment["ways"].items()
    ]
    heads = ["experiment", "trained", "parameters per model", "seed-steps/s", "ratio"]
    return "\n".join(lines) + "\n" + make_text_table(heads, cells, text=2).strip()


def main(argv: list[str]) -> None:
    parser = CommandParser(StackingArguments, prog="python -m training.benchmarks.stacking")
    (arguments,) = parser.parse(argv)
    print(format_report(run_benchmark(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
