"""
All that can be measured of one model: from a model, its tokenizer and texts to findings, a dictionary of numbers and
tensors that figures and report read.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import prism, reducers, spherical
from .collect import SHORTEST, Batch, collect_windows, cut_texts, plan_length, prepared
from .measures import SHORTEST_REPEAT, measure_momentum, measure_prism, measure_repeats, mechanism_off


# A larger share of unknown tokens makes bits per byte meaningless: all such words cost what their one token does.
MOST_UNKNOWN = 0.01


def context_length(model: PreTrainedModel, longest: int = 256) -> int:
    """The model's positions, at most `longest`."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(longest, positions) if positions else longest


def check_length(max_length: int) -> None:
    """Raises `ValueError` for windows in which nothing can repeat."""
    if max_length < SHORTEST_REPEAT:
        raise ValueError(
            f"`max_length`={max_length} leaves no room for a pair of tokens that repeats: give at least "
            f"{SHORTEST_REPEAT}, or {SHORTEST} for figures of heads too."
        )


def read_windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[list[torch.Tensor], int]:
    """
    `cut_texts` for a model.

    Raises:
        ValueError: nothing to read, texts that the tokenizer cannot read, windows that are too short, or a tokenizer
            with more tokens than the model.
    """
    check_length(max_length)
    try:
        windows, num_bytes = cut_texts(tokenizer, texts, max_length)
    except ValueError:
        raise
    # `tokenizers` raises nothing more particular for words of which a tokenizer has no token.
    except Exception as error:
        raise ValueError(
            f"The model's tokenizer cannot read these texts ({error}): give texts that it was made for, or, for a "
            "model of a task modulo a number, `--modulus`."
        ) from error
    largest, size = max(int(window.max()) for window in windows), model.config.get_text_config().vocab_size
    if largest >= size:
        raise ValueError(
            f"The tokenizer makes token {largest}, and the model has {size}: they do not belong together. Give the "
            "model the tokenizer that it was trained with."
        )
    return windows, num_bytes


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[float, str | None]:
    """
    Share of the tokens of texts that stand for what the tokenizer does not know, and the token that it writes for it.

    A text may hold that token itself, which is then known. 0 and None of a tokenizer that has no such token.
    """
    # A tokenizer made of a bare `tokenizers.Tokenizer` has it there alone.
    backend = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    token = tokenizer.unk_token or getattr(backend, "unk_token", None)
    if token is None:
        return 0.0, None
    number = tokenizer.convert_tokens_to_ids(token)
    unknown = total = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unknown += max(0, ids.count(number) - text.count(token))
        total += len(ids)
    return unknown / max(total, 1), token


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    name: str = "model",
    max_length: int | None = None,
    memory_budget: int = 2**30,
    progress: bool = True,
) -> dict:
    """
    Measures a causal language model on texts.

    Args:
        model: of this package, a Llama, a GPT-2, or any that gives hidden states; left as it was.
        tokenizer: its tokenizer.
        texts: each read from its beginning, in windows of `max_length` tokens.
        name: what figures call it.
        max_length: at least 4, at most the model's positions; default: these, or 256 if they are more.
        memory_budget: bytes for the activations of a batch.
        progress: show progress bars.

    Returns:
        `name`, `family` (its model type), `parameters`, `layers`, `heads per layer`, `texts`, `windows`, `tokens`,
        `max length`, `unknown tokens` (a share); `loss`, `heads`, `residual`, `repeats` as `reducers.py` and
        `measures.py` say; `prism` or `momentum` where the model is one; `notes`, sentences on what could not be
        measured or was changed.

    Raises:
        ValueError: nothing to read, one string in the place of a list, windows that are too short, a tokenizer with
            more tokens than the model, or too small a memory.
    """
    notes: list[str] = []
    config = model.config.get_text_config()
    if isinstance(texts, str):
        raise ValueError("`texts` must be a list of strings, got one string: give [text].")
    asked, max_length = max_length, context_length(model, 256 if max_length is None else max_length)
    # Before anything runs.
    check_length(max_length)
    with noting_warnings(notes):
        if asked is not None and asked > max_length:
            warnings.warn(
                f"`max_length`={asked} is beyond the {max_length} positions of the model: windows have {max_length} "
                "tokens.",
                stacklevel=2,
            )
        attentions = gives_attentions(model, notes)
        max_length = plan_length(model, max_length, memory_budget, attentions)
        windows, num_bytes = read_windows(model, tokenizer, texts, max_length)
        unknown, token = unknown_tokens(tokenizer, texts)
        if unknown > MOST_UNKNOWN:
            notes.append(
                f"The tokenizer does not know {unknown:.1%} of the tokens of these texts, and writes {token!r} for "
                "each: bits per byte are no measure of this model here, and are left out."
            )
        options = {"memory_budget": memory_budget, "progress": progress, "attentions": attentions}
        chosen = [reducers.reduce_loss, reducers.reduce_residual]
        if attentions:
            chosen.append(reducers.head_reducer(max_length))
        if config.model_type == "prism":
            chosen.append(prism.input_reducer(model))
        sums = collect_windows(model, windows, chosen, **options)

        findings = {
            "name": name,
            "family": config.model_type,
            "parameters": model.num_parameters(),
            "layers": config.num_hidden_layers,
            "heads per layer": getattr(config, "num_attention_heads", None),
            "texts": len(texts),
            "windows": len(windows),
            "tokens": int(sums["tokens"]),
            "max length": max_length,
            "unknown tokens": unknown,
            "loss": reducers.loss_figures(sums, num_bytes),
            "residual": reducers.residual_figures(sums),
        }
        if attentions:
            try:
                findings["heads"] = reducers.head_figures(sums)
            except ValueError as error:
                notes.append(str(error))
            findings["repeats"] = measure_repeats(model, tokenizer, max_length, **options)
        long = [window for window in windows if len(window) >= 2 * SHORTEST][:16]
        if not long:
            notes.append(f"No text has {2 * SHORTEST} tokens: what is measured on whole texts is left out.")
        if config.model_type == "prism":
            findings["prism"] = measure_prism(model, findings.get("heads"), sums, long)
        if config.model_type == "momentum":
            findings["momentum"] = measure_momentum(model, long)
        if config.model_type in ("prism", "momentum"):
            with mechanism_off(model):
                off = collect_windows(model, windows, [reducers.reduce_loss], **{**options, "attentions": False})
            findings["loss with the mechanism off"] = reducers.loss_figures(off, num_bytes)
    findings["notes"] = notes
    return findings


