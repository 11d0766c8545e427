"""Ranks, coding rates and subspaces, on clouds whose figures are known."""

import math

import pytest
import torch

from modeling_prism.analysis import representations as rep


def orthogonal(n, seed=0):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def cloud(*deviations):
    """Centred tokens whose covariance has these standard deviations: two tokens a dimension, turned at random."""
    d = len(deviations)
    Z = torch.diag(torch.tensor(deviations, dtype=torch.float64)) * math.sqrt(d)
    return torch.cat([Z, -Z]) @ orthogonal(d)


def test_effective_rank_and_entropy():
    assert rep.effective_rank(cloud(1, 1, 1, 1)).item() == pytest.approx(4)
    assert rep.matrix_entropy(cloud(2, 2, 2, 2)).item() == pytest.approx(math.log(4))
    assert rep.effective_rank(cloud(3, 0, 0, 0)).item() == pytest.approx(1, abs=1e-4)
    assert rep.matrix_entropy(cloud(3, 0, 0, 0)).item() == pytest.approx(0, abs=1e-6)
    # Singular values 3 : 1, variances 9 : 1.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rep.effective_rank(cloud(3, 1, 0)).item() == pytest.approx(math.exp(entropy), rel=1e-4)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert rep.matrix_entropy(cloud(3, 1, 0)).item() == pytest.approx(entropy)


def test_a_common_direction_does_not_count():
    Z = cloud(1, 1, 1)
    assert rep.effective_rank(Z + 100).item() == pytest.approx(3)


def test_moments_add_up_and_leave_out_padding():
    Z = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[2, 4:] = False
    parts = [rep.moments(Z[:1]), rep.moments(Z[1:], valid[1:])]
    summed = rep.Moments(*(a + b for a, b in zip(*parts)))
    whole = Z[valid]
    assert summed.count == len(whole)
    for function in (rep.effective_rank, rep.matrix_entropy, rep.coding_rate):
        assert function(summed).item() == pytest.approx(function(whole).item())


def test_mean_norm():
    assert rep.mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item() == pytest.approx(3)


def test_coding_rate():
    # N tokens of covariance sigma^2 I: R = d / 2 ln(1 + d sigma^2 / eps^2).
    assert rep.coding_rate(cloud(2, 2, 2), eps2=0.1).item() == pytest.approx(1.5 * math.log(1 + 3 * 4 / 0.1))
    assert rep.coding_rate(torch.zeros(4, 3)).item() == 0
    # Twice the tokens, the same cloud.
    Z = torch.randn(6, 4, dtype=torch.float64)
    assert rep.coding_rate(torch.cat([Z, Z])).item() == pytest.approx(rep.coding_rate(Z).item())


def test_compression_against_the_formula_with_tokens_by_tokens_matrices():
    N, d, K, p, eps2 = 6, 5, 3, 2, 0.3
    Z, U = torch.randn(N, d, dtype=torch.float64), torch.randn(K, p, d, dtype=torch.float64)
    expected = 0
    for k in range(K):
        codes = U[k] @ Z.T  # U_k^T Z of the papers, (p, N)
        expected += torch.logdet(torch.eye(N, dtype=torch.float64) + p / (N * eps2) * codes.T @ codes).item() / 2
    assert rep.compression(Z, U, eps2).item() == pytest.approx(expected)
    assert rep.compression(rep.moments(Z), U, eps2).item() == pytest.approx(expected)


def test_compression_sees_only_its_subspaces():
    Q = orthogonal(6)
    U = Q.view(2, 3, 6)
    Z = torch.randn(50, 3, dtype=torch.float64) @ U[0]
    rates = rep.compression_by_subspace(Z, U)
    assert rates[1].item() == pytest.approx(0, abs=1e-9) and rates[0] > 1
    # Tokens of one subspace: R counts d / N where R_c counts p / N.
    p, d = 3, 6
    assert rates[0].item() == pytest.approx(rep.coding_rate(Z, eps2=0.5 * d / p).item())


def test_coherence():
    Q = orthogonal(4)
    assert rep.coherence(Q[:2], 3 * Q[2:])["max"].item() == pytest.approx(0, abs=1e-12)
    same = rep.coherence(Q, -2 * Q)
    assert same["max"].item() == pytest.approx(1) and same["rms"].item() == pytest.approx(0.5)
    U, V = torch.randn(300, 64), torch.randn(300, 64)
    assert rep.coherence(U, V)["rms"].item() == pytest.approx(1 / 8, rel=0.05)


def test_norms_of_the_product_of_two_dictionaries():
    Q = orthogonal(6)
    # Rows 2 q_0, q_1 and 3 q_0, 4 q_1, 5 q_5: the product is diag(6, 4), whatever the cosines.
    U, V = torch.stack([2 * Q[0], Q[1]]), torch.stack([3 * Q[0], 4 * Q[1], 5 * Q[5]])
    found = rep.coherence(U, V)
    assert found["spectral"].item() == pytest.approx(6)
    assert found["frobenius"].item() == pytest.approx(math.sqrt(36 + 16))
    apart = rep.coherence(Q[:3], 2 * Q[3:])
    assert apart["spectral"].item() == pytest.approx(0, abs=1e-12)
    assert apart["frobenius"].item() == pytest.approx(0, abs=1e-12)
    # Two tight halves of a tight frame: U^T U = V^T V = I / 2.
    halves = rep.coherence(Q / 2**0.5, orthogonal(6, seed=1) / 2**0.5)
    assert halves["spectral"].item() == pytest.approx(1 / 2)
    assert halves["frobenius"].item() == pytest.approx(math.sqrt(6) / 2)


def test_subspace_affinity():
    Q = orthogonal(6)
    mixed = torch.randn(2, 2, dtype=torch.float64) @ Q[:2]  # another basis of the same plane
    assert rep.subspace_affinity(Q[:2], Q[3:]).item() == pytest.approx(0, abs=1e-12)
    assert rep.subspace_affinity(mixed, Q[:4]).item() == pytest.approx(1)
    half = torch.stack([Q[0], (Q[1] + Q[5]) / 2**0.5])
    assert rep.subspace_affinity(half, Q[:2]).item() == pytest.approx(math.sqrt(1.5 / 2))
    assert rep.subspace_affinity(torch.randn(20, 100), torch.randn(40, 100)).item() == pytest.approx(0.4**0.5, rel=0.1)


def test_subspace_snr():
    Q = orthogonal(5)
    inside, outside = torch.randn(40, 2, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
    Z = inside @ Q[:2] + outside @ Q[2:]
    expected = (inside.norm() / outside.norm()).item()
    # The rows need not be orthonormal, nor independent.
    U = torch.cat([2 * Q[:2], Q[:1] + Q[1:2]])
    assert rep.subspace_snr(Z, U).item() == pytest.approx(expected)
    assert rep.subspace_snr(rep.moments(Z), U).item() == pytest.approx(expected)
    assert rep.subspace_snr(Z, Q).item() == math.inf
    assert rep.subspace_snr(outside @ Q[2:], Q[:2]).item() == pytest.approx(0, abs=1e-6)
