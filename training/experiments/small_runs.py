"""
What experiments share: small Momentum models, trained as stacks; a file of results a job; the best of a grid; how
numbers are written.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from modeling_prism import MomentumConfig, MomentumForCausalLM
from training.model_card import code_revision, name_only
from training.stacked import Stack
from training.tasks.recall import IGNORED


def check_device(device: str) -> None:
    """Refuses, before any process is started, a GPU that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"`device`={device!r}, but torch finds no GPU here: leave the option out to run on the CPU.")


def check_compiler(device: str) -> None:
    """Refuses, before any process is started, to compile for a CPU without a C++ compiler."""
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        raise ValueError(
            "`torch_compile` needs a C++ compiler and found neither g++ nor clang++: install one, or leave the option "
            "out."
        )


def check_positive(options, *names: str) -> None:
    """Refuses options below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")


def check_lists(options, *names: str) -> None:
    """Refuses lists of options that are empty, or name something twice."""
    for name in names:
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must be one or more, all different, got {values}.")


def check_arms(options, known: dict) -> None:
    """`check_lists` of `arms`, which must be `known`."""
    check_lists(options, "arms")
    unknown = [arm for arm in options.arms if arm not in known]
    if unknown:
        raise ValueError(f"`arms` has unknown names {unknown}; there are {', '.join(known)}.")


@dataclass
class CorpusArguments:
    """What experiments that train through `training.pretrain` have in common."""

    dataset_name: str = field(
        default="roneneldan/TinyStories",
        metadata={"help": "A local folder with train.txt and valid.txt, or a hub name."},
    )
    recipe: str = field(
        default="configuration/recipes/tinystories_2m.yaml", metadata={"help": "What all arms have in common."}
    )


@dataclass
class SmallRunArguments:
    """What all runs of such an experiment have in common."""

    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 4e-3], metadata={"help": "Grid of every arm, run with the first seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Initialisation and data. All but the first run at their arm's best learning rate."},
    )
    batch_size: int = field(default=32, metadata={"help": "Sequences a step; none is seen twice."})
    max_steps: int = field(default=1200, metadata={"help": "Steps of every run."})
    eval_steps: int = field(default=50, metadata={"help": "Steps between two tests."})
    save_steps: int = field(default=250, metadata={"help": "Steps between two checkpoints of what is running."})
    test_examples: int = field(default=256, metadata={"help": "Sequences of the test, the same for all runs."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the models; their MLP has twice that."})
    num_attention_heads: int = field(default=2, metadata={"help": "Heads a layer."})
    initializer_range: float = field(
        default=0.05, metadata={"help": "Standard deviation of the first weights; at 0.02 two layers learn late."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the stacks: pays in long runs; takes a C++ compiler on a CPU."}
    )
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'."})
    jobs: int = field(
        default_factory=lambda: os.cpu_count() or 1, metadata={"help": "Processes, one thread each; 1 on a GPU."}
    )

    def __post_init__(self):
        check_positive(self, "batch_size", "max_steps", "eval_steps", "save_steps", "test_examples", "jobs")
        if self.max_steps % self.eval_steps:
            raise ValueError(
                f"`max_steps`={self.max_steps} must be a multiple of `eval_steps`={self.eval_steps}: the last test is "
                "to be that of the trained model."
            )
        if self.torch_compile:
            check_compiler(self.device)
        check_device(self.device)
        check_lists(self, "seeds", "learning_rates")


class AnswersOnly(nn.Module):
    """A causal LM whose logits are computed where they are scored: input_ids (B, L), places (B, Q) -> (B, Q, V)."""

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        hidden_states = self.causal_lm.model(input_ids, use_cache=False).last_hidden_state
        places = places[..., None].expand(-1, -1, hidden_states.shape[-1])
        return self.causal_lm.lm_head(hidden_states.gather(1, places))


def small_momentum(
    arguments: SmallRunArguments, seed: int, vocab_size: int, length: int, gamma: float, layers: int, **fields
) -> AnswersOnly:
    """A randomly initialised model whose gamma is a buffer, so that models with different gammas stack."""
    torch.manual_seed(seed)
    config = MomentumConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=2 * arguments.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=arguments.num_attention_heads,
        max_position_embeddings=length,
        initializer_range=arguments.initializer_range,
        # Any but 0, which would make the layer Llama's, without the buffer.
        momentum_gamma=1.0,
        **fields,
    )
    model = MomentumForCausalLM._from_config(config, attn_implementation="eager")
    for layer in model.model.layers:
        del layer.self_attn.gamma
        layer.self_attn.register_buffer("gamma", torch.tensor(float(gamma)))
    return AnswersOnly(model)


def answers_of(input_ids: np.ndarray, labels: np.ndarray, device: str) -> tuple[torch.Tensor, ...]:
    """`input_ids` (N, L), where logits are scored (N, Q), and the answers (N, Q), from a task's two arrays."""
    rows, columns = np.nonzero(labels != IGNORED)
    shape = (len(labels), -1)
    arrays = (input_ids, columns.reshape(shape) - 1, labels[rows, columns].reshape(shape))
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def answer_loss(forward: Callable, input_ids: torch.Tensor, places: torch.Tensor, answers: torch.Tensor):
    """Mean cross-entropy of the answers, in nats."""
    return nn.functional.cross_entropy(forward(input_ids, places).flatten(0, 1), answers.flatten())


