"""
Measures one model: from a model, its tokenizer and texts to findings, the dictionary of numbers and tensors that the
figures and the report draw.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import prism, reducers, response, spherical
from .collect import SHORTEST, Batch, collect_windows, cut_texts, plan_length, prepared, text_ids
from .heads import pattern_sums, prefix_matching_pattern, random_repeats


# Two different tokens, and the same pair again.
SHORTEST_REPEAT = 4
# Above this share of unknown tokens bits per byte mean nothing: one token stands for many words.
MOST_UNKNOWN = 0.01


def context_length(model: PreTrainedModel, longest: int = 256) -> int:
    """The number of the model's positions, at most `longest`."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(longest, positions) if positions else longest


def family_of(model: PreTrainedModel) -> str:
    """The model type of a model's class; the config of a Llama folder opened as a Momentum still says "llama"."""
    return getattr(type(model).config_class, "model_type", None) or model.config.model_type


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raises `ValueError` unless a model predicts every token from the tokens before it, tried on a few tokens."""
    name, size = type(model).__name__, model.config.get_text_config().vocab_size
    ids = torch.arange(context_length(model, 8), device=model.device)[None] % size
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % size
    logits = [None]
    if not model.config.is_encoder_decoder:
        with prepared(model, attentions=False):
            logits = [getattr(model(input_ids=each), "logits", None) for each in (ids, other)]
    if logits[0] is None or logits[0].shape != (*ids.shape, size):
        raise ValueError(
            f"{name} is not a causal language model: it does not return logits over its {size} tokens at every "
            "position. Open the model with `AutoModelForCausalLM`."
        )
    if logits[0].isnan().any():
        raise ValueError(f"{name} returns logits that are not numbers: its weights are damaged.")
    if (logits[0] - logits[1])[:, :-1].abs().max() > 1e-5 * logits[0].abs().max():
        raise ValueError(
            f"{name} is not a causal language model here: its predictions depend on later tokens, so losses and "
            "attention would not be comparable. Give a model that was trained to predict the next token."
        )


def check_length(max_length: int) -> None:
    """Raises `ValueError` for windows too short to hold a repeat."""
    if max_length < SHORTEST_REPEAT:
        raise ValueError(
            f"`max_length`={max_length} has no room for a pair of tokens and its repeat: give at least "
            f"{SHORTEST_REPEAT}, or {SHORTEST} to measure heads too."
        )


def read_windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[list[Tensor], int]:
    """
    `cut_texts` for a model.

    Raises:
        ValueError: there is nothing to read, the tokenizer cannot read the texts or has more tokens than the model, or
            windows are too short.
    """
    check_length(max_length)
    try:
        windows, num_bytes = cut_texts(tokenizer, texts, max_length)
    except ValueError:
        raise
    # `tokenizers` raises a bare `Exception` for words without a token.
    except Exception as error:
        raise ValueError(
            f"The model's tokenizer cannot read these texts ({error}): give texts it was made for or, if the "
            "model solves a task modulo a number, `--modulus`."
        ) from error
    largest, size = max(int(window.max()) for window in windows), model.config.get_text_config().vocab_size
    if largest >= size:
        raise ValueError(
            f"The tokenizer produces token {largest}, but the model has only {size}: they do not belong together. Use "
            "the tokenizer that the model was trained with."
        )
    return windows, num_bytes


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[float, str | None]:
    """
    The share of unknown tokens in texts, and the token that replaces them; 0 and None if the tokenizer has none.

    Where a text itself contains that token, it counts as known.
    """
    # A tokenizer built from a bare `tokenizers.Tokenizer` has it only in its backend.
    backend = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    token = tokenizer.unk_token or getattr(backend, "unk_token", None)
    if token is None:
        return 0.0, None
    number = tokenizer.convert_tokens_to_ids(token)
    # Only a word of the vocabulary is read back as itself.
    is_word = text_ids(tokenizer, token) == [number]
    unknown = total = 0
    for text in texts:
        ids = text_ids(tokenizer, text)
        unknown += max(0, ids.count(number) - (text.count(token) if is_word else 0))
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
        model: one of this package, a Llama, a GPT-2, or any other that returns hidden states; left unchanged.
        tokenizer: the model's tokenizer.
        texts: each is read from its beginning, in windows of `max_length` tokens.
        name: label of the model in figures.
        max_length: at least 4, at most the model's positions. Default: the model's positions, at most 256.
        memory_budget: bytes for the activations of a batch.
        progress: show progress bars.

    Returns:
        `name`, `family` (the model type), `parameters`, `layers`, `heads per layer`, `texts`, `windows`, `tokens`,
        `max length`, `unknown tokens` (a share); `loss`, `heads` and `residual` (see `reducers.py`); `repeats` (see
        `measure_repeats`); `prism` or `momentum` for these families (see `measure_prism`, `measure_momentum`);
        `notes`, sentences on what was changed or could not be measured.

    Raises:
        ValueError: the model is not a causal language model, there is nothing to read, `texts` is a single string,
            windows are too short, the tokenizer has more tokens than the model, or the memory budget is too small.
    """
    notes: list[str] = []
    config = model.config.get_text_config()
    if isinstance(texts, str):
        raise ValueError("`texts` must be a list of strings, got a single string: give [text].")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("`texts` must be a list of strings, and holds something else.")
    asked, max_length = max_length, context_length(model, 256 if max_length is None else max_length)
    check_length(max_length)
    check_causal(model)
    family = family_of(model)
    with noting_warnings(notes):
        if asked is not None and asked > max_length:
            warnings.warn(
                f"`max_length`={asked} exceeds the {max_length} positions of the model: windows have {max_length} "
                "tokens.",
                stacklevel=2,
            )
        attentions = gives_attentions(model, notes)
        max_length = plan_length(model, max_length, memory_budget, attentions)
        windows, num_bytes = read_windows(model, tokenizer, texts, max_length)
        unknown, token = unknown_tokens(tokenizer, texts)
        if unknown > MOST_UNKNOWN:
            notes.append(
                f"The tokenizer does not know {unknown:.1%} of the tokens of these texts and replaces them by "
                f"{token!r}. Bits per byte would be meaningless and are left out."
            )
        options = {"memory_budget": memory_budget, "attentions": attentions}

        def stage(label: str) -> bool | str:
            return progress and f"{name}: {label}"

        chosen = [reducers.reduce_loss, reducers.reduce_residual]
        if attentions:
            chosen.append(reducers.head_reducer(max_length))
        if family == "prism":
            chosen.append(prism.input_reducer(model))
        sums = collect_windows(model, windows, chosen, progress=stage("reading texts"), **options)

        findings = {
            "name": name,
            "family": family,
            "parameters": model.num_parameters(),
            "layers": config.num_hidden_layers,
            "heads per layer": getattr(config, "num_attention_heads", None),
            "texts": len(texts),
            "windows": len(windows),
            "tokens": int(sums["tokens"]),
            "max length": max_length,
            "unknown tokens": unknown,
            "loss": reducers.loss_metrics(sums, num_bytes),
            "residual": reducers.residual_metrics(sums),
        }
        if attentions:
            try:
                findings["heads"] = reducers.head_metrics(sums)
            except ValueError as error:
                notes.append(str(error))
            findings["repeats"] = measure_repeats(
                model, tokenizer, max_length, progress=stage("random repeats"), **options
            )
        long = [window for window in windows if len(window) >= 2 * SHORTEST][:16]
        if not long:
            notes.append(f"No text has {2 * SHORTEST} tokens: measurements on whole texts are left out.")
        if family == "prism":
            findings["prism"] = prism.measure_prism(model, findings.get("heads"), sums, long)
        if family == "momentum":
            findings["momentum"] = response.measure_momentum(model, long)
        if family in ("prism", "momentum"):
            with steered(model, 0.0):
                options |= {"attentions": False, "progress": stage("mechanism off")}
                off = collect_windows(model, windows, [reducers.reduce_loss], **options)
            findings["loss with the mechanism off"] = reducers.loss_metrics(off, num_bytes)
    findings["notes"] = notes
    return findings


