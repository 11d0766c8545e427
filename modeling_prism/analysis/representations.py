"""
What the residual stream holds: ranks, entropies, coding rates, subspaces.

Shapes: Z (N, d), N tokens of width d as rows (papers write them as columns); U (p, d), a subspace or dictionary whose
ROWS span it, as weights lie in a model; U (K, p, d), K of them. What needs only second moments takes `Moments` in the
place of Z, so that tokens can be summed up and forgotten. Logarithms are natural, computation is in fp64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sums over tokens: how many (), of z (d,), of z z^T (d, d); fp64. Leading dimensions may stack layers."""

    count: Tensor
    total: Tensor
    gram: Tensor


def moments(Z: Tensor, valid: Tensor | None = None) -> Moments:
    """
    Moments of tokens (..., d), all but the last dimension flattened; `valid` (...) leaves out padding.

    Definition of this package.
    """
    Z = Z[valid] if valid is not None else Z.flatten(0, -2)
    Z = Z.double()
    return Moments(torch.tensor(float(len(Z)), dtype=Z.dtype, device=Z.device), Z.sum(0), Z.T @ Z)


def as_moments(Z: Tensor | Moments) -> Moments:
    """Moments of tokens (N, d); moments as they are. Definition of this package."""
    return Z if isinstance(Z, Moments) else moments(Z)


def covariance_eigenvalues(Z: Tensor | Moments) -> Tensor:
    """
    Eigenvalues (d,) of the covariance of the tokens (N, d), largest first, none below 0, in squared units of Z.

    Source: principal components (Pearson 1901); dividing by N.
    """
    count, total, gram = as_moments(Z)
    if count < 2:
        raise ValueError(f"A covariance needs two tokens, got {int(count)}.")
    covariance = gram / count - torch.outer(total, total) / count**2
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)


def shannon_entropy(weights: Tensor) -> Tensor:
    """
    Entropy in nats of weights (..., n) scaled to sum to 1; 0 where all of them are 0: (...).

    Source: Shannon 1948.
    """
    total = weights.sum(-1, keepdim=True)
    return torch.special.entr(weights / total.where(total > 0, 1)).sum(-1)


def effective_rank(Z: Tensor | Moments) -> Tensor:
    """
    `exp` of the entropy of the normalised singular values of the centred tokens: 1 for tokens on a line, d for
    isotropic ones. A scalar, in dimensions.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    return shannon_entropy(covariance_eigenvalues(Z).sqrt()).exp()


def matrix_entropy(Z: Tensor | Moments) -> Tensor:
    """
    Von Neumann entropy of the tokens' covariance, scaled to trace 1: 0 to ln d, in nats. A scalar.

    Source: Skean et al., "Layer by Layer: Uncovering Hidden Representations in Language Models", arXiv 2502.02013 (the
    limit alpha = 1 of their matrix-based entropy, here of centred tokens).
    """
    return shannon_entropy(covariance_eigenvalues(Z))


def mean_norm(Z: Tensor) -> Tensor:
    """Mean Euclidean norm of the tokens (..., d), in their unit: a scalar. Definition of this package."""
    return Z.double().norm(dim=-1).mean()


# Coding rates


def log_volume(gram: Tensor, scale: Tensor | float) -> Tensor:
    """
    `1/2 logdet(I + scale * gram)` of (..., n, n), in nats: (...).

    Source: the coding rates of Ma et al. 2007 are of this form.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.slogdet(identity + scale * gram).logabsdet / 2


def coding_rate(Z: Tensor | Moments, eps2: float = 0.5) -> Tensor:
    """
    Coding rate `R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z)`, in nats: the volume that tokens take, in balls of radius
    eps.

    Tokens are not centred. A scalar. Source: Ma et al. 2007; Yu et al., arXiv 2006.08558 (MCR^2), with their eps^2 =
    0.5.
    """
    count, _, gram = as_moments(Z)
    return log_volume(gram, gram.shape[-1] / (count * eps2))


