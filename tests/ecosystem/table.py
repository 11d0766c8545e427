"""The table of tools in modeling_prism/README.md, from `results.json`: `python -m tests.ecosystem.table`."""

import json
from pathlib import Path

from training.experiments.common.readme import fill_file, make_table


RESULTS = Path(__file__).with_name("results.json")
README = Path(__file__).parents[2] / "modeling_prism" / "README.md"
FAMILIES = {
    "prism": "Prism",
    "momentum": "Momentum",
    "spherical": "Spherical",
    "spherical-uniform": "uniform",
    "llama": "Llama",
}


def make_blocks() -> dict[str, str]:
    """The blocks of the README, by their markers."""
    rows = []
    for label, outcomes in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"].items():
        tool, what = label.split(": ", 1)
        reason = f" ({outcomes['reason']})" if "reason" in outcomes else ""
        rows.append([tool, what + reason, *(outcomes.get(family, "") for family in FAMILIES)])
    return {"ecosystem": make_table(["tool", "what was tried", *FAMILIES.values()], sorted(rows), text=7)}


def write_table():
    fill_file(README, make_blocks())


if __name__ == "__main__":
    write_table()
