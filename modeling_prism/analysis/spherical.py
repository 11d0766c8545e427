"""
Cyclic tasks in the Fourier basis: the usual reading of Spherical and other models that grok (arXiv 2603.05228; Nanda
et al., "Progress measures for grokking via mechanistic interpretability", arXiv 2301.05217).

Shapes: p residues 0..p-1, d width, N inputs, F = p // 2 + 1 frequencies k = 0..p // 2, in turns per p residues.
"""

import torch
from torch import Tensor


def fourier_energies(table: Tensor, dim: int = 0) -> Tensor:
    """
    Energy of each frequency along the residues, as a share of the total without frequency 0, whose entry is 0.

    Args:
        table: real values per residue along `dim`: an embedding or unembedding (p, d), logits (N, p) with `dim=-1`.

    Returns:
        (F,), with sum 1 (all 0 for a constant table). A frequency includes its negative.

    Source: Nanda et al., arXiv 2301.05217, for embeddings.
    """
    spectrum = torch.fft.rfft(table.double(), dim=dim).abs().square()
    energies = spectrum.movedim(dim, 0).flatten(1).sum(-1)
    constant = energies[0].clone()
    energies[0] = 0
    if table.shape[dim] % 2 == 0:
        # Every other frequency also stands for its negative.
        energies[-1] /= 2
    total = energies.sum()
    # A constant table leaves rounding errors only.
    return torch.where(total > 1e-24 * constant, energies / total, 0)


def top_frequencies(energies: Tensor, k: int) -> Tensor:
    """
    The k strongest frequencies of energies (F,), without frequency 0, in descending order: (k,).

    Source: the key frequencies of Nanda et al., arXiv 2301.05217; a fixed number k of them, as in arXiv 2603.05228.
    """
    return energies[1:].topk(min(k, len(energies) - 1)).indices + 1


def explained_variance(energies: Tensor, frequencies: Tensor) -> Tensor:
    """Share of the variance over residues in `frequencies` (k,), given energies (F,): a scalar, 0 to 1."""
    return energies[frequencies].sum() / energies[1:].sum()


def keep_frequencies(logits: Tensor, frequencies: Tensor) -> Tensor:
    """
    Logits (..., p) restricted to frequency 0 and `frequencies` (k,) over the classes: (..., p).

    Source: the spectral check of arXiv 2603.05228.
    """
    spectrum = torch.fft.rfft(logits.double(), dim=-1)
    kept = torch.zeros(spectrum.shape[-1], dtype=torch.bool, device=logits.device)
    kept[0] = True
    kept[frequencies] = True
    return torch.fft.irfft(spectrum * kept, n=logits.shape[-1], dim=-1)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of inputs whose largest logit (N, p) is at their label (N,): a float."""
    return (logits.argmax(-1) == labels).double().mean().item()


def accuracy_by_top_k(
    logits: Tensor, labels: Tensor, ks: tuple[int, ...] = (0, 1, 2, 3, 5, 10), energies: Tensor | None = None
) -> dict[int, float]:
    """
    Accuracy, a share of 1, of logits restricted to frequency 0 and their k strongest frequencies, for each k.

    Args:
        logits: (N, p) over the residues.
        labels: (N,).
        energies: (F,), to rank the frequencies. Default: those of the logits.

    Source: the spectral check of arXiv 2603.05228 (published: 99.9 % with 5 frequencies).
    """
    energies = fourier_energies(logits, dim=-1) if energies is None else energies
    return {k: accuracy(keep_frequencies(logits, top_frequencies(energies, k)), labels) for k in ks}


def clock(embedding: Tensor, logits: Tensor, order: Tensor, energies: Tensor, num_frequencies: int = 5) -> dict:
    """
    How a model of a task modulo a number would add angles: its residues as points on circles, and its answers as hands
    of clocks, one per frequency k. A model that computes with k puts residue number a of the cycle at the angle
    2 pi k a / n, and the hand for (a, b) at 2 pi k (a + b) / n.

    Args:
        embedding: (V, d), one row per token.
        logits: (n * n, n), for all pairs of residues in ascending order, over the residues in cyclic order.
        order: the n residues in cyclic order (n,).
        energies: of the logits (F,), to choose the strongest frequencies.

    Returns:
        `residues` (n,), which is `order`; `frequencies` (K,); `circles` (K, n, 2), the embedding in the plane of each
        frequency, with a root-mean-square radius of 1; `hands` (n, n, K), complex, the conjugate of the logits'
        Fourier coefficient for residues number a and b of the cycle, without its mean over inputs.

    Source: the clock of Nanda et al., arXiv 2301.05217.
    """
    n, frequencies = len(order), top_frequencies(energies, num_frequencies)
    rows = embedding[order] - embedding[order].mean(0)
    angles = 2 * torch.pi * torch.outer(frequencies, torch.arange(n)).double() / n
    circles = []
    for angle in angles:
        plane = torch.stack((angle.cos(), angle.sin())) @ rows
        points = rows @ torch.linalg.pinv(plane)
        circles.append(points / points.square().sum(-1).mean().sqrt().clamp(min=1e-12))
    hands = torch.fft.rfft(logits - logits.mean(0), dim=-1)[:, frequencies].conj()
    rank = order - order.min()
    hands = hands.unflatten(0, (n, n))[rank][:, rank]
    return {"residues": order, "frequencies": frequencies, "circles": torch.stack(circles), "hands": hands}


def check_modulus(modulus: int, operation: str = "add") -> None:
    """
    Raises `ValueError` unless the residues of the modulus, a scalar, form a cycle under the operation: addition needs
    2 or more, multiplication a prime above 2.
    """
    if operation == "multiply":
        if modulus < 3 or any(modulus % n == 0 for n in range(2, int(modulus**0.5) + 1)):
            raise ValueError(
                f"`modulus`={modulus}: only the residues of a prime above 2 are powers of one number. Give such a "
                "prime or, for a task of addition, `operation`='add'."
            )
    elif modulus < 2:
        raise ValueError(f"`modulus`={modulus} has no two residues to tell apart: give the task's modulus, 2 or more.")


def discrete_log_order(p: int) -> Tensor:
    """
    The residues 1..p-1 as powers g^0, g^1, ... of the smallest primitive root g: (p - 1,).

    A multiplication table is cyclic in this order: `fourier_energies(embedding[discrete_log_order(p)])`.

    Raises:
        ValueError: p is not a prime above 2.

    Derived here: the nonzero residues of a prime form a cyclic group under multiplication.
    """
    check_modulus(p, "multiply")
    powers = [[pow(root, n, p) for n in range(p - 1)] for root in range(2, p)]
    return torch.tensor(next(row for row in powers if len(set(row)) == p - 1))


def modular_pairs(p: int, operation: str = "add") -> tuple[Tensor, Tensor]:
    """
    All inputs [a, b, =] of a task on residues, where "=" is token p, and their answers: (p * p, 3), (p * p,).

    `operation`: "add", a + b mod p; "multiply", a * b mod p. Source: the tasks of arXiv 2603.05228.
    """
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(-1)
    if operation not in ("add", "multiply"):
        raise ValueError(f"`operation` must be 'add' or 'multiply', got {operation!r}.")
    answers = (a + b if operation == "add" else a * b) % p
    return torch.stack((a, b, torch.full_like(a, p)), dim=-1), answers
