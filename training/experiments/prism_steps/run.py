"""
What keeps Prism behind its own body with ordinary attention? Its step size, its rotary values, its circuits and the
weights of its heads, one change at a time.

```bash
python -m training.experiments prism_steps --dataset_name FOLDER
```
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import pretrain
from training.data import load_texts, train_tokenizer
from training.evaluate import score_blocks
from training.experiments.common.arguments import check_arms, check_positive, settings_of
from training.experiments.common.jobs import run_jobs, stored_rows, write_results
from training.experiments.common.stories import Grid, bits_per_byte, count_floor, halves, in_order, missing
from training.experiments.prism_steps.arms import ARMS
from training.experiments.prism_steps.modeling import PrismStepsConfig
from training.options import parse_arguments


@dataclass
class Arguments(Grid):
    """Which arms, and how many runs of each."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Names of `arms.py`."})
    hidden_size: int = field(default=96, metadata={"help": "Width; the MLP has four times that."})
    num_hidden_layers: int = field(default=3, metadata={"help": "Blocks."})
    block_size: int = field(default=128, metadata={"help": "Tokens in a training example."})
    max_steps: int = field(default=2400, metadata={"help": "Steps of 8 examples: 2.46 M tokens."})

    def __post_init__(self):
        super().__post_init__()
        check_arms(self, ARMS)
        check_positive(self, "hidden_size", "num_hidden_layers", "block_size", "max_steps")

    def command(self, arm: str, learning_rate: float, seed: int, output_dir: Path) -> list[str]:
        """The words after `python -m training.pretrain` that train one model."""
        shape = {
            "hidden_size": self.hidden_size,
            "intermediate_size": 4 * self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
        }
        preset = ARMS[arm].preset
        if preset is None and not ARMS[arm].ngram:
            # The preset of a model that training.pretrain can read: a folder with its config.
            shape |= {"vocab_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 256}
            model = output_dir.parent / "configs" / output_dir.name
            PrismStepsConfig(**{**shape, **ARMS[arm].fields}).save_pretrained(model)
            overrides = ""
        else:
            model = Path("configuration/models", preset or "prism-tiny")
            overrides = ",".join(f"{name}={value}" for name, value in {**shape, **ARMS[arm].fields}.items())
        options = {
            "model_config": model,
            "config_overrides": overrides,
            "dataset_name": self.dataset_name,
            "tokenizer_name": output_dir.parent / "tokenizer",
            "num_train_stories": 19620,
            "block_size": self.block_size,
            "max_steps": self.max_steps,
            "warmup_steps": self.max_steps // 10,
            "learning_rate": learning_rate,
            "seed": seed,
            "output_dir": output_dir,
            "save_strategy": "steps",
            "save_steps": 400,
            "save_total_limit": 1,
            # Two runs write to one terminal.
            "disable_tqdm": True,
            "logging_steps": 100,
            "sample_max_new_tokens": 0,
        }
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        return [self.recipe, *words]


def branch_ratio(model, input_ids: torch.Tensor) -> list[float]:
    """|what attention adds| / |residual stream it is added to|, both root mean squares, of each layer."""
    ratios, attentions = [], []
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    handles = []
    for layer in layers:
        attention = next(part for name, part in layer.named_children() if "att" in name and "norm" not in name)
        handles.append(layer.register_forward_pre_hook(lambda module, inputs: ratios.append(inputs[0])))
        handles.append(attention.register_forward_hook(lambda module, inputs, output: attentions.append(output[0])))
    with torch.no_grad():
        model(input_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return [
        float(added.pow(2).mean().sqrt() / stream.pow(2).mean().sqrt()) for stream, added in zip(ratios, attentions)
    ]


def run_job(arguments: Arguments, job: tuple[str, float, int], stem: Path) -> list[dict]:
    """Trains one model and scores it."""
    arm, learning_rate, seed = job
    command = arguments.command(arm, learning_rate, seed, stem)
    if ARMS[arm].ngram:
        return [{"arm": arm, **count_floor(ARMS[arm].ngram, command, stem.parent / "tokenizer")}]
    result = pretrain.main(command)
    del result["saved_in"]
    _, data_arguments, _ = parse_arguments(command)
    tokenizer = AutoTokenizer.from_pretrained(stem)
    model = AutoModelForCausalLM.from_pretrained(stem).eval()
    choose, report = halves(data_arguments, tokenizer)
    scores = {
        "bits_per_byte": bits_per_byte(score_blocks(model, choose), choose),
        "bits_per_byte_to_report": bits_per_byte(score_blocks(model, report), report),
    }
    torch.manual_seed(seed)
    untrained = AutoModelForCausalLM.from_config(model.config).eval()
    if getattr(model.config, "noise_coefficient", -1) >= 0:
        untrained.set_noise_coefficient(0.01)
    text = load_texts(data_arguments)["validation"]["text"][0]
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : arguments.block_size]
    ratios = {"branch_ratio": branch_ratio(untrained, ids), "branch_ratio_trained": branch_ratio(model, ids)}
    return [{"arm": arm, "learning_rate": learning_rate, **result, **scores, **ratios}]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what neither `results` nor `folder` has, and adds its rows to `results`."""
    settings = settings_of(arguments, "arms", "learning_rates", "seeds")
    stored = stored_rows(results, settings)
    jobs = missing(arguments, ARMS, stored)
    if jobs and not Path(folder, "tokenizer").is_dir():
        _, data_arguments, _ = parse_arguments(
            [arguments.recipe, "--dataset_name", arguments.dataset_name, "--num_train_stories", "19620"]
        )
        train_tokenizer(load_texts(data_arguments)["train"], 2048).save_pretrained(folder / "tokenizer")
    rows = stored + run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    write_results(results, in_order(rows, ARMS), settings)
