"""
Metrics of the residual stream: ranks, entropies, coding rates, subspaces.

Shapes: Z (N, d), N tokens of width d as rows (papers write columns); U (p, d), a subspace or dictionary spanned by its
ROWS, as weights are stored in a model; U (K, p, d), K of them. Functions that need only second moments also accept
`Moments`, so that a long corpus can be summed batch by batch. Logarithms are natural; arithmetic is fp64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sums over tokens: their number (), z (d,) and z z^T (d, d), in fp64. Leading dimensions may stack layers."""

    count: Tensor
    total: Tensor
    gram: Tensor


def moments(Z: Tensor, valid: Tensor | None = None) -> Moments:
    """Moments of tokens (..., d), flattened over all but the last dimension; `valid` (...) masks padding."""
    Z = Z[valid] if valid is not None else Z.flatten(0, -2)
    Z = Z.double()
    return Moments(torch.tensor(float(len(Z)), dtype=Z.dtype, device=Z.device), Z.sum(0), Z.T @ Z)


def as_moments(Z: Tensor | Moments) -> Moments:
    """Converts tokens (N, d) to moments; returns moments unchanged."""
    return Z if isinstance(Z, Moments) else moments(Z)


def covariance_eigenvalues(Z: Tensor | Moments) -> Tensor:
    """
    Eigenvalues (d,) of the covariance (divided by N) of tokens (N, d), in descending order, clamped at 0.

    Source: principal components (Pearson 1901).
    """
    count, total, gram = as_moments(Z)
    if count < 2:
        raise ValueError(f"A covariance needs at least two tokens, got {int(count)}.")
    covariance = gram / count - torch.outer(total, total) / count**2
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)


def shannon_entropy(weights: Tensor) -> Tensor:
    """
    Entropy, in nats, of weights (..., n) normalised to sum 1: (...). All-zero weights have entropy 0.

    Source: Shannon 1948.
    """
    total = weights.sum(-1, keepdim=True)
    return torch.special.entr(weights / total.where(total > 0, 1)).sum(-1)


def effective_rank(Z: Tensor | Moments) -> Tensor:
    """
    Effective rank of tokens (N, d): `exp` of the entropy of their normalised, centred singular values. A scalar, from
    1 for tokens on a line to d for isotropic ones.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    return shannon_entropy(covariance_eigenvalues(Z).sqrt()).exp()


def matrix_entropy(Z: Tensor | Moments) -> Tensor:
    """
    Von Neumann entropy of the covariance of tokens (N, d), normalised to trace 1. A scalar, 0 to ln d nats.

    Source: Skean et al., "Layer by Layer: Uncovering Hidden Representations in Language Models", arXiv 2502.02013
    (their matrix-based entropy in the limit alpha = 1, here of centred tokens).
    """
    return shannon_entropy(covariance_eigenvalues(Z))


def mean_norm(Z: Tensor) -> Tensor:
    """Mean Euclidean norm of tokens (..., d): a scalar."""
    return Z.double().norm(dim=-1).mean()


# Coding rates


def log_volume(gram: Tensor, scale: Tensor | float) -> Tensor:
    """
    `1/2 logdet(I + scale * gram)` of matrices (..., n, n), in nats: (...).

    Source: Ma et al. 2007, whose coding rates have this form.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.slogdet(identity + scale * gram).logabsdet / 2


def coding_rate(Z: Tensor | Moments, eps2: float = 0.5) -> Tensor:
    """
    Coding rate `R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z)` of tokens (N, d), not centred: the volume they occupy, in
    balls of radius eps. A scalar, in nats.

    Source: Ma et al. 2007; Yu et al., arXiv 2006.08558 (MCR^2), with their eps^2 = 0.5.
    """
    count, _, gram = as_moments(Z)
    return log_volume(gram, gram.shape[-1] / (count * eps2))


def compression(Z: Tensor | Moments, U: Tensor, eps2: float = 0.5) -> Tensor:
    """
    Coding rate of the tokens' projections onto K subspaces, `R_c(Z | U) = 1/2 sum_k logdet(I + p / (N eps^2) (U_k z)^T
    (U_k z))`. A scalar, in nats, differentiable in Z.

    Args:
        Z: (N, d), or moments.
        U: (K, p, d).
        eps2: squared precision.

    Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", arXiv 2306.01129, eq. 8. By Sylvester's
    identity the determinants are p x p for any N.
    """
    return compression_by_subspace(Z, U, eps2).sum(-1)


