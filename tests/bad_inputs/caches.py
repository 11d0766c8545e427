"""Caches that cannot hold what a family keeps of the past: (family, what is done with a model)."""

import torch
from families import Case, random_ids
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache, StaticCache

from . import Row
from .calls import every, give  # noqa: F401  (the runner calls it)


LLAMA = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
KEYS_AND_VALUES = ((torch.ones(2, 4, 5, 8),) * 2,) * 2
BOTH = ("momentum", "spherical-uniform")


def reading(make_cache):
    """A call with the cache that `make_cache` makes of the model's config."""
    return lambda model: model(random_ids(2, 3), past_key_values=make_cache(model.config))


def another(make_model):
    return lambda config: make_model()(random_ids(2, 5)).past_key_values


def recorded_late(model):
    cache = DynamicCache(config=model.config)
    model(random_ids(1, 5), past_key_values=cache)
    cache.activate_past_recording()
    model(random_ids(1, 2), past_key_values=cache)
    cache.crop(-4)
    model(random_ids(1, 2), past_key_values=cache)


def rebuilt(model):
    DynamicCache(list(model(random_ids(1, 5)).past_key_values), config=model.config)


def of_one_row(model):
    model(random_ids(3, 1), past_key_values=model(random_ids(1, 5)).past_key_values)


def generating(**options):
    return lambda model: model.generate(random_ids(1, 5), max_new_tokens=3, **options)


NO_PLACE, NO_MEANS = (
    "has no place for the state of the previous",
    "cannot keep the running means",
)
FOREIGN = {
    "of no config": lambda config: DynamicCache(),
    "of a Llama": another(lambda: LlamaForCausalLM(LLAMA)),
    "of softmax routing": another(Case("spherical", "default").model),
    "static, of a Llama": lambda config: StaticCache(config=LLAMA, max_cache_len=16),
    "quantised": lambda config: QuantizedCache("fp8", LLAMA),
}
ROWS = [
    *[Row(("momentum", reading(cache)), NO_PLACE) for cache in FOREIGN.values()],
    *[Row(("spherical-uniform", reading(cache)), NO_MEANS) for cache in FOREIGN.values()],
    Row(("momentum", reading(lambda config: DynamicCache(KEYS_AND_VALUES, config=config))), "another model filled it"),
    Row(
        ("momentum", reading(lambda _: DynamicCache(config=Case("momentum", "default").config(num_hidden_layers=1)))),
        NO_PLACE,
    ),
    Row(("momentum", reading(lambda config: DynamicCache(config=config, offloading=True))), "without offloading"),
    Row(("spherical-uniform", reading(lambda config: DynamicCache(config=config, offloading=True))), NO_MEANS),
    Row(("momentum", recorded_late), "cropped to before it began recording"),
    Row(("spherical-uniform", recorded_late), "further back than it recorded"),
    Row(("spherical-uniform", rebuilt), "copy it with `copy.deepcopy`"),
    *every("holds a batch of 1, not of 3", of_one_row, BOTH),
    *every(
        "`StaticCache` cannot be cropped",
        lambda model: StaticCache(config=model.config, max_cache_len=8).crop(-1),
        ("momentum",),
    ),
    *every(
        "`StaticCache` cannot be cropped",
        lambda model: StaticCache(config=model.config, max_cache_len=8).activate_past_recording(),
        ("momentum",),
    ),
    *every("`past_key_values` must be a `Cache`.* got a tuple", reading(lambda config: KEYS_AND_VALUES)),
    # By transformers itself.
    *every("only full attention", generating(cache_implementation="quantized", cache_config={"backend": "fp8"}), BOTH),
    *every("offload", generating(cache_implementation="offloaded"), BOTH),
    *every("offload", generating(cache_implementation="offloaded_static"), BOTH),
]
