"""
Grokking with and without a delay: the published tables with any number of seeds, each arm as one stacked program, and
the controls that the published evidence lacks, as arms of the same command.

```bash
python -m training.experiments grokking --table addition --lr 6e-4
python -m training.experiments grokking --table addition --lr 6e-4 --arms sphere-unbounded sphere-nudged --seeds 1 2 3
python -m training.experiments grokking --table s5 --lr 1e-3 --max_epochs 100000 --device cuda --jobs 1
```

A stopped arm goes on from its last checkpoint, beside which its curves are drawn. New rows join the stored ones.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

from modeling_prism import SphericalConfig, SphericalForCausalLM
from modeling_prism.analysis.examine import unembedding_in_use
from modeling_prism.analysis.spherical import accuracy_by_top_k, explained_variance, fourier_energies, top_frequencies
from training.experiments.common.arguments import (
    check_arms,
    check_compiler,
    check_device,
    check_positive,
    check_rates,
    check_seeds,
    settings_of,
)
from training.experiments.common.jobs import read_results, run_jobs, write_results
from training.experiments.common.stacks import save_checkpoint
from training.experiments.common.statistics import first_step_at
from training.experiments.grokking.arms import ARMS, PUBLISHED, name_of
from training.experiments.grokking.read_out import ReadOut
from training.experiments.grokking.report import plot_curves
from training.stacked import Stack
from training.tasks.arithmetic import TABLES, check_table, make_table, split_table


TRAIN_ONSET = 0.99
CURVES = ("train_accuracy", "test_accuracy", "train_loss", "test_loss", "logit_norm", "weight_norm")


@dataclass
class Arguments:
    """The experiment's options."""

    table: Literal[TABLES] = field(default="addition", metadata={"help": "What is to be learned."})
    modulus: int = field(default=113, metadata={"help": "Of addition and multiplication."})
    train_fraction: float = field(default=0.3, metadata={"help": "Share of all pairs that is trained on."})
    arms: list[str] = field(default_factory=lambda: PUBLISHED, metadata={"help": f"Of {', '.join(ARMS)}."})
    lr: float = field(default=6e-4, metadata={"help": "Learning rate; no warm-up, no schedule."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(1, 11)), metadata={"help": "Split and initial weights; one stack."}
    )
    max_epochs: int = field(default=20_000, metadata={"help": "An epoch is one step on the whole training split."})
    eval_epochs: int = field(default=10, metadata={"help": "Epochs between two measurements, the grid of the onsets."})
    test_onset: float | None = field(
        default=None, metadata={"help": "Test accuracy that counts as grokked. Default: 0.95, s5: 0.99."}
    )
    settle_epochs: int = field(default=100, metadata={"help": "Epochs that a seed goes on after it has grokked."})
    save_epochs: int = field(default=200, metadata={"help": "Epochs between two checkpoints."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the stacks: pays in long runs; takes a C++ compiler on a CPU."}
    )
    dtype: Literal["float32", "float64"] = field(
        default="float32", metadata={"help": "float64: rounding does not part runs that take the same steps."}
    )
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'."})

    def __post_init__(self):
        check_arms(self, ARMS)
        check_seeds(self)
        check_positive(self, "max_epochs", "eval_epochs", "save_epochs")
        check_rates(self, "lr")
        check_device(self.device)
        if self.torch_compile:
            check_compiler(self.device)
        if self.settle_epochs < 0:
            raise ValueError(f"`settle_epochs` must be at least 0, got {self.settle_epochs}.")
        check_table(self.table, self.modulus)
        split_table(120**2 if self.table == "s5" else self.modulus**2, self.train_fraction, 0)
        if self.test_onset is None:
            self.test_onset = 0.99 if self.table == "s5" else 0.95
        if not 0 < self.test_onset <= 1:
            raise ValueError(f"`test_onset` is a share, above 0 and at most 1, got {self.test_onset}: 0.95 for 95 %.")

    @property
    def settings(self) -> dict:
        """What every row of results carries."""
        return settings_of(self, "table", "arms", "lr", "seeds", "save_epochs")

    @property
    def name(self) -> str:
        """What the results of this table and these settings go by."""
        return name_of(self.table, self.lr, self.settings)


def build(arguments: Arguments, arm: str, seed: int) -> ReadOut:
    """The published one-layer model of an arm before training."""
    apart = ("weight_decay", "beta2", "answers_only", "nudge")
    fields = {key: value for key, value in ARMS[arm].items() if key not in apart}
    size = 120 if arguments.table == "s5" else arguments.modulus
    config = SphericalConfig(vocab_size=size + 1, max_position_embeddings=3, **fields)
    torch.manual_seed(seed)
    model = SphericalForCausalLM._from_config(config, dtype=getattr(torch, arguments.dtype))
    with torch.no_grad():
        for parameter in model.parameters() if "nudge" in ARMS[arm] else ():
            parameter *= 1 + ARMS[arm]["nudge"] * torch.randn_like(parameter)
    return ReadOut(model, ARMS[arm].get("answers_only", False))


def chunk_size(device: str) -> int | None:
    """Seeds computed at once: one fills a core, and its work fits the core's cache; a GPU wants them all."""
    return 1 if torch.device(device).type == "cpu" else None


def read_out_loss(forward: Callable, pairs: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy at the read-out, in nats. The logit of "=" takes part: it is one answer more to rule out."""
    return nn.functional.cross_entropy(forward(pairs), answers)


def measure(forward: Callable, pairs: torch.Tensor, answers: torch.Tensor, is_train: torch.Tensor) -> dict:
    """Accuracy, loss (nats) and length of the logits of one model on all pairs; `is_train` (P^2,)."""
    logits = forward(pairs)
    right = (logits.argmax(-1) == answers).float()
    losses = nn.functional.cross_entropy(logits, answers, reduction="none")
    measures = {"logit_norm": logits.norm(dim=-1).mean()}
    for split, mask in (("train", is_train.float()), ("test", 1 - is_train.float())):
        measures[f"{split}_accuracy"] = (right * mask).sum() / mask.sum()
        measures[f"{split}_loss"] = (losses * mask).sum() / mask.sum()
    return measures


def check_spectrum(model: ReadOut, pairs: torch.Tensor, answers: torch.Tensor) -> dict:
    """
    The published spectral check, over the residues as classes: the share of the variance of W_U W_out and of the
    logits that the five strongest frequencies hold, and the accuracy with those and frequency 0 kept.
    """
    with torch.no_grad():
        causal_lm = model.causal_lm
        logits = model(pairs)[:, : causal_lm.config.vocab_size - 1]
        rows = unembedding_in_use(causal_lm)[: causal_lm.config.vocab_size - 1]
        through = rows @ causal_lm.model.layers[0].mlp.down_proj.weight.to(rows)
    spectra = {"unembedding": fourier_energies(through), "logits": fourier_energies(logits, dim=-1)}
    by_top_k = accuracy_by_top_k(logits, answers, (1, 3, 5, 10))
    return {
        **{
            f"{name}_top5_variance": explained_variance(energies, top_frequencies(energies, 5)).item()
            for name, energies in spectra.items()
        },
        "logits_top_frequencies": top_frequencies(spectra["logits"], 5).tolist(),
        "accuracy_by_top_k": {str(k): accuracy for k, accuracy in by_top_k.items()},
    }


def make_row(arguments: Arguments, arm: str, seed: int, curves: dict, model: ReadOut, pairs, answers) -> dict:
    """What is kept of one seed when it is done."""
    train_onset = first_step_at(curves["train_accuracy"], TRAIN_ONSET, arguments.eval_epochs)
    test_onset = first_step_at(curves["test_accuracy"], arguments.test_onset, arguments.eval_epochs)
    return {
        "table": arguments.table,
        "arm": arm,
        "lr": arguments.lr,
        "seed": seed,
        "settings": arguments.settings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_onset": train_onset,
        "test_onset": test_onset,
        "delay": None if None in (train_onset, test_onset) else test_onset - train_onset,
        "epochs": (len(curves["test_accuracy"]) - 1) * arguments.eval_epochs,
        "peak_test_accuracy": max(curves["test_accuracy"]),
        **({"spectrum": check_spectrum(model, pairs, answers)} if arguments.table == "addition" else {}),
        "curves": curves,
    }


def run_job(arguments: Arguments, arm: str, stem: Path) -> list[dict]:
    """All seeds of an arm, as one stack from which seeds leave as they are done."""
    device = arguments.device
    input_ids, answers = (tensor.to(device) for tensor in make_table(arguments.table, arguments.modulus))
    pairs = input_ids[:, :2]
    splits = {seed: split_table(len(pairs), arguments.train_fraction, seed)[0].to(device) for seed in arguments.seeds}
    is_train = {seed: torch.zeros(len(pairs), dtype=torch.bool, device=device) for seed in arguments.seeds}
    for seed, rows in splits.items():
        is_train[seed][rows] = True

    active, finished = list(arguments.seeds), {}
    curves = {seed: {name: [] for name in CURVES} for seed in active}
    stack = Stack(
        [build(arguments, arm, seed).to(device) for seed in active],
        read_out_loss,
        learning_rate=arguments.lr,
        weight_decay=ARMS[arm].get("weight_decay", 1.0),
        betas=(0.9, ARMS[arm].get("beta2", 0.999)),
        chunk_size=chunk_size(device),
        compile=arguments.torch_compile,
    )
    checkpoint = Path(f"{stem}.pt")
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        stack.load_state_dict(saved["stack"])
        active, finished, curves = saved["active"], saved["finished"], saved["curves"]

    progress = tqdm(total=arguments.max_epochs, initial=stack.steps, desc=f"{stem.parent.name} {arm}", mininterval=5)
    while active:
        # Before measuring, which a run that goes on from here does itself.
        if stack.steps % arguments.save_epochs == 0:
            state = {"stack": stack.state_dict(), "active": active, "finished": finished, "curves": curves}
            save_checkpoint(state, checkpoint)
            if stack.steps:
                title = f"{stem.parent.name}, {arm}, up to epoch {stack.steps:,}"
                plot_curves(list(curves.values()), arguments.eval_epochs, title).savefig(f"{stem}.png")
        if stack.steps % arguments.eval_epochs == 0:
            masks = torch.stack([is_train[seed] for seed in active])
            shared = (tensor.expand(len(active), *tensor.shape) for tensor in (pairs, answers))
            measures = stack.map(measure, *shared, masks)
            squares = sum(value.square().flatten(1).sum(1) for value in stack.params.values())
            measures["weight_norm"] = squares.sqrt()
            for index, seed in enumerate(active):
                for name in CURVES:
                    # Five digits: the curves are kept as text.
                    curves[seed][name].append(float(f"{measures[name][index].item():.5g}"))
            progress.set_postfix(left=len(active), test=f"{measures['test_accuracy'].mean().item():.3f}")

            settled = arguments.settle_epochs // arguments.eval_epochs
            for index, seed in enumerate(active):
                onset = first_step_at(curves[seed]["test_accuracy"], arguments.test_onset, 1)
                learned = onset is not None and max(curves[seed]["train_accuracy"]) >= TRAIN_ONSET
                over = len(curves[seed]["test_accuracy"]) - 1 - (onset or 0) >= settled
                if (learned and over) or stack.steps >= arguments.max_epochs:
                    model = build(arguments, arm, seed).to(device)
                    model.load_state_dict(stack.unstack(index))
                    finished[seed] = make_row(arguments, arm, seed, curves[seed], model, pairs, answers)
            left = [index for index, seed in enumerate(active) if seed not in finished]
            if len(left) < len(active):
                active = [active[index] for index in left]
                stack.keep(left)
                if not active:
                    break
        batch = (torch.stack([tensor[splits[seed]] for seed in active]) for tensor in (pairs, answers))
        stack.step(*batch)
        progress.update()
    progress.close()
    return [finished[seed] for seed in arguments.seeds]


def other_rows(arguments: Arguments, stored: list[dict]) -> list[dict]:
    """
    The stored rows that this command does not make anew. Refuses to replace a seed that was run under other settings,
    or further than `max_epochs`; a higher one changes nothing but how long a seed may take.
    """
    others = []
    for row in stored:
        if name_of(row["table"], row["lr"], row["settings"]) != arguments.name or row["arm"] not in arguments.arms:
            others.append(row)
            continue
        differences = {
            key: (row["settings"][key], value)
            for key, value in arguments.settings.items()
            if (value < row["epochs"] if key == "max_epochs" else value != row["settings"][key])
        }
        if row["seed"] not in arguments.seeds:
            others.append(row)
        elif differences:
            raise ValueError(
                f"The results hold seed {row['seed']} of {row['arm']} under other settings, (then, now): "
                f"{differences}. Give another `--results_dir`, or those settings."
            )
    return others


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and adds the rows to those of `results`."""

    def stored() -> list[dict]:
        return other_rows(arguments, read_results(results) if (results / "results.jsonl").is_file() else [])

    # Before any work; and again after it, as another table may have been added meanwhile.
    stored()
    settings = {"table": arguments.table, "lr": arguments.lr, "seeds": arguments.seeds, **arguments.settings}
    jobs = {arm: arm for arm in arguments.arms}
    rows = run_jobs(functools.partial(run_job, arguments), jobs, folder / arguments.name, settings, processes)

    def place(row: dict) -> tuple:
        return name_of(row["table"], row["lr"], row["settings"]), list(ARMS).index(row["arm"]), row["seed"]

    write_results(results, sorted(stored() + rows, key=place))
