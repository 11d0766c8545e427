"""The arms: the published models, and the controls that the published evidence lacks."""

SPHERE = {"residual_norm": "sphere", "bounded_unembedding": True}
LAYER_NORM = {"residual_norm": "layer_norm", "bounded_unembedding": False}
RMS_NORM = {"residual_norm": "rms_norm", "bounded_unembedding": False}
UNIFORM = {"attention_routing": "uniform"}

# Fields of SphericalConfig; AdamW's `weight_decay` (default 1) and `beta2` (default 0.999); `answers_only`:
# as published, a causal LM's logit of "=" is left out; `nudge`: relative change of the first weights.
ARMS = {
    # As published
    "sphere-wd0": {**SPHERE, "weight_decay": 0.0},
    "sphere": SPHERE,
    "layer_norm": LAYER_NORM,
    "rms_norm": RMS_NORM,
    "uniform-sphere-wd0-beta2-0.98": {**SPHERE, **UNIFORM, "weight_decay": 0.0, "beta2": 0.98},
    "uniform-layer_norm-beta2-0.98": {**LAYER_NORM, **UNIFORM, "beta2": 0.98},
    "uniform-rms_norm-beta2-0.98": {**RMS_NORM, **UNIFORM, "beta2": 0.98},
    # Published under the name of the sphere: the unembedding is not bounded there
    "uniform-sphere-unbounded-beta2-0.98": {**SPHERE, **UNIFORM, "bounded_unembedding": False, "beta2": 0.98},
    # Controls
    "uniform-sphere-wd0": {**SPHERE, **UNIFORM, "weight_decay": 0.0},
    "uniform-sphere": {**SPHERE, **UNIFORM},
    "uniform-sphere-unbounded": {**SPHERE, **UNIFORM, "bounded_unembedding": False},
    "uniform-layer_norm": {**LAYER_NORM, **UNIFORM},
    "uniform-rms_norm": {**RMS_NORM, **UNIFORM},
    "sphere-unbounded-wd0": {**SPHERE, "bounded_unembedding": False, "weight_decay": 0.0},
    "sphere-unbounded": {**SPHERE, "bounded_unembedding": False},
    "layer_norm-bounded-wd0": {**LAYER_NORM, "bounded_unembedding": True, "weight_decay": 0.0},
    "layer_norm-bounded": {**LAYER_NORM, "bounded_unembedding": True},
    "layer_norm-plain": {**LAYER_NORM, "norm_affine": False},
    "rms_norm-plain": {**RMS_NORM, "norm_affine": False},
    "layer_norm-wd0": {**LAYER_NORM, "weight_decay": 0.0},
    "sphere-wd0-beta2-0.98": {**SPHERE, "weight_decay": 0.0, "beta2": 0.98},
    "sphere-answers-only": {**SPHERE, "answers_only": True},
    # As much as rounding does: how far it alone moves an onset
    "sphere-nudged": {**SPHERE, "nudge": 1e-7},
    "sphere-wd0-tau-5": {**SPHERE, "logit_scale": 5.0, "weight_decay": 0.0},
    "sphere-wd0-tau-20": {**SPHERE, "logit_scale": 20.0, "weight_decay": 0.0},
    "sphere-wd0-tau-40": {**SPHERE, "logit_scale": 40.0, "weight_decay": 0.0},
}
# Each arm beside the one that it differs from in the thing named.
COMPARISONS = {
    ("sphere", "layer_norm"): "the published step: sphere and bounded unembedding for LayerNorm",
    ("uniform-sphere", "uniform-layer_norm"): "the published step, both with uniform attention",
    ("sphere-wd0", "layer_norm-wd0"): "the same, both without weight decay",
    ("rms_norm", "layer_norm"): "RMSNorm for LayerNorm",
    ("sphere-unbounded", "layer_norm"): "the sphere alone for LayerNorm",
    ("sphere", "layer_norm-bounded"): "sphere for LayerNorm, both bounded",
    ("sphere-wd0", "layer_norm-bounded-wd0"): "sphere for LayerNorm, both bounded and without weight decay",
    ("layer_norm-bounded", "layer_norm"): "bounded unembedding, LayerNorm",
    ("sphere-unbounded", "sphere"): "unbounded unembedding",
    ("sphere-unbounded-wd0", "sphere-wd0"): "unbounded unembedding, no weight decay",
    ("uniform-sphere-unbounded", "uniform-sphere"): "unbounded unembedding, uniform attention",
    ("sphere-wd0", "sphere"): "no weight decay",
    ("uniform-sphere-wd0", "uniform-sphere"): "no weight decay, uniform attention",
    ("sphere-unbounded-wd0", "sphere-unbounded"): "no weight decay, unbounded",
    ("layer_norm-wd0", "layer_norm"): "no weight decay, LayerNorm",
    ("uniform-sphere", "sphere"): "uniform attention",
    ("uniform-sphere-wd0", "sphere-wd0"): "uniform attention, no weight decay",
    ("uniform-layer_norm", "layer_norm"): "uniform attention, LayerNorm",
    ("uniform-rms_norm", "rms_norm"): "uniform attention, RMSNorm",
    ("layer_norm-plain", "layer_norm"): "LayerNorm without gains",
    ("rms_norm-plain", "rms_norm"): "RMSNorm without gains",
    ("sphere-wd0-beta2-0.98", "sphere-wd0"): "beta2 0.98",
    ("uniform-sphere-wd0-beta2-0.98", "uniform-sphere-wd0"): "beta2 0.98, uniform attention",
    ("uniform-layer_norm-beta2-0.98", "uniform-layer_norm"): "beta2 0.98, uniform LayerNorm",
    ("uniform-rms_norm-beta2-0.98", "uniform-rms_norm"): "beta2 0.98, uniform RMSNorm",
    ("uniform-sphere-unbounded-beta2-0.98", "uniform-sphere-unbounded"): "beta2 0.98, uniform unbounded sphere",
    ("sphere-answers-only", "sphere"): 'no logit for "="',
    ("sphere-nudged", "sphere"): "nothing but rounding: first weights changed by 1e-7 of themselves",
    ("sphere-wd0-tau-5", "sphere-wd0"): "tau 5 for 10",
    ("sphere-wd0-tau-20", "sphere-wd0"): "tau 20 for 10",
    ("sphere-wd0-tau-40", "sphere-wd0"): "tau 40 for 10",
}
PUBLISHED = ["sphere-wd0", "sphere", "layer_norm", "rms_norm"]


def name_of(table: str, lr: float, settings: dict) -> str:
    """The name of a table's results: `addition-lr0.0006`, and any setting that is not the published one."""
    modulus = "" if table == "s5" or settings["modulus"] == 113 else f"-mod{settings['modulus']}"
    fraction = "" if settings["train_fraction"] == 0.3 else f"-train{settings['train_fraction']:g}"
    dtype = "" if settings.get("dtype", "float32") == "float32" else f"-{settings['dtype']}"
    return f"{table}{modulus}{fraction}-lr{lr:g}{dtype}"
