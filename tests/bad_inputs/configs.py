"""Configurations: given as arguments, as overrides of a saved folder, and where it can be, assigned."""

import tempfile
from math import inf, nan

import pytest
from families import COMMON, FAMILIES

from . import Row


def give(given):
    family_name, arguments = given
    family = FAMILIES[family_name]
    config_class, sizes = family.get_class("Config"), {**COMMON, **family.arguments}
    config = config_class(**sizes)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        with pytest.raises(ValueError):
            family.get_class("Model")(config_class.from_pretrained(folder, **arguments))
    config_class(**{**sizes, **arguments})


def rows(family, says, name, *values):
    return [Row((family, {name: value}), f"`{name}` {says}".replace("VALUE", re_of(value))) for value in values]


def re_of(value):
    return repr(value).replace("[", r"\[")


SIZE_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
ROWS = [
    *[row for family in FAMILIES for name in SIZE_FIELDS for row in rows(family, "must be at least 1", name, 0, -3)],
    *[
        row
        for family in FAMILIES
        for row in rows(family, "must be of type int, got VALUE", "hidden_size", "32", 32.5, None, [32])
    ],
    *[row for family in FAMILIES for row in rows(family, "is a probability", "attention_dropout", -0.1, 1.5, nan)],
    *[row for family in FAMILIES for row in rows(family, "must be .* such as gelu, relu", "hidden_act", "rlu", "")],
    # Prism.
    Row(("prism", {"num_attention_heads": 6, "num_signal_heads": 3}), "`num_signal_heads`=3 does not divide"),
    Row(("prism", {"hidden_size": 33, "num_signal_heads": 4}), "`num_signal_heads`=4 does not divide"),
    Row(("prism", {"hidden_size": 33, "num_attention_heads": 4}), "`head_dim`=33 is odd"),
    *rows("prism", "must leave at least one head to each bank, got VALUE", "num_signal_heads", 0, -1, 8, 9),
    *rows("prism", "must be at least 2, got VALUE", "num_attention_heads", 0, 1),
    *rows("prism", "must be at least 1, got 0", "dictionary_expansion", 0),
    Row(("prism", {"head_dim": 8}), "`head_dim`=8 contradicts"),
    *rows("prism", "is a probability", "hidden_dropout", -0.1, nan),
    *rows("prism", "must be a finite number above 0, got VALUE", "layer_norm_eps", -1, 0),
    *rows("prism", "must be a finite number of at least 0", "initializer_range", -0.1, inf),
    *rows("prism", "must be a number from -1 to 1 .*got VALUE", "noise_coefficient", -1.1, 5, nan, inf),
    *rows("prism", "must be a finite number above 0, got VALUE", "signal_rope_theta", 0, -10.0, nan, inf),
    *rows("prism", "must be a finite number above 0, got VALUE", "noise_rope_theta", 0, -10.0, nan, inf),
    *rows("prism", "is not a field.*`signal_rope_theta` and `noise_rope_theta`", "rope_theta", 1e4),
    *rows("prism", "is not a field.*`signal_rope_theta` and", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    *rows("prism", "is not a field.*`signal_rope_theta` and", "rope_parameters", {"rope_theta": 1e4}),
    *rows("prism", "is not a field.*did you mean `num_signal_heads`", "num_signal_head", 2),
    *rows("prism", "is not a field.*did you mean `num_hidden_layers`", "n_layer", 3),
    *rows("prism", "is not a field.*did you mean `noise_coefficient`", "noise_coeff", 0.2),
    *rows("prism", "is not a field of PrismConfig", "sliding_window", 8),
    *rows("prism", "is not a field of PrismConfig", "max_length", 8),
    # Momentum.
    *rows("momentum", "must be a finite number", "momentum_gamma", nan, inf, -inf, [0.5, nan]),
    *rows("momentum", "must be of type .*float.*, got VALUE", "momentum_gamma", "much", {"a": 1}),
    *rows("momentum", "holds . numbers for `num_hidden_layers`=2", "momentum_gamma", [0.5], [], [0.5, 0.5, 0.5]),
    *rows("momentum", "must be one of qk, k, q, got VALUE", "momentum_streams", "v", "kq", ""),
    *rows("momentum", "must be one of post_rope, pre_rope, got 'rope'", "momentum_placement", "rope"),
    Row(("momentum", {"num_key_value_heads": 3}), "`num_key_value_heads`=3 must divide"),
    *rows("momentum", "must be at least 1", "num_key_value_heads", 0),
    Row(("momentum", {"num_attention_heads": 3}), "multiple of the number of attention heads"),
    Row(("momentum", {"head_dim": 7}), "`head_dim`=7 is odd"),
    Row(("momentum", {"rope_parameters": {"rope_type": "yam", "rope_theta": 1e4}}), "`rope_type` in .*got 'yam'"),
    *[
        Row(("momentum", {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **more}}), says)
        for rope_type, more, says in (
            ("linear", {"factor": 0.0}, "`factor` in `rope_parameters` must be a finite number above 0, got 0.0"),
            ("dynamic", {"factor": -1.0}, "`factor` in `rope_parameters` must be a finite number above 0, got -1.0"),
            ("linear", {}, "Missing required keys in `rope_parameters`.*factor"),
            ("default", {"factor": 2.0}, "`factor`=2.0 .* no effect with `rope_type`='default'"),
        )
    ],
    Row(("momentum", {"rope_theta": 0.0}), "`rope_theta` in `rope_parameters` must be a finite number above 0"),
    *rows("momentum", "must be a finite number above 0, got -1", "rms_norm_eps", -1),
    *rows("momentum", "is not a field.*did you mean `momentum_streams`", "momentum_stream", "k"),
    *rows("momentum", "is not a field.*did you mean `momentum_gamma`", "gamma", 1.0),
    Row(("prism", {"lambda_": 0.1}), "is not a field.*did you mean `noise_coefficient`"),
    Row(("prism", {"noise_lambda": 0.1}), "is not a field.*did you mean `noise_coefficient`"),
    # Spherical.
    *rows("spherical", "must be one of sphere, layer_norm, rms_norm, got VALUE", "residual_norm", "cube", ""),
    *rows("spherical", "must be one of softmax, uniform, got 'linear'", "attention_routing", "linear"),
    *rows("spherical", "must be a finite number above 0, got VALUE", "logit_scale", 0.0, -10, nan, inf),
    *rows("spherical", "must be a finite number above 0, got VALUE", "layer_norm_eps", 0.0, -1),
    Row(("spherical", {"num_attention_heads": 3}), "`num_attention_heads`=3 must divide `hidden_size`=32"),
    *rows("spherical", "is a probability", "hidden_dropout", 1.5),
    Row(("spherical", {"attention_routing": "uniform", "attention_dropout": 0.1}), "no attention weights.*`hidden_dr"),
    Row(("spherical", {"bounded_unembedding": False, "logit_scale": 5}), "`logit_scale`=5 has no effect with `bound"),
    *rows("spherical", "is not a field.*did you mean `attention_routing`", "atention_routing", "uniform"),
    *rows("spherical", "is not a field.*did you mean `attention_routing`", "routing", "uniform"),
    *rows("spherical", "is not a field.*did you mean `logit_scale`", "tau", 5.0),
]
