"""Language-model metrics for `Trainer`."""

from collections.abc import Callable
from pathlib import Path

import evaluate
import torch
from transformers import EvalPrediction

from training.tasks import IGNORED


def score_tokens(logits: torch.Tensor | tuple, labels: torch.Tensor, shift: int = 1) -> torch.Tensor:
    """
    Reduces logits to two numbers per token, for `Trainer(preprocess_logits_for_metrics=...)`.

    Args:
        logits (`torch.Tensor` of shape `(batch, tokens, vocabulary)`, or a tuple that begins with it)
        labels (`torch.Tensor` of shape `(batch, tokens)`): token ids; -100 is not scored.
        shift (`int`): number of places between a label and the logits that predict it.

    Returns:
        `torch.Tensor` of shape `(batch, tokens - shift, 2)`: -ln p of each label in nats (0 where not scored), and 1
        where the label was the most probable token, else 0.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    logits, targets = logits[:, : logits.shape[1] - shift].float(), labels[:, shift:]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return torch.stack((nll, (logits.argmax(-1) == targets).float()), dim=-1)


def language_modeling_metrics(
    bytes_per_token: float, shift: int = 1, names: dict[str, str] | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    The `compute_metrics` of a language model, with the metrics of `training/metrics/language_modeling`.

    Args:
        bytes_per_token (`float`): UTF-8 bytes per token of the evaluated text.
        shift (`int`): as in `score_tokens`.
        names (`dict[str, str]`, *optional*): the metrics to return, and their new names. Default: all, unchanged.
    """
    metrics = evaluate.load(str(Path(__file__).parent / "language_modeling"))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        scores = prediction.predictions[prediction.label_ids[:, shift:] != IGNORED]
        correct = scores[:, 1].astype(bool)
        found = metrics.compute(nll=scores[:, 0], correct=correct, bytes_per_token=bytes_per_token)
        return {new: found[name] for name, new in names.items()} if names else found

    return compute