def answer_accuracy(forward: Callable, input_ids: torch.Tensor, places: torch.Tensor, answers: torch.Tensor):
    """Share of the answers that are the most likely token of all."""
    return (forward(input_ids, places).argmax(-1) == answers).float().mean()


def _random_state(device: str, state: torch.Tensor | None = None) -> torch.Tensor:
    """The state of torch's own generator, which a model may draw from; set to `state` if that is given."""
    random = torch.cuda if torch.device(device).type == "cuda" else torch
    if state is not None:
        random.set_rng_state(state.cpu())
    return random.get_rng_state()


def train_stack(
    models: list[AnswersOnly],
    seeds: list[int],
    learning_rates: list[float],
    draw: Callable,
    arguments: SmallRunArguments,
    checkpoint: Path,
) -> tuple[np.ndarray, Stack]:
    """
    Trains models side by side on fresh examples, and goes on where it was stopped.

    Args:
        models (`list[AnswersOnly]`): K models.
        seeds (`list[int]`): of the data, one a model: equal seeds read the same examples in the same order.
        learning_rates (`list[float]`): one a model.
        draw (`Callable`): (number of examples, seed=) -> input_ids, labels.
        arguments (`SmallRunArguments`): the rest.
        checkpoint (`Path`): where all that is needed to go on is saved, every `save_steps`.

    Returns:
        test accuracies (K, tests), the first before training, then one every `eval_steps`; and the stack.
    """
    device = arguments.device
    stack = Stack(
        [model.to(device) for model in models],
        answer_loss,
        learning_rate=learning_rates,
        compile=arguments.torch_compile,
    )
    streams = {seed: np.random.default_rng([seed, 1]) for seed in dict.fromkeys(seeds)}
    # Another stream than any seed's: a list of three.
    test = answers_of(*draw(arguments.test_examples, seed=np.random.default_rng([0, 0, 2])), device)
    accuracies = [stack.map(answer_accuracy, *test, batched=False).cpu()]
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        stack.load_state_dict(saved["stack"])
        accuracies = list(saved["accuracies"].cpu())
        for stream, state in zip(streams.values(), saved["streams"]):
            stream.bit_generator.state = state
        _random_state(device, saved["random"])
    for step in range(stack.steps + 1, arguments.max_steps + 1):
        batches = {
            seed: answers_of(*draw(arguments.batch_size, seed=stream), device) for seed, stream in streams.items()
        }
        stack.step(*(torch.stack(parts) for parts in zip(*(batches[seed] for seed in seeds))))
        if step % arguments.eval_steps == 0:
            accuracies.append(stack.map(answer_accuracy, *test, batched=False).cpu())
        if step % arguments.save_steps == 0:
            saved = {
                "stack": stack.state_dict(),
                "accuracies": torch.stack(accuracies),
                "streams": [stream.bit_generator.state for stream in streams.values()],
                "random": _random_state(device),
            }
            save_checkpoint(saved, checkpoint)
    return torch.stack(accuracies, dim=1).numpy(), stack