def compression_by_subspace(Z: Tensor | Moments, U: Tensor, eps2: float = 0.5) -> Tensor:
    """The summands of `compression` for Z (N, d) and U (K, p, d): (K,), in nats."""
    count, _, gram = as_moments(Z)
    U = U.to(gram)
    if U.ndim != 3 or U.shape[-1] != gram.shape[-1]:
        raise ValueError(f"`U` must be (K, p, d) with d = {gram.shape[-1]}, got {tuple(U.shape)}.")
    return log_volume(U @ gram @ U.mT, U.shape[1] / (count * eps2))


# Subspaces


def orthonormal_rows(U: Tensor) -> Tensor:
    """Orthonormal rows that span the row space of U (p, d): (rank, d). The cutoff is `numpy.linalg.matrix_rank`'s."""
    _, values, rows = torch.linalg.svd(U.double(), full_matrices=False)
    return rows[values > values.max() * max(U.shape) * torch.finfo(torch.float64).eps]


def coherence(U: Tensor, V: Tensor) -> dict[str, Tensor]:
    """
    Overlap of two dictionaries (p, d) and (q, d), as scalars.

    Returns:
        `max`, the mutual coherence `max |cos(u, v)|` over rows: 0 for orthogonal dictionaries, 1 for a shared row;
        `rms`, the root mean square of these cosines: 1 / sqrt(d) for random rows;
        `spectral` and `frobenius`, the norms of U V^T with rows at their own length: 0 for orthogonal dictionaries.
        The two halves of a tight frame (U^T U + V^T V = I) have at most 1/2 and sqrt(d) / 2, reached if each half is
        tight.

    Source: Donoho and Huo 2001 for `max`. The white-box reading of Prism speaks of ||U_S U_N^T|| and names no norm.
    """
    U, V = U.double(), V.double()
    cosines = torch.nn.functional.normalize(U, dim=-1) @ torch.nn.functional.normalize(V, dim=-1).mT
    singular_values = torch.linalg.svdvals(U @ V.mT)
    return {
        "max": cosines.abs().amax(),
        "rms": cosines.square().mean().sqrt(),
        "spectral": singular_values.amax(),
        "frobenius": singular_values.square().sum().sqrt(),
    }


def subspace_affinity(U: Tensor, V: Tensor) -> Tensor:
    """
    Affinity of the row spaces of (p, d) and (q, d), `||Q_U Q_V^T||_F / sqrt(min(rank))`. A scalar: 0 if they are
    orthogonal, 1 if one contains the other, sqrt(max(p, q) / d) for random ones.

    Source: Soltanolkotabi and Candes, "A geometric analysis of subspace clustering with outliers", arXiv 1112.4258.
    """
    return affinity_of_bases(orthonormal_rows(U), orthonormal_rows(V))


def affinity_of_bases(Q_U: Tensor, Q_V: Tensor) -> Tensor:
    """`subspace_affinity` of row spaces given by orthonormal rows (p, d) and (q, d): a scalar, 0 to 1."""
    return (Q_U @ Q_V.mT).norm() / math.sqrt(min(len(Q_U), len(Q_V)))


def subspace_snr(Z: Tensor | Moments, U: Tensor) -> Tensor:
    """
    Subspace signal-to-noise ratio `||P Z|| / ||(I - P) Z||` (Frobenius) of tokens (N, d), where P projects onto the
    row space of U (p, d). A scalar ratio of amplitudes; inf if U spans everything.

    A random p-dimensional subspace has sqrt(p / (d - p)). Derived here.
    """
    _, _, gram = as_moments(Z)
    Q = orthonormal_rows(U).to(gram)
    inside = torch.einsum("pd,de,pe->", Q, gram, Q) / gram.trace()
    # Rounding must not make `inside` negative, nor leave a residue outside a subspace that spans everything.
    inside, outside = inside.clamp(min=0), 1 - inside
    return (inside / outside.where(outside > 1e-12, 0)).sqrt()
