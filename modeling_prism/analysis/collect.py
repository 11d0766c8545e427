"""
Runs a model over texts and keeps sums: attention maps are reduced batch by batch and never stored.

Shapes: L layers, B windows in a batch, H heads, S tokens, d width, V vocabulary.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Shorter windows carry no information about attention over distance.
SHORTEST = 16


@dataclass(frozen=True)
class Batch:
    """The result of one forward pass. Windows are right-padded to S tokens."""

    rows: Tensor  # (B,), indices of the windows
    input_ids: Tensor  # (B, S)
    valid: Tensor  # (B, S), False at padding
    logits: Tensor  # (B, S, V)
    hidden_states: tuple[Tensor, ...]  # L + 1 of (B, S, d): before the first layer and after each layer
    attentions: tuple[Tensor, ...]  # L of (B, H, S, S); empty unless requested


# From a batch to named sums over its tokens. The sums of all batches are added.
Reducer = Callable[[Batch], dict[str, Tensor]]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, read as characters throughout: a special token written in it has no special meaning."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> tuple[list[Tensor], int]:
    """
    Cuts texts into windows of at most `max_length` token ids.

    A text starts with the tokenizer's `bos_token`, if there is one; each further window starts with the last token of
    the window before. Every token is thus predicted once, except the first of a text without `bos_token`.

    Returns:
        the windows, and the number of UTF-8 bytes predicted in them.

    Raises:
        ValueError: no text has a token to predict.
    """
    windows, num_bytes = [], 0
    for text in texts:
        ids = text_ids(tokenizer, text)
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
            unscored = 0
        else:
            unscored = len(tokenizer.decode(ids[:1]).encode())
        if len(ids) < 2:
            continue
        num_bytes += len(text.encode()) - unscored
        windows += [torch.tensor(ids[i : i + max_length]) for i in range(0, len(ids) - 1, max_length - 1)]
    if not windows:
        raise ValueError("The texts hold no token to predict: give texts of at least two tokens.")
    return windows, num_bytes


def bytes_per_window(
    model: PreTrainedModel, length: int, attentions: bool = True, max_length: int | None = None
) -> int:
    """
    Upper estimate of the bytes that a forward pass and its reduction allocate for a window of `length` tokens.

    `max_length` (default `length`) is that of the longest window: spectra have its resolution.
    """
    config = model.config.get_text_config()
    size = torch.finfo(model.dtype).bits // 8
    # All states, also in fp64; and six fp64 copies for the angle between two layers.
    hidden = length * config.hidden_size * ((config.num_hidden_layers + 1) * (size + 8) + 6 * 8)
    # The logits, once in their own precision and twice in fp32.
    logits = length * config.vocab_size * (size + 8)
    if not attentions:
        return hidden + logits
    num_heads = getattr(config, "num_attention_heads", None) or 1
    # All maps in the model's precision; scores and softmax of one layer; and in the reduction four fp32 copies of one
    # map: itself, aligned by lag, and two temporaries of the sums.
    maps = length * (config.num_hidden_layers * size + 2 * size + 4 * 4)
    # A spectrum has half as many points, each a complex number, a magnitude and a square (8 + 4 + 4 bytes); the map is
    # padded to its resolution.
    spectra = (max_length or length) * (16 // 2 + 4)
    return hidden + logits + num_heads * length * (maps + spectra)


def plan_length(model: PreTrainedModel, max_length: int, memory_budget: int, attentions: bool = True) -> int:
    """
    The longest window, at most `max_length` tokens, that fits the budget in bytes. Warns if it is shorter.

    Raises:
        ValueError: not even `SHORTEST` tokens fit.
    """
    length = max_length
    while bytes_per_window(model, length, attentions) > memory_budget and length > SHORTEST:
        length = max(SHORTEST, length * 3 // 4)
    if bytes_per_window(model, length, attentions) > memory_budget:
        raise ValueError(
            f"`memory_budget`={memory_budget} bytes cannot hold one window of {length} tokens, which needs about "
            f"{bytes_per_window(model, length, attentions)}: raise the budget, or collect without attention maps."
        )
    if length < max_length:
        warnings.warn(
            f"`memory_budget`={memory_budget} bytes hold windows of {length} tokens, not {max_length}: texts are cut "
            "shorter.",
            stacklevel=2,
        )
    return length


@contextlib.contextmanager
def prepared(model: PreTrainedModel, attentions: bool) -> Iterator[None]:
    """Sets eval mode and, for attention maps, eager attention; restores the model afterwards."""
    config = model.base_model.config
    # Record the last state before the final norm, so that norms and ranks are comparable across layers.
    tied = getattr(config, "tie_last_hidden_states", None)
    implementation, training = model.config._attn_implementation, model.training
    try:
        config.tie_last_hidden_states = False
        model.eval()
        # sdpa, flash and flex attention never form a map and return nothing when asked for one.
        if attentions and implementation != "eager":
            model.set_attn_implementation("eager")
        yield
    finally:
        model.train(training)
        if attentions and implementation != "eager":
            model.set_attn_implementation(implementation)
        if tied is None:
            del config.tie_last_hidden_states
        else:
            config.tie_last_hidden_states = tied


@torch.no_grad()
def run_batch(model: PreTrainedModel, windows: Sequence[Tensor], rows: Sequence[int], attentions: bool) -> Batch:
    """
    One forward pass over `windows[row]` for each row.

    Raises:
        ValueError: the model returns no attention maps or no hidden states.
    """
    chosen = [windows[row] for row in rows]
    input_ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True).to(model.device)
    lengths = torch.tensor([len(window) for window in chosen], device=model.device)
    valid = torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]
    output = model(
        input_ids=input_ids,
        attention_mask=valid.long(),
        output_attentions=attentions,
        output_hidden_states=True,
        use_cache=False,
    )
    maps = getattr(output, "attentions", None) or ()
    if attentions and (not maps or any(map is None for map in maps)):
        raise ValueError(
            f"{type(model).__name__} gives no attention maps, even with eager attention: some layers have no "
            "attention or do not record it. `attentions=False` still collects norms, ranks and losses."
        )
    if not getattr(output, "hidden_states", None):
        raise ValueError(f"{type(model).__name__} gives no hidden states and cannot be measured.")
    return Batch(torch.tensor(rows), input_ids, valid, output.logits, tuple(output.hidden_states), tuple(maps))


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has its own error class; the CPU allocator only has messages, one on Linux and one on Windows."""
    texts = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def collect_windows(
    model: PreTrainedModel,
    windows: Sequence[Tensor],
    reducers: Sequence[Reducer],
    *,
    attentions: bool = True,
    memory_budget: int = 2**30,
    batch_size: int | None = None,
    progress: bool | str = True,
) -> dict[str, Tensor]:
    """
    Runs a model over windows of token ids (S_i,) and adds up the sums that `reducers` return for each batch.

    If memory runs out despite the budget, it warns and halves this and all later batches.

    Args:
        model: a causal language model on any device, with any attention implementation; left unchanged.
        windows: token ids; see `cut_texts`.
        reducers: from a batch to named sums.
        attentions: whether reducers need attention maps, which need eager attention and most of the memory.
        memory_budget: bytes for the activations of a batch; sets the number of windows per batch.
        batch_size: upper limit on the windows per batch.
        progress: show a progress bar, with this label if it is a string.

    Returns:
        the sums, on the CPU, in fp64.

    Raises:
        ValueError: the model gives no maps, or a single window does not fit into memory.
    """
    order = sorted(range(len(windows)), key=lambda row: -len(windows[row]))
    sums: dict[str, Tensor] = {}
    limit = batch_size or len(windows)
    done = 0
    label = progress if isinstance(progress, str) else "reading"
    with prepared(model, attentions), tqdm(total=len(order), desc=label, disable=not progress) as bar:
        while done < len(order):
            window_bytes = bytes_per_window(model, len(windows[order[done]]), attentions, len(windows[order[0]]))
            fitting = memory_budget // window_bytes
            rows = order[done : done + max(1, min(limit, fitting))]
            parts: list[dict[str, Tensor]] = []
            try:
                batch = run_batch(model, windows, rows, attentions)
                # Run all reducers before adding any sum: a retried batch must not count twice.
                parts = [reducer(batch) for reducer in reducers]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0]
            batch = None
            if not parts and reducers:
                if len(rows) == 1:
                    raise ValueError(
                        f"One window of {len(windows[rows[0]])} tokens does not fit into memory ({failure}): lower "
                        "`max_length`, or collect without attention maps."
                    )
                limit = len(rows) // 2
                warnings.warn(
                    f"Out of memory with {len(rows)} windows per batch: going on with {limit}.", stacklevel=2
                )
                continue
            for part in parts:
                for name, value in part.items():
                    value = value.detach().to("cpu", torch.float64)
                    sums[name] = sums[name] + value if name in sums else value
            done += len(rows)
            bar.update(len(rows))
    return sums
