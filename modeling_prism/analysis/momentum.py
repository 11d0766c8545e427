"""
Momentum's shear as a filter along the sequence, and its effect on scores.

The shear x_t + gamma (x_t - x_(t-1)) has the transfer function H(w) = 1 + gamma (1 - e^(-jw)). A rotary plane is read
as one complex signal, x[i] + j x[i + D / 2], which RoPE multiplies by e^(j theta_i t). Content of frequency w
therefore reaches a shear after RoPE at w + theta_i, and a shear before RoPE at w.

Shapes: S tokens, D head width, P = D / 2 rotary planes. Frequencies are angular, in radians per token; pi is the
Nyquist frequency. Source: Maitra, arXiv 2602.04902, for the shear and its four terms; gain and phase are derived here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def transfer_function(omega: Tensor, gamma: float) -> Tensor:
    """
    H(w) = 1 + gamma (1 - e^(-jw)) at frequencies `omega` (...), in radians per token: complex (...).

    Derived here, from the shear of arXiv 2602.04902.
    """
    omega = torch.as_tensor(omega, dtype=torch.float64)
    return 1 + gamma * (1 - torch.exp(-1j * omega))


def gain(response: Tensor, decibels: bool = False) -> Tensor:
    """
    Gain |H|, a ratio of amplitudes, or 20 log10 |H| in decibels: complex (...) -> (...). A gain of 1 (0 dB) passes a
    frequency unchanged.

    Source: the Bode plot (Bode 1945).
    """
    return 20 * response.abs().log10() if decibels else response.abs()


def phase(response: Tensor) -> Tensor:
    """
    Phase of H in degrees, (-180, 180]: complex (...) -> (...). A positive phase is a lead (the output is ahead of the
    input) at positive frequencies, a lag at negative ones.
    """
    return torch.rad2deg(response.angle())


def noise_gain(gamma: float) -> float:
    """
    Energy gain of the shear for white noise, (1 + gamma)^2 + gamma^2, a float.

    Derived here: by Parseval, the sum of the squared taps.
    """
    return (1 + gamma) ** 2 + gamma**2


def greatest_lead(gamma: float) -> tuple[float, float]:
    """
    Largest phase lead in degrees, arcsin(g / (1 + g)), and its frequency in radians per token, arccos(g / (1 + g)):
    two floats, for gamma >= 0.

    Derived here, from `transfer_function`. Raises `ValueError` for gamma < 0.
    """
    if gamma < 0:
        raise ValueError(f"A shear with gamma={gamma} < 0 lags: it has no lead.")
    ratio = gamma / (1 + gamma)
    return math.degrees(math.asin(ratio)), math.acos(ratio)


def rotary_frequencies(head_dim: int, theta: float) -> Tensor:
    """
    Angle theta^(-2 i / D) by which RoPE turns plane i per token, in radians: (P,).

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def plane_response(omega: Tensor, plane_frequencies: Tensor, gamma: float, placement: str = "post_rope") -> Tensor:
    """
    Response of each rotary plane to content of frequency w, apart from its rotation: H(w + theta_i) for a shear after
    RoPE, H(w) for one before.

    Args:
        omega: (W,).
        plane_frequencies: theta_i (P,).
        placement: "post_rope" or "pre_rope", as in `MomentumConfig`.

    Returns:
        complex (P, W).

    Derived here.
    """
    if placement not in ("post_rope", "pre_rope"):
        raise ValueError(f"`placement` must be 'post_rope' or 'pre_rope', got {placement!r}.")
    offset = plane_frequencies if placement == "post_rope" else torch.zeros_like(plane_frequencies)
    return transfer_function(torch.as_tensor(omega, dtype=torch.float64) + offset[:, None], gamma)


def model_response(
    omega: Tensor,
    plane_frequencies: Tensor,
    gammas: Sequence[float],
    streams: str = "qk",
    placement: str = "post_rope",
) -> dict[str, Tensor]:
    """
    `plane_response` of each layer of a model; 1 for a stream without shear.

    Args:
        omega: (W,).
        plane_frequencies: theta_i (P,).
        gammas: one per layer (L,).
        streams: "qk", "k" or "q", as in `MomentumConfig`.
        placement: as in `MomentumConfig`.

    Returns:
        `queries` and `keys`: complex (L, P, W).
    """
    return {
        stream: torch.stack(
            [
                plane_response(omega, plane_frequencies, gamma if stream[0] in streams else 0.0, placement)
                for gamma in gammas
            ]
        )
        for stream in ("queries", "keys")
    }


def energy_gain(power: Tensor, response: Tensor) -> Tensor:
    """
    Energy gain of a filter, `sum S |H|^2 / sum S`, for a signal of power spectrum S. A constant signal (one line at
    w = 0) gives |H(theta_i)|^2 after RoPE, a flat spectrum `noise_gain`.

    Args:
        power: S at equally spaced frequencies from -pi to pi (..., W), in any unit.
        response: H at the same frequencies (..., W).

    Returns:
        (...,), a ratio of energies.

    Derived here, by Parseval.
    """
    return (power * response.abs().square()).sum(-1) / power.sum(-1)


