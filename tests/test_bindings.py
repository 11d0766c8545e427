"""The binding test separates a model that knows from one that guesses."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from training.bindings import answers_right, binding_accuracy
from training.data import train_tokenizer
from training.tasks.stories import Probe, tell


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Dataset.from_dict({"text": [tell(seed).text for seed in range(20)]}), 400)


class Oracle:
    """Predicts the next tokens of one known text, or, if not truthful, any others."""

    device = "cpu"

    config = SimpleNamespace(max_position_embeddings=10_000)

    def __init__(self, tokenizer, text, truthful=True):
        self.ids = tokenizer(tokenizer.bos_token + text)["input_ids"]
        self.sign = 1.0 if truthful else -1.0
        self.size = len(tokenizer)

    def __call__(self, input_ids, use_cache):
        logits = torch.zeros(1, input_ids.shape[1], self.size)
        for position, token in enumerate(self.ids[1 : 1 + input_ids.shape[1]]):
            logits[0, position, token] = 10 * self.sign
        return SimpleNamespace(logits=logits)


def test_an_oracle_is_right_and_a_liar_wrong(tokenizer):
    story = tell(3)
    assert all(answers_right(Oracle(tokenizer, story.text), tokenizer, probe) for probe in story.questions)
    assert not any(answers_right(Oracle(tokenizer, story.text, False), tokenizer, probe) for probe in story.questions)


def test_a_long_story_loses_its_beginning(tokenizer):
    probe = Probe("owner", "Tom had a ball. " * 20 + "It was", " Tom", (" Ann",))
    seen = []

    class Model:
        device, config = "cpu", SimpleNamespace(max_position_embeddings=16)

        def __call__(self, input_ids, use_cache):
            seen.append(input_ids.shape[1])
            return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], len(tokenizer)))

    # Equal scores do not count as right.
    assert not answers_right(Model(), tokenizer, probe)
    assert set(seen) == {16}


def test_accuracy_is_reported_by_kind_beside_chance(tokenizer):
    class Guess(Oracle):
        def __call__(self, input_ids, use_cache):
            generator = torch.Generator().manual_seed(int(input_ids.sum()))
            return SimpleNamespace(logits=torch.randn(1, input_ids.shape[1], self.size, generator=generator))

    results = binding_accuracy(Guess(tokenizer, ""), tokenizer, num_stories=60)
    everything = results.pop("all")
    assert everything["probes"] == sum(row["probes"] for row in results.values()) > 100
    assert len(results) >= 8
    # Short candidates score higher, so that a guess is only near chance.
    assert everything["accuracy"] == pytest.approx(everything["chance"], abs=0.2)