def save_checkpoint(state: dict, file: Path) -> None:
    """Saves under another name until it is whole: a crash leaves the checkpoint before."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def first_step_at(accuracies: list[float], threshold: float, eval_steps: int) -> int | None:
    """The first tested step at which the accuracy is at least `threshold`; None: never."""
    reached = [index for index, accuracy in enumerate(accuracies) if accuracy >= threshold]
    return reached[0] * eval_steps if reached else None


def at_best_rate(rows: list[dict], metric: str = "mean_accuracy", best: Callable = max, **arm) -> list[dict]:
    """
    The rows of an arm at the learning rate that won the grid, a row a seed.

    Args:
        rows (`list[dict]`): of every arm those of the grid come first, all of one seed.
        metric (`str`): what the grid is judged by; the `best` (`max` or `min`) wins.
        arm: keys and values that all rows of the arm have.
    """
    rows = [row for row in rows if all(row[key] == value for key, value in arm.items())]
    winner = best((row for row in rows if row["seed"] == rows[0]["seed"]), key=lambda row: row[metric])
    return [row for row in rows if row["learning_rate"] == winner["learning_rate"]]


def _begun(file: Path) -> Path:
    """Beside the checkpoints of an unfinished job: the settings that they were made with."""
    return file.with_suffix(".settings")


def _run_job(run: Callable, job, file: Path, settings: dict) -> None:
    torch.set_num_threads(1)
    # What a job before this one compiled counts against torch's limit of eight programs a function.
    torch.compiler.reset()
    _begun(file).write_text(json.dumps({"settings": settings}), encoding="utf-8")
    rows = [{**row, "revision": code_revision()} for row in run(job, file.with_suffix(""))]
    # Under another name until it is whole.
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "rows": rows}), encoding="utf-8")
    partial.replace(file)
    for unfinished in (*file.parent.glob(f"{file.stem}.*.pt"), file.with_suffix(".pt"), _begun(file)):
        unfinished.unlink(missing_ok=True)


def _obey_parent() -> None:
    """Leaves Ctrl-C to the process that started this one, and ends with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_jobs(run: Callable, jobs: dict, folder: Path, settings: dict, processes: int) -> list[dict]:
    """
    Runs what is not finished yet and returns the rows of all jobs, in their order.

    Args:
        run (`Callable`): (job, stem) -> rows; a function that can be sent to another process. Its checkpoints go to
            files that begin with `stem`, and are removed when the job is finished.
        jobs (`dict`): name -> job. A finished one is kept as `<folder>/<name>.json`.
        folder (`Path`): where.
        settings (`dict`): what the rows depend on beside the job.
        processes (`int`): how many run at once.

    Raises:
        ValueError: `folder` holds a job finished, or begun, under other settings.
        SystemExit: interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    files = {name: folder / f"{name}.json" for name in jobs}
    for file in (path for file in files.values() for path in (file, _begun(file))):
        if file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))["settings"]
            changed = {key: (old.get(key), value) for key, value in settings.items() if old.get(key) != value}
            if changed:
                raise ValueError(
                    f"{file} was made with other settings, (then, now): {changed}. Give another `--output_dir`, or "
                    "remove the folder."
                )
    missing = [name for name in jobs if not files[name].is_file()]
    progress = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=folder.name, unit="job")
    # A fresh interpreter each: what torch holds does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_obey_parent) as pool:
        futures = {pool.submit(_run_job, run, jobs[name], files[name], settings): name for name in missing}
        try:
            for future in as_completed(futures):
                future.result()
                progress.set_postfix_str(futures[future])
                progress.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            progress.close()
            print("Stopped. The same command goes on from the last checkpoints.", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
    progress.close()
    return [row for file in files.values() for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def write_results(folder: Path, rows: list[dict], settings: dict) -> None:
    """Writes results.jsonl, a row a line, and beside it settings.json, which all rows have in common."""
    folder.mkdir(parents=True, exist_ok=True)
    published = {key: name_only(value) for key, value in settings.items()}
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")


def rounded(values: torch.Tensor, digits: int = 5) -> list:
    """As nested lists, of so many significant digits: results are kept as text."""
    if values.ndim:
        return [rounded(value, digits) for value in values]
    return float(f"{values.item():.{digits}g}")


def mean_and_spread(values: list[float], decimals: int = 3) -> str:
    """Mean ± standard deviation over seeds; of one seed, the value alone."""
    spread = f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"
