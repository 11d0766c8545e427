"""
Experiments on stories: one model for each arm, learning rate and seed. Rates are chosen on one half of the validation
stories and reported on the other; n-gram models of as many tokens are the floor.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from training.data import DataArguments, load_data, load_texts, make_blocks
from training.experiments.common.arguments import CorpusArguments, check_rates, check_seeds
from training.experiments.common.statistics import at_best_rate, by_arm, interval_of_mean
from training.ngrams import count_ngrams
from training.options import parse_arguments
from training.tasks import Blocks


@dataclass
class Grid(CorpusArguments):
    """Options of experiments that add to their results: every arm at these rates with these seeds."""

    learning_rates: list[float] = field(default_factory=lambda: [3e-3], metadata={"help": "Peak rates of every arm."})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Of the initial weights and the order of the data."}
    )

    def __post_init__(self):
        check_rates(self, "learning_rates")
        check_seeds(self)


def missing(arguments: Grid, arms: dict, stored: list[dict]) -> dict[str, tuple[str, float, int]]:
    """The jobs, by name, whose rows are not stored. A floor has neither a rate nor a seed, and is counted once."""
    done = {(row["arm"], row.get("learning_rate"), row.get("seed")) for row in stored}
    first = arguments.learning_rates[0], arguments.seeds[0]
    return {
        f"{arm}-lr{rate:g}-seed{seed}": (arm, rate, seed)
        for seed in arguments.seeds
        for rate in arguments.learning_rates
        for arm in arguments.arms
        if not {(arm, rate, seed), (arm, None, None)} & done and (not arms[arm].ngram or (rate, seed) == first)
    }


def in_order(rows: list[dict], arms: dict) -> list[dict]:
    """Rows by arm; within an arm the first seed comes first, which decides the rate."""
    order = list(arms)
    return sorted(rows, key=lambda row: (order.index(row["arm"]), row.get("seed", 0), row.get("learning_rate", 0)))


def halves(data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[Blocks, Blocks]:
    """The validation stories in two halves: one to choose by, one to report."""
    stories = load_texts(dataclasses.replace(data, num_validation_stories=None))["validation"]
    middle = len(stories) // 2
    parts = (stories.select(part) for part in (range(middle), range(middle, len(stories))))
    return tuple(make_blocks(DatasetDict(train=part, validation=part), tokenizer, data) for part in parts)


def bits_per_byte(nats: np.ndarray, blocks: Blocks) -> float:
    """Of nats per token, whatever their shape."""
    return float(nats.mean()) / math.log(2) / blocks.validation_bytes_per_token


def count_floor(order: int, command: list[str], tokenizer: str | Path | None = None) -> dict:
    """Both scores of a Kneser-Ney model that counts as many tokens as `training.pretrain` with `command` reads."""
    _, data, training = parse_arguments(command)
    num_tokens = training.max_steps * training.train_batch_size * data.block_size
    tokenizer, blocks = load_data(data, training.seed, tokenizer and str(tokenizer))
    model = count_ngrams(blocks, order, num_tokens)
    choose, report = map(model.bits_per_byte, halves(data, tokenizer))
    return {"tokens_seen": num_tokens, "bits_per_byte": choose, "bits_per_byte_to_report": report}


# From rows to numbers


def bits(rows: list[dict]) -> list[float]:
    """Bits per byte of the second half, which chooses nothing."""
    return [row["bits_per_byte_to_report"] for row in rows]


def at_best(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm at the rate that is best on the first half of the validation stories, best arms first."""
    best = {
        arm: at_best_rate(runs, "bits_per_byte", min) if "seed" in runs[0] else runs
        for arm, runs in by_arm(rows).items()
    }
    return dict(sorted(best.items(), key=lambda item: np.mean(bits(item[1]))))


def best_rate(rows: list[dict], arm: str) -> str:
    """The best rate of an arm; with an asterisk where it lies at an end of the grid."""
    grid = sorted({row["learning_rate"] for row in rows if row["arm"] == arm})
    rate = at_best(rows)[arm][0]["learning_rate"]
    return f"{rate:g}" + ("\\*" if rate in (grid[0], grid[-1]) else "")


def above(runs: list[dict], control: list[dict]) -> list[float]:
    """Bits per byte above those of the control, paired by seed."""
    of_control = {row["seed"]: row["bits_per_byte_to_report"] for row in control}
    return [row["bits_per_byte_to_report"] - of_control[row["seed"]] for row in runs if row["seed"] in of_control]


def standing(distances: list[float]) -> str:
    """What so many paired seeds can carry: the sign of one, the interval of several."""
    low, high = interval_of_mean(distances) or distances * 2
    return "ahead of" if high < 0 else "behind" if low > 0 else "level with"
