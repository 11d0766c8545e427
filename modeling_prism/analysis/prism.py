"""
Prism: what tells its two banks of heads apart, and whether its attention does what its derivation says.

Shapes: L layers, H heads (signal heads first, H_S of them), D head width, M = H D rows of the dictionary U, N tokens
of width d. Source: Huang, arXiv 2601.15540; the white-box reading is ours, after Yu et al., arXiv 2306.01129 (CRATE).
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
from .reducers import stack_moments
from .representations import Moments, compression, compression_by_subspace, moments


@dataclass(frozen=True)
class BankSplit:
    """A figure of heads, split by bank."""

    signal: float  # mean over signal heads
    noise: float  # mean over noise heads
    cliffs_delta: float
    p_value: float

    to_dict = asdict


def cliffs_delta(x: Tensor, y: Tensor) -> float:
    """
    Effect size of samples x (...) and y (...): the share of pairs with x > y less the share with x < y, a float from
    -1 to 1, 0 where neither tends to be larger.

    Source: Cliff, "Dominance statistics", 1993. It depends on ranks alone, as heads have no normal distribution; by
    custom 0.15 is small, 0.33 medium, 0.47 large (Romano et al. 2006).
    """
    return (x.flatten()[:, None] - y.flatten()).sign().double().mean().item()


def split_by_bank(figure: Tensor, num_signal_heads: int, num_resamples: int = 9999, seed: int = 0) -> BankSplit:
    """
    Means of a figure of heads (L, H) in both banks, their effect size, and a two-sided permutation test of their
    difference.

    The test (`scipy.stats.permutation_test`) deals the heads of all layers to the banks anew, each figure less its
    mean over its layer, so that differences between layers do not count as noise. The smallest p is 2 / (num_resamples
    + 1), or 2 over the ways to deal them where `num_resamples` are enough to try them all: the smaller tail counts
    twice. Heads of one model are not seeds: a small p says that banks differ in this model, no more.

    Source: Fisher 1935 (permutation); the centring by layer is a definition of this package.
    """
    figure = figure.double()
    signal, noise = figure[:, :num_signal_heads], figure[:, num_signal_heads:]
    centred = figure - figure.mean(-1, keepdim=True)
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
    p-values (n,) adjusted for several tests at once: (n,), never smaller than before.

    Source: Benjamini and Hochberg 1995 (`scipy.stats.false_discovery_control`).
    """
    return scipy.stats.false_discovery_control(list(p_values)).tolist() if len(p_values) else []


# Coding rates


def heads_of(dictionary: Tensor, num_heads: int) -> Tensor:
    """
    The dictionary (M, d) as one subspace a head, (H, D, d).

    Source: arXiv 2601.15540, whose heads are blocks of rows of one matrix.
    """
    return dictionary.unflatten(0, (num_heads, -1))


def bank_compression(
    Z: Tensor | Moments, dictionary: Tensor, num_heads: int, num_signal_heads: int, eps2: float = 0.5
) -> tuple[Tensor, Tensor]:
    """
    `R_c` of the tokens (N, d) a head of the dictionary (M, d), in nats: mean over the signal heads, and over the noise
    heads, two scalars.

    Derived here, after Yu et al., arXiv 2306.01129.
    """
    rates = compression_by_subspace(Z, heads_of(dictionary, num_heads), eps2)
    return rates[:num_signal_heads].mean(), rates[num_signal_heads:].mean()


def objective(Z: Tensor, signal: Tensor, noise: Tensor, lam: float, eps2: float = 0.5) -> Tensor:
    """
    J(Z) = lambda R_c(Z | U_noise) - R_c(Z | U_signal), of tokens (N, d) and subspaces (K, D, d): a scalar, nats.

    Derived here, after arXiv 2601.15540 and Yu et al., arXiv 2306.01129.
    """
    return lam * compression(Z, noise, eps2) - compression(Z, signal, eps2)