def to_planes(states: Tensor) -> Tensor:
    """
    Reads (..., D) as complex planes (..., P): components i and i + D / 2 span plane i.

    Source: `rotate_half` of transformers' Llama.
    """
    real, imaginary = states.double().unflatten(-1, (2, -1)).unbind(-2)
    return torch.complex(real, imaginary)


def from_planes(planes: Tensor) -> Tensor:
    """The inverse of `to_planes`: complex (..., P) -> (..., D)."""
    return torch.cat((planes.real, planes.imag), dim=-1)


def turn(planes: Tensor, plane_frequencies: Tensor, sign: int = 1) -> Tensor:
    """
    Multiplies planes (..., S, P) by e^(j theta_i t), as RoPE does; `sign=-1` undoes it. `plane_frequencies`: (P,), in
    radians per token.

    Source: Su et al. 2021 (RoPE).
    """
    t = torch.arange(planes.shape[-2], dtype=torch.float64, device=planes.device)
    return planes * torch.exp(1j * sign * t[:, None] * plane_frequencies.to(t))


# Scores


def score_terms(q: Tensor, k: Tensor, q_hat: Tensor, k_hat: Tensor) -> Tensor:
    """
    The four terms of a score q^.k^, with g p = q^ - q: `q.k + g p_q.k + g q.p_k + g^2 p_q.p_k`, the paper's T1 to T4.

    Args:
        q, k: queries and keys without the shear, after RoPE (..., S, D).
        q_hat, k_hat: as attention receives them; equal to q or k if that stream is not sheared.

    Returns:
        (4, ..., S, S), not scaled by 1 / sqrt(D); their sum is `q_hat @ k_hat^T`.

    Source: arXiv 2602.04902.
    """
    p_q, p_k = q_hat - q, k_hat - k
    return torch.stack([q @ k.mT, p_q @ k.mT, q @ p_k.mT, p_q @ p_k.mT])


def score_shares(terms: Tensor) -> dict[str, Tensor]:
    """
    Contribution of each term to what the softmax sees: causal scores minus their mean per query, which it ignores.

    Args:
        terms: (4, ..., S, S).

    Returns:
        `variance`, cov(T_i, sum T) / var(sum T), negative for a term that counteracts the others; and `absolute`,
        mean |T_i| over the sum of these means. Each (4, ...), with sum 1.

    Derived here: the source names the terms, not their shares.
    """
    terms = terms.double()
    allowed = torch.ones(terms.shape[-2:], dtype=torch.bool, device=terms.device).tril()
    count = allowed.sum(-1, keepdim=True)
    centred = (terms - (terms * allowed).sum(-1, keepdim=True) / count) * allowed
    together = centred.sum(0)
    variance = (centred * together).sum((-2, -1)) / together.square().sum((-2, -1))
    absolute = centred.abs().sum((-2, -1))
    return {"variance": variance, "absolute": absolute / absolute.sum(0)}


# Constant and changing parts


def dc_ac_energy(planes: Tensor) -> tuple[Tensor, Tensor]:
    """
    Energy per token of the mean over tokens (DC) and of the deviation from it (AC): complex (..., S, P) -> 2 x (...,
    P).

    They sum to the mean of |x|^2. S tokens resolve frequencies of 2 pi / S; anything slower counts as DC.
    """
    mean = planes.mean(-2)
    return mean.abs().square(), (planes - mean[..., None, :]).abs().square().mean(-2)


def dc_ac_table(states: Tensor, sheared: Tensor, plane_frequencies: Tensor) -> dict[str, Tensor]:
    """
    DC and AC energy per token with and without the shear, plane by plane, as content (RoPE undone) and as received.

    Args:
        states, sheared: queries or keys after RoPE (..., S, D), without and with the shear. The first token, which has
            no previous one, is left out.
        plane_frequencies: theta_i (P,).

    Returns:
        `content_dc`, `content_ac`, `received_dc`, `received_ac`, and the same with suffix `_sheared`; each (P,),
        averaged over the leading dimensions.

    Source: the orthogonality theorem of arXiv 2602.04902. It is tested here: constant content keeps its energy in slow
    planes and gains |H(theta_i)|^2 in fast ones, so `content_dc_sheared / content_dc` follows `plane_response(0,
    ...)`.
    """
    table = {}
    for suffix, signal in (("", states), ("_sheared", sheared)):
        received = to_planes(signal)
        for frame, planes in (("received", received), ("content", turn(received, plane_frequencies, sign=-1))):
            for part, energy in zip(("dc", "ac"), dc_ac_energy(planes[..., 1:, :])):
                table[f"{frame}_{part}{suffix}"] = energy.reshape(-1, energy.shape[-1]).mean(0)
    return table
