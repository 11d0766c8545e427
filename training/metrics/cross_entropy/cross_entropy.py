"""Cross-entropy of a language model, in nats a token."""

import datasets
import evaluate
import numpy as np


class CrossEntropy(evaluate.Metric):
    """Mean over the scored tokens of -ln p(token | the tokens before it): nats a token."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="nll: -ln p of each scored token, in nats.",
            features=datasets.Features({"nll": datasets.Value("float64")}),
        )

    def _compute(self, nll):
        return {"loss": float(np.mean(nll))}