def ascent_direction(Z: Tensor, signal: Tensor, noise: Tensor, lam: float, eps2: float = 0.5) -> Tensor:
    """
    The gradient of `objective` in Z (N, d), by autograd: (N, d), fp64, nats a unit of Z. Derived here.
    """
    with torch.enable_grad():
        leaf = Z.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, signal, noise, lam, eps2), leaf)
    return gradient


def update_cosines(update: Tensor, direction: Tensor, Z: Tensor) -> dict[str, float]:
    """
    Cosine, a float, between what attention adds and the direction it is said to take, over all tokens (N, d) at once.

    Returns:
        `plain`; and `tangential`, of what is left of both at right angles to each token. The derivation puts the part
        along the token, which shrinks it, on the residual connection: the tangential part is where attention could
        agree. Two random directions have 0 +- 1 / sqrt(N d). Derived here.
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
    What RoPE alone makes of the score of two equal isotropic vectors `lag` tokens apart: `mean_i cos(lag theta_i)`.

    Args:
        frequencies: theta_i (P,), radians a token.
        lags: in tokens (W,).

    Returns:
        (W,), 1 at lag 0. With q = k it is the prior of a bank over distance, before any training.

    Source: the inner product of RoPE (Su et al. 2021), averaged over planes; derived here.
    """
    return torch.cos(lags.double()[:, None] * frequencies.double()).mean(-1)


# arXiv 2601.15540; the fields of a config may be others.
PUBLISHED_ROPE_BASES = {"signal": 10000 * math.pi, "noise": 10000 / math.pi}


def rope_bands(config) -> dict[str, dict[str, Tensor | float]]:
    """
    Of each bank: its RoPE `base`, `frequencies` in cycles a token (P,), and `wavelengths` in tokens (P,).

    Source: arXiv 2601.15540 (pi-RoPE); the bases are those of the config.
    """
    bands = {}
    for bank, theta in (("signal", config.signal_rope_theta), ("noise", config.noise_rope_theta)):
        frequencies = rotary_frequencies(config.head_dim, theta) / (2 * math.pi)
        bands[bank] = {"base": theta, "frequencies": frequencies, "wavelengths": 1 / frequencies}
    return bands


# From a model


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The blocks of a model, one a layer: (L,). Definition of this package."""
    return model.base_model.layers


def input_reducer(model: PreTrainedModel):
    """
    A reducer for the moments of what each layer's dictionary sees, the normalised residual stream: sums `prism/count`
    (L,), `prism/total` (L, d), `prism/gram` (L, d, d). Definition of this package.
    """

    def reduce(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            inputs = [layer.input_layernorm(state) for layer, state in zip(layers_of(model), batch.hidden_states[:-1])]
        return stack_moments([moments(z, batch.valid) for z in inputs], "prism")

    return reduce


@torch.no_grad()
def measure_update_cosines(
    model: PreTrainedModel, windows: Sequence[Tensor], eps2: float = 0.5, shuffle_seed: int = 0
) -> dict[str, Tensor]:
    """
    `update_cosines` of each layer of a Prism over windows of token ids (S_i,), one objective a window; and their
    control, the same with the model's heads dealt to the banks at random.

    Returns:
        `plain`, `tangential` and both with the suffix ` (banks shuffled)`: (windows, L).

    J has no causal mask, no positions and no softmax: what agrees, agrees in spite of them. Derived here.
    """
    config = model.config
    heard: dict[int, tuple[Tensor, Tensor]] = {}

    def listen(module, args, output):
        heard[module.layer_idx] = (args[0][0], output[0][0])

    order = torch.randperm(config.num_attention_heads, generator=torch.Generator().manual_seed(shuffle_seed))
    hooks = [layer.self_attn.register_forward_hook(listen) for layer in layers_of(model)]
    rows: dict[str, list[list[float]]] = {}
    try:
        with prepared(model, attentions=False):
            for window in windows:
                model(input_ids=window[None].to(model.device), use_cache=False)
                row: dict[str, list[float]] = {}
                for index, layer in enumerate(layers_of(model)):
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
