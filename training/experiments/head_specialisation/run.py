"""
Does training make signal heads long-range and low-frequency, and noise heads local and high-frequency, beyond what
pi-RoPE imposes by construction? Small Prism models, each beside its untrained copy.

```bash
python -m training.experiments head_specialisation --dataset_name FOLDER
```
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_prism.analysis import untrained_copy
from training import pretrain
from training.data import load_texts
from training.experiments.common.arguments import CorpusArguments, check_arms, check_positive, check_seeds, settings_of
from training.experiments.common.jobs import run_jobs, write_results
from training.experiments.head_specialisation.arms import ARMS
from training.experiments.head_specialisation.measure import choose_windows, equal_bases, measure_heads
from training.loading import load_config
from training.options import parse_arguments


@dataclass
class Arguments(CorpusArguments):
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

    def __post_init__(self):
        check_arms(self, ARMS)
        check_seeds(self)
        check_positive(self, "max_steps", "num_windows")

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


def run_job(arguments: Arguments, job: tuple[str, int], stem: Path) -> list[dict]:
    """Trains one model, and measures its heads and those of its untrained copy."""
    arm, seed = job
    command = arguments.command(arm, seed, stem)
    # A run that was finished but not measured is read back, not repeated.
    result = pretrain.main(command)
    del result["saved_in"]
    _, data_arguments, training_arguments = parse_arguments(command)
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


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and writes all rows to `results`."""
    jobs = {f"{arm}-seed{seed}": (arm, seed) for arm in arguments.arms for seed in arguments.seeds}
    # Mistakes that every run would share are refused before any starts; and the texts are in the cache for all.
    if not all((folder / f"{name}.json").is_file() for name in jobs):
        for name, job in jobs.items():
            model_arguments, data_arguments, _ = parse_arguments(arguments.command(*job, folder / name))
            load_config(model_arguments)
        load_texts(data_arguments)
    settings = settings_of(arguments, "arms", "seeds")
    rows = run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    write_results(results, rows, settings)