@contextlib.contextmanager
def noting_warnings(notes: list[str]) -> Iterator[None]:
    """Appends what is warned of to `notes`, once each, and warns as ever."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
    for message in dict.fromkeys(messages):
        notes.append(message)
        warnings.warn(message, stacklevel=3)


def gives_attentions(model: PreTrainedModel, notes: list[str]) -> bool:
    """Whether a model gives attention maps, tried on a few tokens; if not, a note says why figures are missing."""
    try:
        collect_windows(model, [torch.zeros(4, dtype=torch.long)], [lambda batch: {}], progress=False)
    except ValueError as error:
        notes.append(f"Figures of heads are left out: {error}")
        return False
    return True


def unembedding_in_use(model: PreTrainedModel) -> torch.Tensor:
    """
    What the head makes of each direction of the residual stream, a row a token: (V, d).

    Of a linear head it is the weight; of Spherical's bounded one, tau times the weight's rows at length 1.
    """
    head = model.get_output_embeddings()
    directions = torch.eye(head.weight.shape[1], dtype=head.weight.dtype, device=head.weight.device)
    # A bias is no part of it.
    return (head(directions) - head(torch.zeros_like(directions))).T


@torch.no_grad()
def examine_cyclic(
    model: PreTrainedModel, modulus: int, operation: str = "add", *, name: str = "model", batch_size: int = 2048
) -> dict:
    """
    Measures a model of a task on residues, [a, b, =] with "=" as token `modulus`, read at the last position.

    Args:
        model: a causal language model with at least `modulus + 1` tokens.
        modulus: p, at least 2; a prime above 2 if `operation` is "multiply".
        operation: "add" or "multiply"; the Fourier basis is that of the operation's group.

    Returns:
        `accuracy` on all p * p inputs, `accuracy by k` frequencies kept; energy by frequency (F,) of the rows of
        `embedding` and `unembedding` (as the head uses them), of `logits`, and of a Spherical's `W_U W_out`, what its
        last neurons add to the logits; the energies of `logits` are those of what differs between inputs: the mean
        over inputs is taken out first, which is nearly all there is before training; `explained by top 5` of each,
        and the `top frequencies` of the logits;
        `residues`, the length of the cycle; `residual`. Products with 0 count in `accuracy` alone.

    Raises:
        ValueError: too few tokens, or a modulus that is none.
    """
    config = model.config.get_text_config()
    spherical.check_modulus(modulus, operation)
    if config.vocab_size < modulus + 1:
        raise ValueError(
            f"`modulus`={modulus} needs {modulus + 1} tokens (the last is =), and the model has {config.vocab_size}: "
            f"give the modulus that it was trained on, at most {config.vocab_size - 1}."
        )
    pairs, labels = spherical.modular_pairs(modulus, operation)
    logits, sums = [], {}
    with prepared(model, attentions=False):
        for ids in pairs.split(batch_size):
            output = model(input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False)
            logits.append(output.logits[:, -1, :modulus].double().cpu())
            valid = torch.ones(ids.shape, dtype=torch.bool, device=model.device)
            batch = Batch(torch.arange(len(ids)), ids, valid, output.logits, tuple(output.hidden_states), ())
            for key, value in reducers.reduce_residual(batch).items():
                sums[key] = sums.get(key, 0) + value.cpu()
    logits = torch.cat(logits)

    order = spherical.discrete_log_order(modulus) if operation == "multiply" else torch.arange(modulus)
    tables = {"embedding": model.get_input_embeddings().weight, "unembedding": unembedding_in_use(model)}
    if config.model_type == "spherical":
        tables["W_U W_out"] = tables["unembedding"] @ model.base_model.layers[-1].mlp.down_proj.weight
    energies = {label: spherical.fourier_energies(table.double().cpu()[order]) for label, table in tables.items()}
    # A product with 0 is 0 whatever the other factor: it is no power, and is left out.
    cyclic = labels != 0 if operation == "multiply" else torch.ones_like(labels, dtype=torch.bool)
    place = torch.zeros(modulus, dtype=torch.long)
    place[order] = torch.arange(len(order))
    logits, labels, right = logits[cyclic][:, order], place[labels[cyclic]], spherical.accuracy(logits, labels)
    # A vector of classes that is the same for every input has some few strongest frequencies, whatever it is.
    energies["logits"] = spherical.fourier_energies(logits - logits.mean(0), dim=-1)
    return {
        "name": name,
        "family": config.model_type,
        "parameters": model.num_parameters(),
        "task": f"{operation} mod {modulus}",
        "residues": len(order),
        "accuracy": right,
        "accuracy by k": spherical.accuracy_by_top_k(logits, labels, energies=energies["logits"]),
        **energies,
        "explained by top 5": {
            label: spherical.explained_variance(energy, spherical.top_frequencies(energy, 5)).item()
            for label, energy in energies.items()
        },
        "top frequencies": spherical.top_frequencies(energies["logits"], 5).tolist(),
        "residual": reducers.residual_figures(sums),
        "notes": [],
    }
