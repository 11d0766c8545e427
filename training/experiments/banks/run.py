"""
What do the two banks of a trained Prism do, and does its attention follow the objective that it is derived from?

```bash
python -m training.experiments banks --dataset_name FOLDER
```
"""

import contextlib
import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from modeling_prism.analysis import untrained_copy
from training.data import DataArguments
from training.evaluate import score_blocks
from training.experiments.banks.arms import CHANGES, banks_of
from training.experiments.banks.ascent import measure_ascent
from training.experiments.banks.change import limited, mean_outputs, replaced
from training.experiments.common.arguments import check_lists, check_positive, settings_of
from training.experiments.common.jobs import run_jobs, stored_rows, write_results
from training.experiments.common.stories import halves
from training.experiments.tinystories.kinds import KINDS, kinds_of
from training.files import read_json
from training.loading import load_model_and_tokenizer


@dataclass
class Arguments:
    """Which models, and how much they read."""

    dataset_name: str = field(
        default="roneneldan/TinyStories",
        metadata={"help": "A local folder with train.txt and valid.txt, or a hub name."},
    )
    models: list[str] = field(
        default_factory=lambda: [f"hub_cards/{name}-tinystories" for name in ("prism-published", "prism", "llama")],
        metadata={"help": "Folders of trained models of stories. Of a Llama, only the ascent is measured."},
    )
    num_blocks: int = field(default=96, metadata={"help": "Blocks that every changed model reads."})
    num_windows: int = field(default=16, metadata={"help": "Blocks on which the ascent is measured."})

    def __post_init__(self):
        check_lists(self, "models")
        check_positive(self, "num_blocks", "num_windows")
        names = [Path(name).name for name in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"`models` must differ in the last part of their paths, which names their rows: {names}.")


def arm_of(model) -> str:
    """What a model is called in the results: its `model_type`, and whether a Prism takes the smaller step."""
    stepped = getattr(model.config, "output_step", 1.0) != 1.0
    return model.config.model_type + ("-stepped" if stepped else "")


def seed_of(folder: Path) -> int:
    """The seed of a run; released models have seed 0."""
    return read_json(folder / "run.json")["seed"] if (folder / "run.json").is_file() else 0


def raised_by(change, model, report, intact: np.ndarray, kinds: np.ndarray) -> dict[str, list[float]]:
    """Nats per token that a change adds, by kind of token: mean, and standard error over blocks."""
    with change:
        nats = score_blocks(model, report, progress=False) - intact
    raised = {}
    for name, where in {"every token": kinds >= 0, **{n: kinds == k for k, n in enumerate(KINDS)}}.items():
        if not where.any():
            continue
        blocks = where.any(1)
        sums, counts = (nats * where).sum(1)[blocks], where.sum(1)[blocks]
        mean = sums.sum() / counts.sum()
        # Of a ratio of two sums over blocks.
        error = np.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
        raised[name] = [round(float(mean), 5), round(float(error), 5)]
    return raised


def measure_banks(model, choose, report, tokenizer) -> dict[str, dict]:
    """What each change to each bank adds, and the mean in place of a bank in each layer alone."""
    config = model.config
    means = mean_outputs(model, torch.tensor(choose.validation["input_ids"]))
    intact = score_blocks(model, report, progress=False)
    kinds = kinds_of(np.array(report.validation["input_ids"]), tokenizer)
    measure = functools.partial(raised_by, model=model, report=report, intact=intact, kinds=kinds)
    layers = list(range(config.num_hidden_layers))
    raised = {"nothing": measure(contextlib.nullcontext())}
    for bank, heads in banks_of(config.num_attention_heads, config.num_signal_heads).items():
        for change, window in CHANGES.items():
            context = limited(model, window, heads) if window else replaced(model, means, heads, layers)
            raised[f"{bank}: {change}"] = measure(context)
        if not bank.startswith("mixed"):
            for layer in layers:
                raised[f"{bank}: mean, layer {layer}"] = measure(replaced(model, means, heads, [layer]))
    return raised


def run_job(arguments: Arguments, name: str, stem: Path) -> list[dict]:
    """Measures one model."""
    model, tokenizer = load_model_and_tokenizer(name)
    attention = getattr(next(iter(getattr(model.base_model, "layers", [])), None), "self_attn", None)
    if not (hasattr(attention, "dictionary") or hasattr(attention, "v_proj")):
        kind = model.config.model_type
        raise ValueError(f"`models`={name!r} is a {kind}: give a Prism, or a model that is built like a Llama.")
    model = model.float()
    data = DataArguments(dataset_name=arguments.dataset_name, block_size=model.config.max_position_embeddings)
    # The means come from the half that is not reported.
    choose, report = (
        dataclasses.replace(half, validation=half.validation.select(range(min(size, len(half.validation)))))
        for half, size in zip(halves(data, tokenizer), (arguments.num_windows, arguments.num_blocks))
    )
    windows = torch.tensor(report.validation["input_ids"][: arguments.num_windows])
    row = {"arm": arm_of(model), "model": Path(name).name, "seed": seed_of(Path(name))}
    if hasattr(model.config, "num_signal_heads"):
        row["raised"] = measure_banks(model, choose, report, tokenizer)
    row["cosines"] = measure_ascent(model, windows)
    row["cosines, untrained"] = measure_ascent(untrained_copy(model, 0), windows)
    return [row]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Measures the models that `results` does not have, and adds their rows."""
    settings = settings_of(arguments, "models")
    stored = stored_rows(results, settings)
    known = {row["model"] for row in stored}
    jobs = {Path(name).name: name for name in arguments.models if Path(name).name not in known}
    rows = stored + run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    write_results(results, sorted(rows, key=lambda row: (row["arm"], row["seed"])), settings)
