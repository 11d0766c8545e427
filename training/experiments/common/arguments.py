"""The options that experiments share, and what is refused before any worker starts."""

import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, field

import torch

from training.command import CommandParser


def parse(name: str, argv: list[str], *arguments: type, **options) -> tuple:
    """Reads the options of `python -m training.experiments NAME`. Unknown and abbreviated options are refused."""
    prog = f"python -m training.experiments {name}".strip()
    return CommandParser(arguments, prog=prog, **options).parse(argv)


def check_device(device: str) -> None:
    """Refuses anything but a CPU and a GPU that torch finds."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"`device` must be 'cpu', 'cuda' or 'cuda:1', ..., got {device!r}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"`device`={device!r}, but torch finds no GPU here: leave the option out to run on the CPU.")


def check_compiler(device: str) -> None:
    """Refuses to compile for a CPU without a C++ compiler."""
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        raise ValueError(
            "`torch_compile` needs a C++ compiler and found neither g++ nor clang++: install one, or leave the option "
            "out."
        )


def check_positive(options, *names: str) -> None:
    """Refuses whole numbers below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")


def check_lists(options, *names: str) -> None:
    """Refuses lists that are empty or hold a value twice."""
    for name in names:
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must hold one or more values, all different, got {values}.")


def check_rates(options, *names: str) -> None:
    """Refuses numbers, alone or in a list, that are not positive and finite."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, list):
            check_lists(options, name)
        for rate in value if isinstance(value, list) else [value]:
            if not 0 < rate < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {rate}.")


def check_seeds(options) -> None:
    """`check_lists` of `seeds`, which random generators must accept."""
    check_lists(options, "seeds")
    for seed in options.seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"`seeds` must lie between 0 and 2**32 - 1, got {seed}.")


def check_arms(options, known) -> None:
    """`check_lists` of `arms`, which must be `known`."""
    check_lists(options, "arms")
    unknown = [arm for arm in options.arms if arm not in known]
    if unknown:
        raise ValueError(f"`arms` has unknown names {unknown}; known are {', '.join(known)}.")


@dataclass
class ReportArguments:
    """Options of every experiment's report."""

    report: bool = field(
        default=False, metadata={"help": "Rebuild tables, figures and README from the stored results; train nothing."}
    )
    results_dir: str | None = field(
        default=None, metadata={"help": "Folder of results, tables and figures. Default: the experiment's own."}
    )


@dataclass
class CommandArguments(ReportArguments):
    """Options of every experiment that its results do not depend on."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of finished jobs and checkpoints. Default: outputs/NAME."}
    )
    jobs: int = field(
        default_factory=lambda: os.cpu_count() or 1, metadata={"help": "Processes, one thread each; 1 on a GPU."}
    )

    def __post_init__(self):
        check_positive(self, "jobs")


@dataclass
class CorpusArguments:
    """Options of experiments that train through `training.pretrain`."""

    dataset_name: str = field(
        default="roneneldan/TinyStories",
        metadata={"help": "A local folder with train.txt and valid.txt, or a hub name."},
    )
    recipe: str = field(
        default="configuration/recipes/tinystories_2m.yaml", metadata={"help": "What all arms have in common."}
    )


@dataclass
class SmallRunArguments:
    """Options of experiments on small Momentum models and synthetic tasks."""

    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 4e-3], metadata={"help": "Grid of every arm, run with the first seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Initialisation and data. All but the first run at their arm's best learning rate."},
    )
    batch_size: int = field(default=32, metadata={"help": "Sequences per step; none is seen twice."})
    max_steps: int = field(default=1200, metadata={"help": "Steps of every run."})
    eval_steps: int = field(default=50, metadata={"help": "Steps between two tests."})
    save_steps: int = field(default=250, metadata={"help": "Steps between two checkpoints of a running job."})
    test_examples: int = field(default=256, metadata={"help": "Sequences of the test, the same for all runs."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the models; their MLP has twice that."})
    num_attention_heads: int = field(default=2, metadata={"help": "Heads per layer."})
    initializer_range: float = field(
        default=0.05, metadata={"help": "Standard deviation of the first weights; at 0.02 two layers learn late."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the stacks: pays in long runs; takes a C++ compiler on a CPU."}
    )
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'."})

    def __post_init__(self):
        check_positive(self, "batch_size", "max_steps", "eval_steps", "save_steps", "test_examples")
        check_positive(self, "hidden_size", "num_attention_heads")
        if self.max_steps % self.eval_steps:
            raise ValueError(
                f"`max_steps`={self.max_steps} must be a multiple of `eval_steps`={self.eval_steps}, so that the last "
                "test sees the trained model."
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"`hidden_size`={self.hidden_size} must be a multiple of 2 * `num_attention_heads`="
                f"{2 * self.num_attention_heads}: RoPE turns pairs within a head."
            )
        if self.torch_compile:
            check_compiler(self.device)
        check_device(self.device)
        check_seeds(self)
        check_rates(self, "learning_rates", "initializer_range")


def settings_of(arguments, *apart: str) -> dict:
    """The options that results depend on: all but `apart` and those that only say how to compute."""
    return {
        name: value
        for name, value in asdict(arguments).items()
        if name not in (*apart, "device", "torch_compile", "save_steps")
    }
