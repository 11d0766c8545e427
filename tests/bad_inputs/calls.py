"""Calls of a model: (family, variant, call)."""

from math import inf, nan

import torch
from families import DOCUMENTS, FAMILIES, Case, left_pad, random_ids
from transformers import GPT2Config

from training.ngrams import KneserNey
from training.tasks.stories import stories, tell

from . import Row


IDS, MASK = left_pad(DOCUMENTS)
TABLE = (
    "`max_position_embeddings`=64: shorten the sequence",
    "prism-learned_positions",
    "spherical",
    "spherical-uniform",
)


def give(given):
    if callable(given):
        return given()
    name, call = given
    family_name, _, variant = name.partition("-")
    call(Case(family_name, variant or "default").model())


def every(says, call, names=(*FAMILIES, "spherical-uniform")):
    return [Row((name, call), says) for name in names]


def set_lambda(value):
    return lambda model: model.set_noise_coefficient(value)


def assign(name, value):
    return lambda model: setattr(model.config, name, value)


def untie(model):
    model.config.tie_word_embeddings = not model.config.tie_word_embeddings


def after_five(mask):
    def call(model):
        cache = model(random_ids(2, 5)).past_key_values
        model(random_ids(2, 2), attention_mask=mask, past_key_values=cache)

    return call


ROWS = [
    *every("exactly one of input_ids or inputs_embeds", lambda model: model()),
    *every("exactly one of input_ids", lambda model: model(IDS, inputs_embeds=model.get_input_embeddings()(IDS))),
    *every("`attention_mask` has 1 rows for a batch of 3", lambda model: model(IDS, attention_mask=MASK[:1])),
    *every("`attention_mask` has 9 columns for 0 cached and 11", lambda model: model(IDS, attention_mask=MASK[:, :9])),
    *every("`attention_mask` has 1 dimensions", lambda model: model(IDS, attention_mask=MASK[0])),
    *every("`attention_mask` has 3 dimensions", lambda model: model(IDS, attention_mask=MASK[:, None])),
    *every("`attention_mask` has 2 columns for 5 cached and 2", after_five(torch.tensor([[0, 1], [1, 1]]))),
    *every("Position 64 lies beyond .*" + TABLE[0], lambda model: model(random_ids(1, 65)), TABLE[1:]),
    *every(
        "Position 64 lies beyond",
        lambda model: model(random_ids(1, 2), position_ids=torch.tensor([[63, 64]])),
        TABLE[1:],
    ),
    *every("generate_batch.*call `generate`", lambda model: model.generate_batch([[5, 6, 7]]), ("momentum",)),
    *every("generate_batch.*call `generate`", lambda model: model.generate_batch([[5]]), ("spherical-uniform",)),
    *every(
        "`cu_seq_lens_q` does not tell .*position_ids",
        lambda model: model(random_ids(1, 5), cu_seq_lens_q=torch.tensor([0, 2, 5])),
        ("momentum", "spherical", "spherical-uniform"),
    ),
    *every(
        "4 dimensions.*`position_ids` that restart at 0",
        lambda model: model(random_ids(1, 5), attention_mask=torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()),
        ("spherical-uniform",),
    ),
    # A model's config.
    *[Row(("prism", set_lambda(value)), "noise_coefficient` must be a") for value in (-1.1, 1.1, nan, -inf)],
    *every("`num_signal_heads` cannot change: a model was built", assign("num_signal_heads", 2), ("prism",)),
    *[Row(("prism", set_lambda(value)), "`noise_coefficient` must be of type") for value in (None, "0.1")],
    *every("`momentum_streams` cannot change: a model was built", assign("momentum_streams", "q"), ("momentum",)),
    *every("holds 3 numbers for `num_hidden_layers`=2", assign("momentum_gamma", [0.1, 0.2, 0.3]), ("momentum",)),
    *every("`momentum_gamma` must be a finite", lambda model: model.set_momentum_gamma(nan), ("momentum",)),
    *every("`config` must be a [PMS].*, got a GPT2Config", lambda model: type(model)(GPT2Config())),
    *every("`hidden_act` cannot change: a model was built", assign("hidden_act", "gelu"), ("spherical",)),
    *every("`tie_word_embeddings` cannot change: a model was", untie),
    *every("`max_position_embeddings` cannot change: a model", assign("max_position_embeddings", 128), TABLE[1:]),
    *every("`num_hidden_layers` must be at least 1, got 0", assign("num_hidden_layers", 0)),
    *every("`attention_dropout` is a probability, .*got -0.1", assign("attention_dropout", -0.1)),
    *every("`hidden_act` must be .*got 'rlu'", assign("hidden_act", "rlu")),
    *every("`hidden_size` must be of type int, got '32'", assign("hidden_size", "32")),
    *every("did you mean `num_signal_heads`", assign("num_signal_head", 2), ("prism",)),
    # Functions of `training/`.
    *[Row(lambda split=split: stories(split, 1), "`split` must be one of .*train") for split in ("test", "", None)],
    Row(lambda: tell(0, "test"), "`split` must be one of"),
    *[
        Row(lambda number=number: stories("train", number), "`num_stories` must be a positive integer")
        for number in (0, -1, 2.0, "3", True)
    ],
    Row(lambda: KneserNey([1, 2, 0, 1], 0, 3), "order"),
    Row(lambda: KneserNey([1, 2, 0, 1], 40, 3), "order"),
    Row(lambda: KneserNey([1, 2], 3, 3), "tokens"),
]
