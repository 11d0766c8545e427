"""What `examine` adds to the figures of any model: random repeats, and what is Prism's or Momentum's own."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import momentum, prism, reducers, response
from .collect import Batch, collect_windows
from .heads import pattern_sums, prefix_matching_pattern, random_repeats
from .representations import affinity_of_bases, coherence, orthonormal_rows, subspace_snr


# Two different tokens, and the pair of them again.
SHORTEST_REPEAT = 4


@contextlib.contextmanager
def mechanism_off(model: PreTrainedModel) -> Iterator[None]:
    """Prism with lambda = 0, Momentum with gamma = 0, on the same weights; afterwards it is as it was."""
    if model.config.model_type == "prism":
        before = model.config.noise_coefficient
        try:
            model.set_noise_coefficient(0.0)
            yield
        finally:
            model.set_noise_coefficient(before)
    else:
        modules = response.rotary_layers(model)
        gammas = [module.gamma for module in modules]
        try:
            for module in modules:
                module.gamma = 0.0
            yield
        finally:
            for module, gamma in zip(modules, gammas):
                module.gamma = gamma


def measure_repeats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_texts: int = 32,
    **options,
) -> dict[str, Tensor | float]:
    """
    What a model makes of random texts that repeat themselves at varying distances (`random_repeats`), of at most
    `max_length` tokens, which are `SHORTEST_REPEAT` or more.

    Returns:
        `induction`, the prefix-matching score of each head (L, H); `nats of repeats`, the loss of tokens that can be
        looked up; `nats of random tokens`, that of the first occurrences, which cannot.
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


def measure_prism(
    model: PreTrainedModel, head_figures: dict | None, sums: dict[str, Tensor], windows: Sequence[Tensor]
) -> dict:
    """
    Prism's own figures.

    Returns:
        `signal heads`, `lambda`; `banks`, by head figure a `BankSplit` as dictionary with its `adjusted_p`;
        `compression`, R_c a head of each bank by layer (L,), nats; `snr` of each bank's heads (L,); `coherence max`,
        `rms`, `spectral` and `frobenius` between the banks (L,), `affinity`, mean over pairs of a signal and a noise
        head (L,); `cosines`; `rope`.
    """
    config = model.config
    H, H_S = config.num_attention_heads, config.num_signal_heads
    found: dict = {"signal heads": H_S, "lambda": config.noise_coefficient, "rope": prism.rope_bands(config)}
    if head_figures is not None:
        names = [name for name in reducers.HEAD_FIGURES if name in head_figures]
        splits = [prism.split_by_bank(head_figures[name], H_S) for name in names]
        p_values = prism.adjusted([split.p_value for split in splits])
        found["banks"] = {
            name: {**split.to_dict(), "adjusted_p": p} for name, split, p in zip(names, splits, p_values)
        }
    rows: dict[str, list] = {}
    for layer, Z in zip(prism.layers_of(model), reducers.unstack_moments(sums, "prism")):
        U = layer.self_attn.dictionary.weight.detach().cpu().double()
        signal, noise = prism.heads_of(U, H).split((H_S, H - H_S))
        row = dict(zip(("compression signal", "compression noise"), prism.bank_compression(Z, U, H, H_S)))
        row["snr signal"] = torch.stack([subspace_snr(Z, head) for head in signal]).mean()
        row["snr noise"] = torch.stack([subspace_snr(Z, head) for head in noise]).mean()
        between = coherence(signal.flatten(0, 1), noise.flatten(0, 1))
        row |= {f"coherence {name}": value for name, value in between.items()}
        bases = [[orthonormal_rows(head) for head in bank] for bank in (signal, noise)]
        row["affinity"] = torch.stack([affinity_of_bases(s, n) for s in bases[0] for n in bases[1]]).mean()
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    found |= {name: torch.stack(values) for name, values in rows.items()}
    if windows:
        found["cosines"] = prism.measure_update_cosines(model, windows)
    return found


def measure_momentum(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict:
    """
    Momentum's own figures.

    Returns:
        `gammas` of the layers, `streams`, `placement`, `plane frequencies` (P,); `omegas` (W,) and by stream
        `measured` (L, P, W), the response to sinusoids, with `formula` alike; `noise omegas` and `noise` (L, W), that
        to white noise; `largest deviation` of measured from formula; `shares` of the four terms (4, L, H); `dc ac`
        tables (L, P).
    """
    config = model.config
    theta = response.plane_frequencies(model)
    omegas = torch.linspace(0, math.pi, 17, dtype=torch.float64)
    noise_omegas, noise = response.measured_noise_response(model)
    found: dict = {
        "gammas": [float(gamma) for gamma in config.layer_gammas],
        "streams": config.momentum_streams,
        "placement": config.momentum_placement,
        "plane frequencies": theta,
        "omegas": omegas,
        "measured": response.measured_response(model, omegas),
        "noise omegas": noise_omegas,
        "noise": noise,
    }
    found["formula"] = momentum.model_response(
        omegas, theta, found["gammas"], config.momentum_streams, config.momentum_placement
    )
    found["largest deviation"] = max(
        (found["measured"][stream] - found["formula"][stream]).abs().max().item() for stream in ("queries", "keys")
    )
    if windows:
        found["shares"] = response.measured_shares(model, windows)
        found["dc ac"] = response.measured_dc_ac(model, windows)
    return found
