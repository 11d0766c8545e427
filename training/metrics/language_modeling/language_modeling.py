"""Four metrics of a language model. `evaluate.load("training/metrics/language_modeling")` reads this script."""

import math

import datasets
import evaluate
import numpy as np


class LanguageModeling(evaluate.Metric):
    """
    Metrics of a language model over its scored tokens:

    - `nats_per_token`: cross-entropy, the mean of -ln p(token | the tokens before it);
    - `perplexity`: exp of it, comparable only between models with the same tokenizer;
    - `bits_per_byte`: code length per UTF-8 byte of raw text, comparable between tokenizers. Tokens that separate two
      stories are charged as well; the bytes are those of the stories alone;
    - `next_token_accuracy`: the share of tokens, from 0 to 1, that were the model's first choice.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description=(
                "nll: -ln p of each scored token, in nats. correct: whether that token was the most probable one. "
                "bytes_per_token: UTF-8 bytes of the text per token."
            ),
            features=datasets.Features({"nll": datasets.Value("float64"), "correct": datasets.Value("bool")}),
        )

    def _compute(self, nll, correct, bytes_per_token):
        nats = float(np.mean(nll))
        # A diverged model has an infinite perplexity, which is not an error.
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(nats))
        return {
            "nats_per_token": nats,
            "perplexity": perplexity,
            "bits_per_byte": nats / math.log(2) / bytes_per_token,
            "next_token_accuracy": float(np.mean(correct)),
        }
