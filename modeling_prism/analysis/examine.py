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
from .measures import measure_momentum, measure_prism, measure_repeats, mechanism_off


def context_length(model: PreTrainedModel, longest: int = 256) -> int:
    """The model's positions, at most `longest`."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(longest, positions) if positions else longest


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
        max_length: default: the model's positions, at most 256.
        memory_budget: bytes for the activations of a batch.
        progress: show progress bars.

    Returns:
        `name`, `family` (its model type), `parameters`, `layers`, `heads per layer`, `texts`, `windows`, `tokens`,
        `max length`; `loss`, `heads`, `residual`, `repeats` as `reducers.py` and `measures.py` say; `prism` or
        `momentum` where the model is one; `notes`, sentences on what could not be measured or was changed.

    Raises:
        ValueError: nothing to read, a tokenizer with more tokens than the model, or too small a memory.
    """
    notes: list[str] = []
    config = model.config.get_text_config()
    max_length = max_length or context_length(model)
    with noting_warnings(notes):
        attentions = gives_attentions(model, notes)
        max_length = plan_length(model, max_length, memory_budget, attentions)
        windows, num_bytes = cut_texts(tokenizer, texts, max_length)
        largest = max(int(window.max()) for window in windows)
        if largest >= config.vocab_size:
            raise ValueError(
                f"The tokenizer makes token {largest}, and the model has {config.vocab_size}: they do not belong "
                "together."
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
        modulus: p, a prime if `operation` is "multiply".
        operation: "add" or "multiply"; the Fourier basis is that of the operation's group.

    Returns:
        `accuracy` on all p * p inputs, `accuracy by k` frequencies kept; energy by frequency (F,) of the rows of
        `embedding` and `unembedding` (as the head uses them), of `logits`, and of a Spherical's `W_U W_out`, what its
        last neurons add to the logits; `explained by top 5` of each, and the `top frequencies` of the logits;
        `residues`, the length of the cycle; `residual`. Products with 0 count in `accuracy` alone.

    Raises:
        ValueError: too few tokens.
    """
    config = model.config.get_text_config()
    if config.vocab_size < modulus + 1:
        raise ValueError(f"A task mod {modulus} needs {modulus + 1} tokens; the model has {config.vocab_size}.")
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
    energies["logits"] = spherical.fourier_energies(logits[cyclic][:, order], dim=-1)
    return {
        "name": name,
        "family": config.model_type,
        "parameters": model.num_parameters(),
        "task": f"{operation} mod {modulus}",
        "residues": len(order),
        "accuracy": spherical.accuracy(logits, labels),
        "accuracy by k": spherical.accuracy_by_top_k(logits[cyclic][:, order], place[labels[cyclic]]),
        **energies,
        "explained by top 5": {
            label: spherical.explained_variance(energy, spherical.top_frequencies(energy, 5)).item()
            for label, energy in energies.items()
        },
        "top frequencies": spherical.top_frequencies(energies["logits"], 5).tolist(),
        "residual": reducers.residual_figures(sums),
        "notes": [],
    }
