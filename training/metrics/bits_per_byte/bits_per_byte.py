"""Bits per byte of raw text: comparable between models with different tokenizers."""

import math

import datasets
import evaluate
import numpy as np


class BitsPerByte(evaluate.Metric):
    """
    Code length of the text under the model, in bits a UTF-8 byte.

    Mean nats a scored token, over ln 2, over the bytes that a token stands for in the whole text. Tokens that separate
    two stories are charged as well; bytes are those of the stories alone.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="nll: -ln p of each scored token, in nats. bytes_per_token: UTF-8 bytes a token.",
            features=datasets.Features({"nll": datasets.Value("float64")}),
        )

    def _compute(self, nll, bytes_per_token):
        return {"bits_per_byte": float(np.mean(nll)) / math.log(2) / bytes_per_token}
