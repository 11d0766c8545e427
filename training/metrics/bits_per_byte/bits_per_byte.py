"""Bits per byte of raw text: comparable between models with different tokenizers."""

import math

import datasets
import evaluate


class BitsPerByte(evaluate.Metric):
    """
    Code length of the text under the model, in bits a UTF-8 byte.

    Mean nats a token, over ln 2, over the bytes a token stands for. Every token is charged, the one that separates two
    stories included; bytes are those of the stories alone.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="nll: -ln p of each scored token, in nats. bytes_per_token: UTF-8 bytes a token.",
            features=datasets.Features({"nll": datasets.Value("float64")}),
        )

    def _compute(self, nll, bytes_per_token):
        return {"bits_per_byte": sum(nll) / len(nll) / math.log(2) / bytes_per_token}
