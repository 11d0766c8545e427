"""
Measures what models of stories can do: bits per byte, story endings, agreement, and who owned what.

```bash
python -m training.evaluate outputs/quickstart outputs/llama --dataset_name FOLDER
```
"""

import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.bindings import answers_right
from training.command import CommandParser, run
from training.data import DataArguments, load_texts, make_blocks
from training.loading import load_model_and_tokenizer
from training.metrics import score_tokens
from training.tasks import Blocks
from training.tasks.arithmetic import reads_a_table
from training.tasks.stories import Probe, tell


# Singular and plural, subjects and the things near them.
NOUNS = {"dog": "dogs", "cat": "cats", "bird": "birds", "boy": "boys", "girl": "girls", "car": "cars", "toy": "toys"}
PLACES = {"tree": "trees", "house": "houses", "ball": "balls", "box": "boxes"}
PEOPLE = {"Lily": "she", "Mia": "she", "Sue": "she", "Anna": "she", "Tom": "he", "Tim": "he", "Ben": "he", "Max": "he"}
ENDINGS = 4


@dataclass
class EvaluateArguments:
    """Options for the questions."""

    num_questions: int = field(default=300, metadata={"help": "Maximum number of questions of each kind."})
    seed: int = field(default=1, metadata={"help": "Seed of the wrong endings and of the stories about bindings."})

    def __post_init__(self):
        if self.num_questions < 1:
            raise ValueError(f"`num_questions` must be at least 1, got {self.num_questions}.")


def endings(stories: list[str], seed: int) -> Iterator[Probe]:
    """A story without its last sentence; its own last sentence against those of three other stories."""
    parts = [re.fullmatch(r"(.*[.!?][\"']?)(\s+[^.!?]+[.!?][\"']?)", story.strip(), re.DOTALL) for story in stories]
    parts = [part.groups() for part in parts if part]
    if len(parts) < ENDINGS:
        raise ValueError(
            f"The validation part has {len(parts)} stories that end in a sentence; endings need {ENDINGS} or more."
        )
    generator = random.Random(seed)
    for index, (begin, end) in enumerate(parts):
        others = generator.sample(parts[:index] + parts[index + 1 :], ENDINGS - 1)
        yield Probe("ending", begin, end, tuple(other for _, other in others))


def agreements() -> Iterator[Probe]:
    """Number, also across a noun of the other number, and the pronouns of names; chance is 1/2."""
    for one, many in NOUNS.items():
        yield Probe("number", f"Once upon a time, the {one}", " was", (" were",))
        yield Probe("number", f"Once upon a time, the {many}", " were", (" was",))
        yield Probe("determiner", "Mom looked at these", f" {many}", (f" {one}",))
        yield Probe("determiner", "Mom looked at this", f" {one}", (f" {many}",))
        for place, places in PLACES.items():
            yield Probe("number, a noun between", f"Once upon a time, the {one} near the {places}", " was", (" were",))
            yield Probe("number, a noun between", f"Once upon a time, the {many} near the {place}", " were", (" was",))
    for name, pronoun in PEOPLE.items():
        other = {"she": " he", "he": " she"}[pronoun]
        yield Probe("pronoun", f"One day, {name} went to the park because", f" {pronoun}", (other,))
        yield Probe("pronoun", f"{name} was very happy. Then", f" {pronoun}", (other,))


def bindings(num_stories: int, seed: int) -> Iterator[Probe]:
    """The questions of built-in stories: who owned what, who said what."""
    for index in range(num_stories):
        yield from tell((seed << 32) + index, "validation").questions


@torch.no_grad()
def score_blocks(model: PreTrainedModel, blocks: Blocks, progress: bool = True) -> np.ndarray:
    """Nats of each validation token but the first of its block (N, tokens - 1)."""
    batches = torch.tensor(blocks.validation["input_ids"]).split(16)
    batches = tqdm(batches, desc="Scoring", disable=not progress)
    nats = [score_tokens(model(batch, use_cache=False).logits, batch)[..., 0] for batch in batches]
    return torch.cat(nats).double().numpy()


def share_of(outcomes: list[bool]) -> dict:
    """The share of right answers with its 95 % interval (Wilson, 1927)."""
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
    share = sum(outcomes) / len(outcomes)
    return {"value": share, "low": interval.low, "high": interval.high, "questions": len(outcomes)}


def evaluate_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: DataArguments, questions: EvaluateArguments
) -> dict[str, dict]:
    """
    Measures one model.

    Returns:
        for each measure its `value` and the `low` and `high` end of its 95 % interval: `bits_per_byte` of the
        validation stories (bootstrap over blocks), and shares of right answers with their `chance` and the number of
        `questions`. An answer is right if the model gives it the highest probability, for endings per token.
    """
    texts = load_texts(data)
    # Nothing is trained: only the validation part is tokenised.
    texts["train"] = texts["validation"]
    blocks = make_blocks(texts, tokenizer, data)
    bits = score_blocks(model, blocks).mean(1) / (math.log(2) * blocks.validation_bytes_per_token)
    if len(bits) < 2:
        raise ValueError(
            f"The validation part has one block of `block_size`={data.block_size}, too little for an interval: give "
            "more stories or a smaller `block_size`."
        )
    interval = bootstrap((bits,), np.mean, rng=0, method="percentile").confidence_interval
    results = {"bits_per_byte": {"value": bits.mean(), "low": interval.low, "high": interval.high}}
    probes = {
        "endings": list(endings(texts["validation"]["text"], questions.seed))[: questions.num_questions],
        "agreement": [probe for probe in agreements() if "between" not in probe.kind],
        "agreement_across_a_noun": [probe for probe in agreements() if "between" in probe.kind],
        "bindings": list(bindings(questions.num_questions, questions.seed))[: questions.num_questions],
    }
    for kind, asked in probes.items():
        outcomes = [
            answers_right(model, tokenizer, probe, per_token=kind == "endings") for probe in tqdm(asked, desc=kind)
        ]
        chance = float(np.mean([1 / (1 + len(probe.wrong_answers)) for probe in asked]))
        results[kind] = {**share_of(outcomes), "chance": chance}
    return results


def main(argv: list[str] | None = None) -> dict[str, dict[str, dict]]:
    parser = CommandParser((DataArguments, EvaluateArguments), prog="python -m training.evaluate")
    parser.add_argument("models", nargs="+", help="Folders or hub names of trained models.")
    data, questions, rest = parser.parse(sys.argv[1:] if argv is None else argv)
    # All are opened before the first is measured.
    loaded = {name: load_model_and_tokenizer(name) for name in rest.models}
    for name, (_, tokenizer) in loaded.items():
        if reads_a_table(tokenizer):
            raise ValueError(f"`models`={name!r} was trained on a lookup table and cannot read stories.")
    # In fp32: weights of a released model are in bf16, in which most CPUs are slow.
    results = {
        name: evaluate_model(model.float(), tokenizer, data, questions) for name, (model, tokenizer) in loaded.items()
    }
    kinds = list(next(iter(results.values())))
    chances = [f"{results[rest.models[0]][kind].get('chance', math.nan):.2f}" for kind in kinds[1:]]
    print(f"| model | {' | '.join(kind.replace('_', ' ') for kind in kinds)} |\n| --- |{' ---: |' * len(kinds)}")
    for name, found in results.items():
        cells = [f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| chance |  | {' | '.join(chances)} |")
    return results


if __name__ == "__main__":
    run(main)
