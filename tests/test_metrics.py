"""Metrics against values worked out by hand."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from training.metrics import language_modeling_metrics, score_tokens


FOLDER = Path(__file__).parent.parent / "training" / "metrics" / "language_modeling"


def test_the_script_loads_from_its_folder():
    nll = [math.log(2), math.log(2), math.log(8), math.log(8)]
    metrics = evaluate.load(str(FOLDER)).compute(nll=nll, correct=[True, False, False, False], bytes_per_token=2.0)
    # On average 2 bits per token, which stands for 2 bytes.
    expected = {
        "nats_per_token": 2 * math.log(2),
        "perplexity": 4.0,
        "bits_per_byte": 1.0,
        "next_token_accuracy": 0.25,
    }
    assert metrics == pytest.approx(expected)


def test_a_model_that_knows_nothing_costs_the_logarithm_of_the_vocabulary():
    labels = torch.randint(0, 256, (3, 9))
    scores = score_tokens(torch.zeros(3, 9, 256), labels)
    assert scores.shape == (3, 8, 2)
    # At one token per byte, 256 equal chances are 8 bits per byte.
    metrics = language_modeling_metrics(bytes_per_token=1.0)(EvalPrediction(scores.numpy(), labels.numpy()))
    assert metrics["bits_per_byte"] == pytest.approx(8.0) and metrics["perplexity"] == pytest.approx(256, rel=1e-4)


def test_scores_are_of_the_next_token_and_skip_masked_labels():
    labels = torch.tensor([[5, 1, 2, -100]])
    logits = torch.full((1, 4, 6), -1e4)
    # Position 0 is sure of token 1 (right), position 1 of token 3 (wrong); position 2 predicts a masked label.
    logits[0, 0, 1] = logits[0, 1, 3] = 0.0
    scores = score_tokens((logits, "cache"), labels)
    assert scores[0, :, 1].tolist()[:2] == [1.0, 0.0]
    assert scores[0, 0, 0] == pytest.approx(0.0) and scores[0, 1, 0] > 1e3
    metrics = language_modeling_metrics(1.0)(EvalPrediction(scores.numpy(), labels.numpy()))
    assert metrics["next_token_accuracy"] == 0.5 and metrics["nats_per_token"] > 1e3


def test_a_model_that_diverged_has_bad_metrics_and_no_error():
    labels = np.zeros((1, 4), dtype=int)
    for nll, loss, perplexity in (([1.0, np.nan, 3.0], np.nan, np.nan), ([800.0] * 3, 800.0, np.inf)):
        scores = np.stack((np.array([nll]), np.zeros((1, 3))), axis=-1)
        metrics = language_modeling_metrics(1.0)(EvalPrediction(scores, labels))
        np.testing.assert_equal([metrics["nats_per_token"], metrics["perplexity"]], [loss, perplexity])
