"""The arms: the published models, and the controls that the published evidence lacks."""

from pathlib import Path

import yaml


_DATA = yaml.safe_load(Path(__file__).with_name("arms.yaml").read_text(encoding="utf-8"))
ARMS = _DATA["arms"]
# Each arm beside the one that it differs from in the thing named.
COMPARISONS = {(one, other): change for one, other, change in _DATA["comparisons"]}
# Of addition; published.yaml names those of the other tables.
PUBLISHED = ["sphere-wd0", "sphere", "layer_norm", "rms_norm"]


def name_of(table: str, lr: float, settings: dict) -> str:
    """The name of a table's results: `addition-lr0.0006`, and any setting that is not the published one."""
    modulus = "" if table == "s5" or settings["modulus"] == 113 else f"-mod{settings['modulus']}"
    fraction = "" if settings["train_fraction"] == 0.3 else f"-train{settings['train_fraction']:g}"
    dtype = "" if settings.get("dtype", "float32") == "float32" else f"-{settings['dtype']}"
    return f"{table}{modulus}{fraction}-lr{lr:g}{dtype}"
