"""
Compares the speed of several models in one process: training, prefill and cached decoding.

    python -m training.benchmarks.throughput configuration/models/prism-tiny configuration/models/gpt2-tiny \
        configuration/models/llama-tiny --batch_size 8 --sequence_length 256 --rounds 5 --output throughput.json

A model is a folder that `AutoConfig` can read. If the folder holds no weights, the model is random and its config can
be overridden: `configuration/models/spherical-tiny:attention_routing=uniform,hidden_size=96`. Three phases are timed:
  - training: forward pass, backward pass and AdamW step, with full logits. Under `--dtype bfloat16` the weights stay
    in fp32 and the forward pass runs under autocast, as in `Trainer` with `bf16=True`;
  - prefill, in `--dtype`: a forward pass that fills a key-value cache and computes the logits of the last position;
  - decoding: greedy, token by token, on the cache of a prompt of `sequence_length - decode_tokens` tokens.

Each round times every model, in rotating order, so that a slow spell of the machine hits all of them. Ratios are taken
within a round; the result keeps their median and extremes. Extremes that lie far apart mean a busy machine and a
worthless ratio. Dropout is 0 everywhere, and all models read the same token ids. `training/flops.py` defines the
FLOPs, which exclude the optimizer. They count the full square of attention; the causal ratio counts the half that a
causal kernel cannot skip. Peak memory covers the model's weights, its optimizer state and everything the timed code
allocates. CUDA's allocator counts it exactly; on a CPU (Linux only) it is the peak resident set minus the other
models' tensors, accurate to a few MiB.
"""

import contextlib
import ctypes
import functools
import gc
import inspect
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

import modeling_prism  # noqa: F401  (registers the models of this package)
from training.command import CommandParser
from training.experiments.common.arguments import check_device, check_positive
from training.experiments.common.readme import make_table
from training.flops import forward_flops_per_token, training_flops_per_token
from training.loading import override_config
from training.model_card import code_revision


@dataclass
class ThroughputArguments:
    models: list[str] = field(
        metadata={
            "help": "Two or more model folders. A folder without weights takes config overrides: "
            "FOLDER:key=value,key=value. May come first, without `--models`."
        }
    )
    reference: str | None = field(
        default=None, metadata={"help": "The entry of `models` that ratios refer to. Default: the first."}
    )
    batch_size: int = field(default=8, metadata={"help": "Sequences per step."})
    sequence_length: int = field(default=256, metadata={"help": "Tokens per sequence."})
    decode_tokens: int = field(
        default=32,
        metadata={"help": "How many tokens of `sequence_length` to decode one by one; the rest is the prompt."},
    )
    rounds: int = field(default=5, metadata={"help": "Measurements per model."})
    steps: int = field(default=2, metadata={"help": "Training steps, or prefills, per measurement."})
    warmup: int = field(default=1, metadata={"help": "Measurements per model to discard first."})
    device: str = field(
        default="auto", metadata={"help": "'cpu', 'cuda', 'cuda:1', ...; 'auto' picks CUDA if available."}
    )
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "Precision."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "'eager', 'sdpa', 'flash_attention_2' or 'flex_attention'. Default: transformers' choice."},
    )
    compile: bool = field(
        default=False, metadata={"help": "Compile the models with `torch.compile`; decoding then uses a static cache."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self):
        if len(self.models) < 2:
            raise ValueError(
                f"`models` must name at least two folders, got {self.models}. Peers of equal size are in "
                "configuration/models."
            )
        check_positive(self, "batch_size", "rounds", "steps", "decode_tokens")
        if self.warmup < 0:
            raise ValueError(f"`warmup` must be at least 0, got {self.warmup}.")
        if self.decode_tokens >= self.sequence_length:
            raise ValueError(
                f"`decode_tokens`={self.decode_tokens} leaves no prompt: it must be below `sequence_length`="
                f"{self.sequence_length}."
            )
        if self.reference is None:
            self.reference = self.models[0]
        if self.reference not in self.models:
            raise ValueError(f"`reference`={self.reference!r} is not in `models`: {self.models}.")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(self.device)
        make_folder_of(self.output)


@dataclass
class Arm:
    """A model of the comparison; `forward` is the model itself, compiled on request."""

    name: str
    model: PreTrainedModel
    forward: Callable
    optimizer: torch.optim.Optimizer | None = None

    def memory(self) -> int:
        """Bytes of weights, buffers and optimizer state."""
        states = self.optimizer.state.values() if self.optimizer is not None else []
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
        return sum(tensor.nbytes for tensor in tensors)


def load_arm(folder: str, name: str, arguments: ThroughputArguments) -> Arm:
    """
    Loads a trained model, or builds a random one if the folder holds only a config.

    Raises:
        ValueError: the folder holds no model, the sequence exceeds the model's positions, or overrides are given for a
            model with weights.
    """
    folder, _, overrides = folder.partition(":")
    path = Path(folder)
    has_weights = any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))
    if overrides and has_weights:
        raise ValueError(f"`models` overrides {overrides!r} for {folder!r}, but its weights were trained without.")
    if not (path / "config.json").is_file():
        raise ValueError(f"`models` names {folder!r}, which is not a model folder: it has no `config.json`.")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`models` names {folder!r}, whose `config.json` does not describe a model: {error}"
        ) from error
    config = override_config(config, folder, overrides)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and arguments.sequence_length > positions:
        raise ValueError(
            f"`sequence_length`={arguments.sequence_length} exceeds the {positions} positions "
            f"(`max_position_embeddings`) of {name}: use `--sequence_length {positions}` or less."
        )
    # Dropout adds work to some models and disables fused kernels in others.
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)

    torch.manual_seed(0)
    options = {"dtype": torch.float32}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if has_weights:
        model = AutoModelForCausalLM.from_pretrained(path, config=config, **options)
    else:
        model = AutoModelForCausalLM.from_config(config, **options)
    model.to(arguments.device)
    return Arm(name, model, torch.compile(model) if arguments.compile else model)


