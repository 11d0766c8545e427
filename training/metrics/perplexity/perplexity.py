"""Perplexity of a language model a token: comparable only between models with the same tokenizer."""

import math

import datasets
import evaluate


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
        return {"perplexity": math.exp(sum(nll) / len(nll))}
