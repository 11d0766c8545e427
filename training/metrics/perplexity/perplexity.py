"""Perplexity of a language model a token: comparable only between models with the same tokenizer."""

import datasets
import evaluate
import numpy as np


class Perplexity(evaluate.Metric):
    """exp of the mean over the scored tokens of -ln p(token | the tokens before it)."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="nll: -ln p of each scored token, in nats.",
            features=datasets.Features({"nll": datasets.Value("float64")}),
        )

    def _compute(self, nll):
        # A model that has diverged has an infinite perplexity, and that is no error.
        with np.errstate(over="ignore"):
            return {"perplexity": float(np.exp(np.mean(nll)))}
