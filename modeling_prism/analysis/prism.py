"""
Prism's two banks of heads: how they differ, and whether attention follows the objective it is derived from.

Shapes: L layers, H heads (the H_S signal heads first), D head width, M = H D rows of the dictionary U, N tokens of
width d. Source: Huang, arXiv 2601.15540; the white-box reading is ours, after Yu et al., arXiv 2306.01129 (CRATE).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .collect import Batch, prepared
from .momentum import rotary_frequencies
from .reducers import HEAD_METRICS, stack_moments, unstack_moments
from .representations import (
    Moments,
    affinity_of_bases,
    coherence,
    compression,
    compression_by_subspace,
    moments,
    orthonormal_rows,
    subspace_snr,
)


@dataclass(frozen=True)
class BankSplit:
    """A head metric, split by bank."""

    signal: float  # mean over signal heads
    noise: float  # mean over noise heads
    cliffs_delta: float
    p_value: float

    to_dict = asdict


def cliffs_delta(x: Tensor, y: Tensor) -> float:
    """
    Effect size of samples x (...) and y (...): the share of pairs with x > y minus the share with x < y, a float from
    -1 to 1. It depends on ranks alone and assumes no distribution; 0.15 is conventionally small, 0.33 medium, 0.47
    large.

    Source: Cliff, "Dominance statistics", 1993; the conventions are from Romano et al. 2006.
    """
    return (x.flatten()[:, None] - y.flatten()).sign().double().mean().item()


def split_by_bank(metric: Tensor, num_signal_heads: int, num_resamples: int = 9999, seed: int = 0) -> BankSplit:
    """
    Means of a head metric (L, H) per bank, their effect size, and a two-sided permutation test of their difference.

    The test (`scipy.stats.permutation_test`) reassigns the heads of all layers to the banks at random. It first
    subtracts each layer's mean, so that differences between layers do not count as noise. The smallest p is
    2 / (num_resamples + 1), or 2 over the number of assignments if `num_resamples` suffices to try them all: the
    smaller tail counts twice. Heads of one model are not seeds: a small p says that the banks of this model differ, no
    more.

    Source: Fisher 1935 (permutation tests).
    """
    metric = metric.double()
    signal, noise = metric[:, :num_signal_heads], metric[:, num_signal_heads:]
    centred = metric - metric.mean(-1, keepdim=True)
    test = scipy.stats.permutation_test(
        (centred[:, :num_signal_heads].flatten().numpy(), centred[:, num_signal_heads:].flatten().numpy()),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        n_resamples=num_resamples,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return BankSplit(signal.mean().item(), noise.mean().item(), cliffs_delta(signal, noise), float(test.pvalue))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """
    p-values (n,), adjusted for multiple tests: (n,), none smaller than before.

    Source: Benjamini and Hochberg 1995 (`scipy.stats.false_discovery_control`).
    """
    return scipy.stats.false_discovery_control(list(p_values)).tolist() if len(p_values) else []


# Coding rates


def heads_of(dictionary: Tensor, num_heads: int) -> Tensor:
    """Splits the dictionary (M, d) into one subspace per head: (H, D, d)."""
    return dictionary.unflatten(0, (num_heads, -1))


def bank_compression(
    Z: Tensor | Moments, dictionary: Tensor, num_heads: int, num_signal_heads: int, eps2: float = 0.5
) -> tuple[Tensor, Tensor]:
    """
    `R_c` of tokens (N, d) per head of the dictionary (M, d), in nats: the mean over signal heads and the mean over
    noise heads, two scalars.
    """
    rates = compression_by_subspace(Z, heads_of(dictionary, num_heads), eps2)
    return rates[:num_signal_heads].mean(), rates[num_signal_heads:].mean()


def objective(Z: Tensor, signal: Tensor, noise: Tensor, lam: float, eps2: float = 0.5) -> Tensor:
    """
    J(Z) = lambda R_c(Z | U_noise) - R_c(Z | U_signal) of tokens (N, d) and subspaces (K, D, d): a scalar, in nats.

    Derived here, after arXiv 2601.15540 and Yu et al., arXiv 2306.01129.
    """
    return lam * compression(Z, noise, eps2) - compression(Z, signal, eps2)


def ascent_direction(Z: Tensor, signal: Tensor, noise: Tensor, lam: float, eps2: float = 0.5) -> Tensor:
    """The gradient of `objective` in Z (N, d), by autograd: (N, d), fp64, in nats per unit of Z."""
    with torch.enable_grad():
        leaf = Z.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, signal, noise, lam, eps2), leaf)
    return gradient


def update_cosines(update: Tensor, direction: Tensor, Z: Tensor) -> dict[str, float]:
    """
    Cosine between attention's update and the direction it should take, over all tokens (N, d) at once, as floats.

    Returns:
        `plain`; and `tangential`, the cosine of their components orthogonal to each token. The derivation assigns the
        component along the token, which shrinks it, to the residual connection, so attention can agree only in the
        tangential one. Two random directions have 0 +- 1 / sqrt(N d).

    Derived here.
    """
    update, direction, Z = update.double(), direction.double(), Z.double()
    unit = torch.nn.functional.normalize(Z, dim=-1)

    def tangential(x: Tensor) -> Tensor:
        return x - (x * unit).sum(-1, keepdim=True) * unit

    def cosine(x: Tensor, y: Tensor) -> float:
        return ((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-300)).item()

    return {"plain": cosine(update, direction), "tangential": cosine(tangential(update), tangential(direction))}


# Positions


def rope_kernel(frequencies: Tensor, lags: Tensor) -> Tensor:
    """
    Factor that RoPE puts on the score of two equal isotropic vectors `lag` tokens apart, `mean_i cos(lag theta_i)`.
    Since q = k in Prism, this is a bank's prior over distance before training.

    Args:
        frequencies: theta_i (P,), radians per token.
        lags: in tokens (W,).

    Returns:
        (W,), 1 at lag 0.

    Derived here: the inner product of RoPE (Su et al. 2021), averaged over planes.
    """
    return torch.cos(lags.double()[:, None] * frequencies.double()).mean(-1)


# As published in arXiv 2601.15540; a config may set others.
PUBLISHED_ROPE_BASES = {"signal": 10000 * math.pi, "noise": 10000 / math.pi}


def rope_bands(config) -> dict[str, dict[str, Tensor | float]]:
    """Per bank of a config: its RoPE `base`, `frequencies` in cycles per token (P,), `wavelengths` in tokens (P,)."""
    bands = {}
    for bank, theta in (("signal", config.signal_rope_theta), ("noise", config.noise_rope_theta)):
        frequencies = rotary_frequencies(config.head_dim, theta) / (2 * math.pi)
        bands[bank] = {"base": theta, "frequencies": frequencies, "wavelengths": 1 / frequencies}
    return bands


# From a model


def input_reducer(model: PreTrainedModel):
    """
    A reducer for the moments of each dictionary's input, the normalised residual stream: sums `prism/count` (L,),
    `prism/total` (L, d), `prism/gram` (L, d, d).
    """

    def reduce(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            inputs = [layer.input_layernorm(Z) for layer, Z in zip(model.base_model.layers, batch.hidden_states[:-1])]
        return stack_moments([moments(z, batch.valid) for z in inputs], "prism")

    return reduce


@torch.no_grad()
def measure_update_cosines(
    model: PreTrainedModel, windows: Sequence[Tensor], eps2: float = 0.5, shuffle_seed: int = 0
) -> dict[str, Tensor]:
    """
    `update_cosines` of each layer over windows of token ids (S_i,), with one objective per window; and, as a control,
    the same with the heads assigned to banks at random.

    J has no causal mask, no positions and no softmax: any agreement arises in spite of them.

    Returns:
        `plain`, `tangential`, and both with suffix ` (banks shuffled)`: (windows, L).
    """
    config, layers = model.config, model.base_model.layers
    heard: dict[int, tuple[Tensor, Tensor]] = {}

    def listen(module, args, output):
        heard[module.layer_idx] = (args[0][0], output[0][0])

    order = torch.randperm(config.num_attention_heads, generator=torch.Generator().manual_seed(shuffle_seed))
    hooks = [layer.self_attn.register_forward_hook(listen) for layer in layers]
    rows: dict[str, list[list[float]]] = {}
    try:
        with prepared(model, attentions=False):
            for window in windows:
                model(input_ids=window[None].to(model.device), use_cache=False)
                row: dict[str, list[float]] = {}
                for index, layer in enumerate(layers):
                    Z, update = heard[index]
                    U = heads_of(layer.self_attn.dictionary.weight, config.num_attention_heads)
                    for suffix, U_ in (("", U), (" (banks shuffled)", U[order.to(U.device)])):
                        signal, noise = U_.split((config.num_signal_heads, len(U) - config.num_signal_heads))
                        direction = ascent_direction(Z, signal, noise, config.noise_coefficient, eps2)
                        for name, value in update_cosines(update, direction, Z).items():
                            row.setdefault(name + suffix, []).append(value)
                for name, values in row.items():
                    rows.setdefault(name, []).append(values)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def measure_prism(
    model: PreTrainedModel, head_metrics: dict | None, sums: dict[str, Tensor], windows: Sequence[Tensor]
) -> dict:
    """
    Everything specific to Prism.

    Args:
        head_metrics: of `reducers.head_metrics`, metrics (L, H); None leaves `banks` out.
        sums: of `input_reducer`.
        windows: token ids (S_i,); none leaves `cosines` out.

    Returns:
        `signal heads`, `lambda`, `rope` (see `rope_bands`); `banks`, per head metric a `BankSplit` as a dictionary
        with
        `adjusted_p`; `compression signal` and `compression noise`, R_c per head (L,), in nats; `snr signal` and `snr
        noise`, mean over heads (L,); `coherence max`, `rms`, `spectral`, `frobenius` between the banks (L,);
        `affinity`, mean over pairs of a signal and a noise head (L,); `cosines` (see `measure_update_cosines`).
    """
    config = model.config
    H, H_S = config.num_attention_heads, config.num_signal_heads
    found: dict = {"signal heads": H_S, "lambda": config.noise_coefficient, "rope": rope_bands(config)}
    if head_metrics is not None:
        splits = {name: split_by_bank(head_metrics[name], H_S) for name in HEAD_METRICS if name in head_metrics}
        p_values = adjusted([split.p_value for split in splits.values()])
        found["banks"] = {
            name: {**split.to_dict(), "adjusted_p": p} for (name, split), p in zip(splits.items(), p_values)
        }
    rows: dict[str, list] = {}
    for layer, Z in zip(model.base_model.layers, unstack_moments(sums, "prism")):
        U = layer.self_attn.dictionary.weight.detach().cpu().double()
        signal, noise = heads_of(U, H).split((H_S, H - H_S))
        row = dict(zip(("compression signal", "compression noise"), bank_compression(Z, U, H, H_S)))
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
        found["cosines"] = measure_update_cosines(model, windows)
    return found