def prepare_training(arm: Arm, input_ids: torch.Tensor, arguments: ThroughputArguments) -> Callable[[], None]:
    if arm.optimizer is None:
        arm.model.train()
        arm.optimizer = torch.optim.AdamW(arm.model.parameters(), lr=1e-4, fused=True)
    autocast = arguments.dtype == "bfloat16"

    def run():
        for _ in range(arguments.steps):
            with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=autocast):
                loss = arm.forward(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            loss.backward()
            arm.optimizer.step()
            arm.optimizer.zero_grad(set_to_none=True)

    return run


def last_logits_only(model: PreTrainedModel) -> dict[str, int]:
    """The option that `generate` passes at prefill, for models that accept it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def prepare_prefill(arm: Arm, input_ids: torch.Tensor, arguments: ThroughputArguments) -> Callable[[], None]:
    options = last_logits_only(arm.model)

    @torch.no_grad()
    def run():
        for _ in range(arguments.steps):
            cache = DynamicCache(config=arm.model.config)
            arm.forward(input_ids=input_ids, past_key_values=cache, use_cache=True, **options)

    return run


@torch.no_grad()
def prepare_decoding(arm: Arm, input_ids: torch.Tensor, arguments: ThroughputArguments) -> Callable[[], None]:
    length = arguments.sequence_length
    prompt = input_ids[:, : length - arguments.decode_tokens]
    if arguments.compile:
        # Fixed shapes: one compilation serves every token.
        cache = StaticCache(config=arm.model.config, max_cache_len=length)
    else:
        cache = DynamicCache(config=arm.model.config)
    logits = arm.model(input_ids=prompt, past_key_values=cache, use_cache=True, **last_logits_only(arm.model)).logits
    first_token = logits[:, -1:].argmax(dim=-1)
    positions = torch.arange(length, device=input_ids.device)[None]

    @torch.no_grad()
    def run():
        token = first_token
        for position in range(prompt.shape[1], length):
            output = arm.forward(
                input_ids=token,
                position_ids=positions[:, position : position + 1],
                past_key_values=cache,
                use_cache=True,
            )
            token = output.logits[:, -1:].argmax(dim=-1)

    return run


class PeakMemory:
    """Bytes in use now, and the peak since `reset`. On a CPU: the resident set of the process."""

    def __init__(self, device: torch.device):
        self.device = device
        self.on_cuda = device.type == "cuda"
        self.measurable = self.on_cuda or Path("/proc/self/clear_refs").exists()

    def _status(self, field: str) -> int:
        line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(line[1]) * 1024

    def now(self) -> int:
        if self.on_cuda:
            return torch.cuda.memory_allocated(self.device)
        self._give_back()
        return self._status("VmRSS")

    def _give_back(self):
        # Return the freed memory that the C library retains.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def reset(self):
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._give_back()
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.on_cuda else self._status("VmHWM")


def interleaved(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once per round, in rotating order."""
    for index in range(rounds):
        first = index % len(names)
        yield from (*names[first:], *names[:first])


def make_synchronize(device: torch.device) -> Callable[[], None]:
    return functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def measure(
    arms: list[Arm], prepare: Callable[[Arm], Callable[[], None]], arguments: ThroughputArguments
) -> dict[str, dict[str, list]]:
    """
    Times what `prepare` returns for each model, in interleaved rounds.

    Returns:
        per model: `seconds` of every round and, where it can be measured, `peak_bytes`.
    """
    device = torch.device(arguments.device)
    memory, synchronize = PeakMemory(device), make_synchronize(device)
    for arm in arms:
        for _ in range(arguments.warmup):
            prepare(arm)()
    by_name = {arm.name: arm for arm in arms}
    measured = {name: {"seconds": [], "peak_bytes": []} for name in by_name}
    for name in interleaved(list(by_name), arguments.rounds):
        arm = by_name[name]
        gc.collect()
        others = memory.now() - arm.memory() if memory.measurable else 0
        run = prepare(arm)
        if memory.measurable:
            memory.reset()
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        measured[name]["seconds"].append(time.perf_counter() - start)
        if memory.measurable:
            measured[name]["peak_bytes"].append(memory.peak() - others)
        # Free what was prepared (a cache): it must not count toward the next model.
        del run
    return measured


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """`spread` of the speed relative to a reference, taken within each round."""
    return spread([other / own for own, other in zip(seconds, reference)])


def summarize(
    measured: dict[str, dict[str, list]], reference: str, tokens: int, flops: dict[str, dict[str, float]]
) -> dict[str, dict]:
    """
    Reduces the rounds of a phase to medians and extremes.

    Args:
        measured: as `measure` returns it.
        reference: the model that ratios refer to.
        tokens: processed per round.
        flops: per model, FLOPs per token by convention (`flops`, `causal_flops`); empty to leave them out.
    """
    results = {}
    for name, rounds in measured.items():
        seconds = rounds["seconds"]
        ratio = compare(seconds, measured[reference]["seconds"])
        results[name] = {
            "seconds": spread(seconds),
            "peak_bytes": spread(rounds["peak_bytes"]) if rounds["peak_bytes"] else None,
            "tokens_per_second": spread([tokens / value for value in seconds]),
            "tokens_ratio": ratio,
        }
        for convention, per_token in flops[name].items():
            factor = per_token / flops[reference][convention]
            results[name] |= {
                f"{convention}_per_token": per_token,
                f"{convention}_per_second": spread([tokens * per_token / value for value in seconds]),
                f"{convention}_ratio": {key: factor * value for key, value in ratio.items()},
            }
    return results


def describe_run(device: str) -> dict[str, str]:
    """Machine, versions and revision: what a reader needs to compare results."""
    if torch.device(device).type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = platform.processor() or platform.machine()
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            hardware = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), hardware)
        hardware += f", {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        with contextlib.suppress(OSError):
            hardware += f", load {os.getloadavg()[0]:.1f} at the start"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "revision": code_revision(),
    }


