"""Next-token accuracy of a language model."""

import datasets
import evaluate
import numpy as np


class NextTokenAccuracy(evaluate.Metric):
    """Share of the scored tokens that were the model's first choice, from 0 to 1."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="correct: whether each scored token was the model's most probable one.",
            features=datasets.Features({"correct": datasets.Value("bool")}),
        )

    def _compute(self, correct):
        return {"next_token_accuracy": float(np.mean(correct))}
