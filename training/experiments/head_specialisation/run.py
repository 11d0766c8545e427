"""
Does training make signal heads long-range and low-frequency, and noise heads local and high-frequency, beyond what
pi-RoPE imposes by construction? Small Prism models, each beside its untrained copy. Finished runs are kept, so a
stopped experiment goes on where it was.

```bash
python -m training.experiments.head_specialisation --dataset_name FOLDER
```
"""

import functools
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from modeling_prism.analysis import untrained_copy
from training import pretrain
from training.data import load_texts
from training.experiments.head_specialisation.arms import ARMS
from training.experiments.head_specialisation.measure import choose_windows, equal_bases, measure_heads
from training.experiments.head_specialisation.report import write_report
from training.experiments.small_runs import (
    CorpusArguments,
    check_arms,
    check_lists,
    check_positive,
    run_jobs,
    write_results,
)


@dataclass
class HeadSpecialisationArguments(CorpusArguments):
    """Which arms, and how many runs of each."""

    config_overrides: str = field(
        default="hidden_size=128,intermediate_size=512",
        metadata={"help": "Changes to the recipe's model that all arms share, 'key=value,key=value'."},
    )
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Of the initial weights and the order of the data."}
    )
    max_steps: int = field(default=400, metadata={"help": "Steps of every run."})
    num_windows: int = field(default=64, metadata={"help": "Validation stories whose beginnings heads are shown."})
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1, metadata={"help": "Processes, one thread each."})
    output_dir: str = field(default="outputs/head_specialisation", metadata={"help": "Where the runs go."})
    results_dir: str = field(
        default=str(Path(__file__).parent), metadata={"help": "Where results.jsonl, table.md and the plots go."}
    )

    def __post_init__(self):
        check_arms(self, ARMS)
        check_lists(self, "seeds")
        check_positive(self, "max_steps", "num_windows", "jobs")

    def command(self, arm: str, seed: int, output_dir: Path) -> list[str]:
        """The words after `python -m training.pretrain` that train one model."""
        fields = [f"{name}={value!r}" for name, value in ARMS[arm].fields.items()]
        options = {
            "dataset_name": self.dataset_name,
            "config_overrides": ",".join(filter(None, [self.config_overrides, *fields])),
            "noise_coefficient_start": ARMS[arm].lambda_start,
            "noise_coefficient_end": ARMS[arm].lambda_end,
            "max_steps": self.max_steps,
            "seed": seed,
            "output_dir": output_dir,
            # Two runs write to one terminal.
            "disable_tqdm": True,
            "sample_max_new_tokens": 0,
        }
        return [self.recipe, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def run_one(arguments: HeadSpecialisationArguments, job: tuple[str, int], stem: Path) -> list[dict]:
    """Trains one model, and measures its heads and those of its untrained copy."""
    arm, seed = job
    command = arguments.command(arm, seed, stem)
    # A run that was finished but not measured is read back, not repeated.
    result = pretrain.main(command)
    del result["saved_in"]
    _, data_arguments, training_arguments = pretrain.parse_arguments(command)
    tokenizer = AutoTokenizer.from_pretrained(stem)
    texts = load_texts(data_arguments)["validation"]["text"]
    windows = choose_windows(tokenizer, texts, data_arguments.block_size, arguments.num_windows)
    model = AutoModelForCausalLM.from_pretrained(stem)
    with equal_bases(model):
        weights_alone = measure_heads(model, windows)
    row = {
        "arm": arm,
        "learning_rate": training_arguments.learning_rate,
        **result,
        "noise_coefficient": model.config.noise_coefficient,
        "num_signal_heads": model.config.num_signal_heads,
        "windows": len(windows),
        "window_length": len(windows[0]),
        "trained": measure_heads(model, windows),
        "trained, equal bases": weights_alone,
        # The weights that the run began with, at the lambda that it ended with: only weights differ.
        "untrained": measure_heads(untrained_copy(model, seed), windows),
    }
    return [row]


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(HeadSpecialisationArguments).parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    folder = Path(arguments.output_dir)
    jobs = {f"{arm}-seed{seed}": (arm, seed) for arm in arguments.arms for seed in arguments.seeds}
    # What all runs would stumble over is found before any of them starts, and the texts are in the cache for all.
    if not all((folder / f"{name}.json").is_file() for name in jobs):
        for name, job in jobs.items():
            model_arguments, data_arguments, _ = pretrain.parse_arguments(arguments.command(*job, folder / name))
            pretrain.load_config(model_arguments)
        load_texts(data_arguments)
    apart = ("arms", "seeds", "output_dir", "results_dir", "jobs")
    settings = {key: value for key, value in asdict(arguments).items() if key not in apart}
    rows = run_jobs(functools.partial(run_one, arguments), jobs, folder, settings, arguments.jobs)

    results = Path(arguments.results_dir)
    write_results(results, rows, settings)
    print(write_report(results))


if __name__ == "__main__":
    main()