def run_benchmark(arguments: ThroughputArguments) -> dict:
    """
    Measures all models and writes the result to `arguments.output`, if set.

    Returns:
        `header` (machine and versions), `arguments`, `models` (per name: folder, type, attention, parameters) and
        `phases` (`training`, `prefill`, `decoding`: per name, medians, extremes and ratios).
    """
    header = describe_run(arguments.device)
    names = [Path(folder).resolve().name for folder in arguments.models]
    if len(set(names)) < len(names):
        names = arguments.models
    if len(set(names)) < len(names):
        raise ValueError(f"`models` names a folder twice: {arguments.models}.")
    arms = [load_arm(folder, name, arguments) for folder, name in zip(arguments.models, names)]
    reference = names[arguments.models.index(arguments.reference)]

    vocab_size = min(arm.model.config.vocab_size for arm in arms)
    shape = (arguments.batch_size, arguments.sequence_length)
    input_ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(arguments.device)

    def training_flops(arm: Arm, causal: bool) -> float:
        return training_flops_per_token(arm.model, arguments.sequence_length, causal=causal)

    def prefill_flops(arm: Arm, causal: bool) -> float:
        return forward_flops_per_token(arm.model, arguments.sequence_length, logits_to_keep=1, causal=causal)

    tokens = input_ids.numel() * arguments.steps
    phases = {}
    for phase, prepare, phase_tokens, flops in (
        ("training", prepare_training, tokens, training_flops),
        ("prefill", prepare_prefill, tokens, prefill_flops),
        # Memory and kernel launches bound decoding, not arithmetic: FLOPs would say little.
        ("decoding", prepare_decoding, arguments.batch_size * arguments.decode_tokens, None),
    ):
        if phase == "prefill":
            for arm in arms:
                arm.optimizer = None
                arm.model.eval().to(getattr(torch, arguments.dtype))
        measured = measure(arms, lambda arm, prepare=prepare: prepare(arm, input_ids, arguments), arguments)
        counted = {
            arm.name: {"flops": flops(arm, False), "causal_flops": flops(arm, True)} if flops else {} for arm in arms
        }
        phases[phase] = summarize(measured, reference, phase_tokens, counted)

    models = {
        arm.name: {
            "folder": folder,
            "model_type": arm.model.config.model_type,
            "attn_implementation": arm.model.config._attn_implementation,
            "parameters": arm.model.num_parameters(),
        }
        for folder, arm in zip(arguments.models, arms)
    }
    result = {
        "header": header,
        "arguments": asdict(arguments),
        "reference": reference,
        "models": models,
        "phases": phases,
    }
    write_result(result, arguments.output)
    return result


