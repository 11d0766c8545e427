"""
What keeps Prism behind its own body with ordinary attention? Its step size, its rotary values, its circuits and the
weights of its heads, one change at a time.

```bash
python -m training.experiments prism_steps --dataset_name FOLDER
```
"""

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import pretrain
from training.data import load_texts, make_blocks, train_tokenizer
from training.experiments.common.arguments import (
    CorpusArguments,
    check_arms,
    check_positive,
    check_rates,
    check_seeds,
    settings_of,
)
from training.experiments.common.jobs import run_jobs, stored_rows, write_results
from training.experiments.prism_steps.arms import ARMS
from training.experiments.prism_steps.modeling import PrismStepsConfig
from training.metrics import score_tokens
from training.ngrams import count_ngrams
from training.options import parse_arguments
from training.tasks import Blocks


@dataclass
class Arguments(CorpusArguments):
    """Which arms, and how many runs of each."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Names of `arms.py`."})
    learning_rates: list[float] = field(default_factory=lambda: [3e-3], metadata={"help": "Peak rates of every arm."})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Of the initial weights and the order of the data."}
    )
    hidden_size: int = field(default=96, metadata={"help": "Width; the MLP has four times that."})
    num_hidden_layers: int = field(default=3, metadata={"help": "Blocks."})
    block_size: int = field(default=128, metadata={"help": "Tokens in a training example."})
    max_steps: int = field(default=2400, metadata={"help": "Steps of 8 examples: 2.46 M tokens."})

    def __post_init__(self):
        check_arms(self, ARMS)
        check_rates(self, "learning_rates")
        check_seeds(self)
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
            # One half to choose by, the other to report.
            "num_validation_stories": 496,
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


def unseen_blocks(data_arguments, tokenizer) -> Blocks:
    """The validation stories that `training.pretrain`, which is given the first of them, has not scored."""
    every = load_texts(dataclasses.replace(data_arguments, num_validation_stories=None))["validation"]
    unseen = every.select(range(data_arguments.num_validation_stories, len(every)))
    return make_blocks(DatasetDict(train=unseen, validation=unseen), tokenizer, data_arguments)


def floor(order: int, arguments: Arguments, command: list[str], tokenizer_name: Path) -> dict:
    """Both scores of a Kneser-Ney model that has counted as many tokens as the arms are trained on."""
    _, data_arguments, training_arguments = parse_arguments(command)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    num_tokens = arguments.max_steps * training_arguments.train_batch_size * arguments.block_size
    blocks = make_blocks(load_texts(data_arguments), tokenizer, data_arguments)
    model = count_ngrams(blocks, order, num_tokens)
    return {
        "tokens_seen": num_tokens,
        "bits_per_byte": model.bits_per_byte(blocks),
        "bits_per_byte_to_report": model.bits_per_byte(unseen_blocks(data_arguments, tokenizer)),
    }


def run_job(arguments: Arguments, job: tuple[str, float, int], stem: Path) -> list[dict]:
    """Trains one model and scores it."""
    arm, learning_rate, seed = job
    command = arguments.command(arm, learning_rate, seed, stem)
    if ARMS[arm].ngram:
        return [{"arm": arm, **floor(ARMS[arm].ngram, arguments, command, stem.parent / "tokenizer")}]
    result = pretrain.main(command)
    del result["saved_in"]
    _, data_arguments, _ = parse_arguments(command)
    tokenizer = AutoTokenizer.from_pretrained(stem)
    model = AutoModelForCausalLM.from_pretrained(stem).eval()
    unseen = unseen_blocks(data_arguments, tokenizer)
    with torch.no_grad():
        batches = torch.tensor(unseen.validation["input_ids"]).split(16)
        scores = torch.cat([score_tokens(model(batch, use_cache=False).logits, batch) for batch in batches])
    nats = scores[..., 0].mean().item()
    result["bits_per_byte_to_report"] = nats / math.log(2) / unseen.validation_bytes_per_token
    torch.manual_seed(seed)
    untrained = AutoModelForCausalLM.from_config(model.config).eval()
    if getattr(model.config, "noise_coefficient", -1) >= 0:
        untrained.set_noise_coefficient(0.01)
    text = load_texts(data_arguments)["validation"]["text"][0]
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : arguments.block_size]
    ratios = {"branch_ratio": branch_ratio(untrained, ids), "branch_ratio_trained": branch_ratio(model, ids)}
    return [{"arm": arm, "learning_rate": learning_rate, **result, **ratios}]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what neither `results` nor `folder` has, and adds its rows to `results`."""
    settings = settings_of(arguments, "arms", "learning_rates", "seeds")
    stored = stored_rows(results, settings)
    # A floor has neither a rate nor a seed.
    done = {(row["arm"], row.get("learning_rate"), row.get("seed")) for row in stored}
    jobs = {
        f"{arm}-lr{rate:g}-seed{seed}": (arm, rate, seed)
        for seed in arguments.seeds
        for rate in arguments.learning_rates
        for arm in arguments.arms
        if not {(arm, rate, seed), (arm, None, None)} & done
        and (not ARMS[arm].ngram or (seed, rate) == (arguments.seeds[0], arguments.learning_rates[0]))
    }
    if jobs and not Path(folder, "tokenizer").is_dir():
        _, data_arguments, _ = parse_arguments(
            [arguments.recipe, "--dataset_name", arguments.dataset_name, "--num_train_stories", "19620"]
        )
        train_tokenizer(load_texts(data_arguments)["train"], 2048).save_pretrained(folder / "tokenizer")
    rows = stored + run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    # Within an arm, the first seed comes first: it decides the rate.
    order = list(ARMS)
    rows.sort(key=lambda row: (order.index(row["arm"]), row.get("seed", 0), row.get("learning_rate", 0)))
    write_results(results, rows, settings)