def compression(Z: Tensor | Moments, U: Tensor, eps2: float = 0.5) -> Tensor:
    """
    `R_c(Z | U) = 1/2 sum_k logdet(I + p / (N eps^2) (U_k z)^T (U_k z))`: the coding rate of the tokens' projections on
    K subspaces, in nats. A scalar; differentiable in Z.

    Args:
        Z: (N, d), or moments.
        U: (K, p, d).
        eps2: squared precision.

    Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", arXiv 2306.01129, eq. 8. By Sylvester's
    identity the determinants are of p x p matrices, whatever N.
    """
    return compression_by_subspace(Z, U, eps2).sum(-1)


def compression_by_subspace(Z: Tensor | Moments, U: Tensor, eps2: float = 0.5) -> Tensor:
    """The summands of `compression` of Z (N, d) and U (K, p, d): (K,), in nats. Source: as `compression`."""
    count, _, gram = as_moments(Z)
    U = U.to(gram)
    if U.ndim != 3 or U.shape[-1] != gram.shape[-1]:
        raise ValueError(f"`U` must be (K, p, d) with d = {gram.shape[-1]}, got {tuple(U.shape)}.")
    return log_volume(U @ gram @ U.mT, U.shape[1] / (count * eps2))


# Subspaces


def orthonormal_rows(U: Tensor) -> Tensor:
    """
    An orthonormal basis, as rows, of the span of the rows of U (p, d): (rank, d), fp64.

    Source: the singular value decomposition, with the tolerance of `numpy.linalg.matrix_rank`.
    """
    _, values, rows = torch.linalg.svd(U.double(), full_matrices=False)
    return rows[values > values.max() * max(U.shape) * torch.finfo(torch.float64).eps]


def coherence(U: Tensor, V: Tensor) -> dict[str, Tensor]:
    """
    How much two dictionaries (p, d) and (q, d) have in common.

    Returns:
        `max`, the mutual coherence, largest |cosine| between a row of U and a row of V: 0 for orthogonal
        dictionaries, 1 for a shared row;
        `rms`, the root mean square of those cosines: 1 / sqrt(d) for random rows;
        `spectral` and `frobenius`, the norms of U V^T, rows at their own length: its largest singular value, and the
        root of the sum of the squares of all. 0 for orthogonal dictionaries; of the halves of a tight frame
        (U^T U + V^T V = I) at most 1/2 and sqrt(d) / 2, reached where each half is tight. All scalars.

    Source: Donoho and Huo 2001 for `max`; ||U_S U_N^T|| is of the white-box reading of Prism, which names no norm;
    `rms` is a definition of this package.
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
    `||Q_U Q_V^T||_F / sqrt(min(rank))` of the spans of the rows of (p, d) and (q, d): 0 where they are orthogonal, 1
    where one holds the other. A scalar.

    Source: Soltanolkotabi and Candes, "A geometric analysis of subspace clustering with outliers", arXiv 1112.4258.
    Two random subspaces have sqrt(max(p, q) / d).
    """
    return affinity_of_bases(orthonormal_rows(U), orthonormal_rows(V))


def affinity_of_bases(Q_U: Tensor, Q_V: Tensor) -> Tensor:
    """
    `subspace_affinity` of spans given by orthonormal rows, (p, d) and (q, d): a scalar, 0 to 1.

    Source: as `subspace_affinity`.
    """
    return (Q_U @ Q_V.mT).norm() / math.sqrt(min(len(Q_U), len(Q_V)))


def subspace_snr(Z: Tensor | Moments, U: Tensor) -> Tensor:
    """
    Subspace signal-to-noise ratio `||P Z|| / ||(I - P) Z||` (Frobenius), P the projection on the span of the rows of U
    (p, d). A scalar ratio of amplitudes; 20 log10 of it is in decibels. inf where U spans everything.

    A random p-dimensional subspace has sqrt(p / (d - p)). Derived here.
    """
    _, _, gram = as_moments(Z)
    Q = orthonormal_rows(U).to(gram)
    inside = torch.einsum("pd,de,pe->", Q, gram, Q) / gram.trace()
    # Rounding leaves neither below 0 nor, of a difference of equal numbers, anything.
    inside, outside = inside.clamp(min=0), 1 - inside
    return (inside / outside.where(outside > 1e-12, 0)).sqrt()