def make_folder_of(output: str | None) -> None:
    """Makes the folder of a results file; an impossible one is refused before anything is measured."""
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)


def write_result(result: dict, output: str | None) -> None:
    """Writes the result as JSON; does nothing without a file."""
    if output is not None:
        Path(output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def format_ratio(ratio: dict | None) -> str:
    """A table cell for a ratio of `compare`."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""


def format_report(result: dict) -> str:
    """The result of `run_benchmark` as markdown: a header and one table per phase."""
    arguments = result["arguments"]
    options = ("batch_size", "sequence_length", "decode_tokens", "rounds", "steps", "warmup", "dtype", "compile")
    lines = [f"- {key}: {value}" for key, value in result["header"].items()]
    lines += ["- " + ", ".join(f"{option} {arguments[option]}" for option in options)]
    lines += [f"- medians of {arguments['rounds']} rounds; ratios to {result['reference']}: median (min to max)"]
    heads = ["model", "parameters", "tokens/s", "ratio", "MFLOP/token", "GFLOP/s", "ratio", "causal ratio"]
    for phase, by_model in result["phases"].items():
        cells = []
        for name, entry in by_model.items():
            model, counted = result["models"][name], "flops_per_token" in entry
            cells.append([f"{name} ({model['attn_implementation']})", f"{model['parameters']:,}"])
            cells[-1] += [f"{entry['tokens_per_second']['median']:,.0f}", format_ratio(entry["tokens_ratio"])]
            cells[-1].append(f"{entry['flops_per_token'] / 1e6:.2f}" if counted else "")
            cells[-1].append(f"{entry['flops_per_second']['median'] / 1e9:.1f}" if counted else "")
            cells[-1] += [format_ratio(entry.get(ratio)) for ratio in ("flops_ratio", "causal_flops_ratio")]
            cells[-1].append(
                f"{entry['peak_bytes']['max'] / 2**20:.0f} MiB" if entry["peak_bytes"] else "not measured"
            )
        lines += ["", f"### {phase.capitalize()}", "", make_table([*heads, "peak memory"], cells).strip()]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = CommandParser(ThroughputArguments, prog="python -m training.benchmarks.throughput")
    # A dataclass has no positional arguments.
    if argv and not argv[0].startswith("-"):
        argv = ["--models", *argv]
    (arguments,) = parser.parse(argv)
    print(format_report(run_benchmark(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