@contextlib.contextmanager
def steered(model: PreTrainedModel, value: float) -> Iterator[None]:
    """
    Sets a Prism's lambda to `value`, or multiplies a Momentum's gammas or a Spherical's scores by it; restores the
    model afterwards. Any other model stays as it is.
    """
    if family_of(model) == "prism":
        before = model.config.noise_coefficient
        try:
            model.set_noise_coefficient(value)
            yield
        finally:
            model.set_noise_coefficient(before)
        return
    name = {"momentum": "gamma", "spherical": "scaling"}.get(family_of(model))
    modules = [layer.self_attn for layer in model.base_model.layers] if name else []
    before = [getattr(module, name) for module in modules]
    try:
        for module, trained in zip(modules, before):
            setattr(module, name, value * trained)
        yield
    finally:
        for module, trained in zip(modules, before):
            setattr(module, name, trained)


def measure_repeats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_texts: int = 32,
    **options,
) -> dict[str, Tensor | float]:
    """
    Measures a model on random texts that repeat at varying distances (`random_repeats`), of at most `max_length`
    tokens (`SHORTEST_REPEAT` or more).

    Returns:
        `induction`, the prefix-matching score of each head (L, H); `nats of repeats`, the loss on tokens that can be
        looked up; `nats of random tokens`, the loss on first occurrences, which cannot.
    """
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), model.config.get_text_config().vocab_size)
    token_ids = torch.tensor([token for token in range(size) if token not in special])
    num_distinct = min(max_length // 2, 48, len(token_ids))
    ids, predictable = random_repeats(token_ids, num_texts, num_distinct, num_distinct // 2)

    def reduce(batch: Batch) -> dict[str, Tensor]:
        pattern = prefix_matching_pattern(batch.input_ids)
        parts = [pattern_sums(A, pattern) for A in batch.attentions]
        nats = reducers.next_token_nats(batch)
        known = predictable[batch.rows][:, 1:].to(nats.device)
        return {
            "induction": torch.stack([total for total, _ in parts]),
            "queries": parts[0][1],
            "known": (nats * known).sum(),
            "random": nats[:, : num_distinct - 1].sum(),
        }

    sums = collect_windows(model, list(ids), [reduce], **options)
    return {
        "induction": sums["induction"] / sums["queries"],
        "nats of repeats": (sums["known"] / predictable.sum()).item(),
        "nats of random tokens": (sums["random"] / (num_texts * (num_distinct - 1))).item(),
    }


@contextlib.contextmanager
def noting_warnings(notes: list[str]) -> Iterator[None]:
    """Appends each warning to `notes`, once, and still issues it."""
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
    """Whether a model returns attention maps, tested on a few tokens. If not, a note says why metrics are missing."""
    try:
        collect_windows(model, [torch.zeros(4, dtype=torch.long)], [lambda batch: {}], progress=False)
    except ValueError as error:
        notes.append(f"Head metrics are left out: {error}")
        return False
    return True


def unembedding_in_use(model: PreTrainedModel) -> Tensor:
    """
    The effective unembedding, one row per token (V, d): the weight of a linear head; for Spherical's bounded head,
    tau times the weight's rows at length 1.
    """
    head = model.get_output_embeddings()
    directions = torch.eye(head.weight.shape[1], dtype=head.weight.dtype, device=head.weight.device)
    # The difference removes a bias.
    return (head(directions) - head(torch.zeros_like(directions))).T


@torch.no_grad()
def examine_cyclic(
    model: PreTrainedModel, modulus: int, operation: str = "add", *, name: str = "model", batch_size: int = 2048
) -> dict:
    """
    Measures a model of a task on residues, [a, b, =] with "=" as token `modulus`, at the last position.

    Args:
        model: a causal language model with at least `modulus + 1` tokens.
        modulus: p, at least 2; a prime above 2 if `operation` is "multiply".
        operation: "add" or "multiply"; selects the group of the Fourier basis.

    Returns:
        `accuracy` on all p * p inputs, and `accuracy by k` frequencies kept; energies per frequency (F,) of
        `embedding`, `unembedding` (as the head uses it), `logits` and, for Spherical, `W_U W_out`, the contribution of
        the last MLP's neurons to the logits; `explained by top 5` for each of them; the `top frequencies` of the
        logits; `residues`, the length of the cycle; `residual`; `clock` (see `spherical.clock`). The energies of
        `logits` exclude their mean over inputs, which dominates before training. Products with 0 count only in
        `accuracy`.

    Raises:
        ValueError: the model has too few tokens, or the modulus is not valid for the operation.
    """
    config = model.config.get_text_config()
    spherical.check_modulus(modulus, operation)
    check_causal(model)
    family = family_of(model)
    if config.vocab_size < modulus + 1:
        raise ValueError(
            f"`modulus`={modulus} needs {modulus + 1} tokens (the last is =), but the model has {config.vocab_size}: "
            f"give the modulus it was trained on, at most {config.vocab_size - 1}."
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
    if family == "spherical":
        tables["W_U W_out"] = tables["unembedding"] @ model.base_model.layers[-1].mlp.down_proj.weight
    energies = {label: spherical.fourier_energies(table.double().cpu()[order]) for label, table in tables.items()}
    # 0 is not a power of the root: leave out products with 0.
    cyclic = labels != 0 if operation == "multiply" else torch.ones_like(labels, dtype=torch.bool)
    place = torch.zeros(modulus, dtype=torch.long)
    place[order] = torch.arange(len(order))
    logits, labels, right = logits[cyclic][:, order], place[labels[cyclic]], spherical.accuracy(logits, labels)
    # A constant vector over classes would contribute frequencies that say nothing about the inputs.
    energies["logits"] = spherical.fourier_energies(logits - logits.mean(0), dim=-1)
    return {
        "name": name,
        "family": family,
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
        "residual": reducers.residual_metrics(sums),
        "clock": spherical.clock(tables["embedding"].double().cpu(), logits, order, energies["logits"]),
        "notes": [],
    }
