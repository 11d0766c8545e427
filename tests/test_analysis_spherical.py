"""Cyclic tasks: tables made of known frequencies."""

import math

import pytest
import torch

from modeling_prism.analysis import spherical


P = 23


def wave(k, phase=0.0, p=P):
    return torch.cos(2 * math.pi * k * torch.arange(p, dtype=torch.float64) / p + phase)


def test_energies_of_a_known_table():
    table = torch.stack([3 * wave(4), wave(7, 1.0), torch.full((P,), 5.0)], dim=1)
    energies = spherical.fourier_energies(table)
    assert energies.shape == (P // 2 + 1,)
    assert energies[4].item() == pytest.approx(0.9) and energies[7].item() == pytest.approx(0.1)
    assert energies.sum().item() == pytest.approx(1)
    assert spherical.top_frequencies(energies, 2).tolist() == [4, 7]
    assert spherical.explained_variance(energies, torch.tensor([4])).item() == pytest.approx(0.9)
    # It is the share of the variance.
    kept = spherical.keep_frequencies(table.T, torch.tensor([4])).T
    assert (kept.var(0).sum() / table.var(0).sum()).item() == pytest.approx(0.9)
    assert spherical.fourier_energies(torch.ones(P, 3)).abs().max() == 0


def test_the_nyquist_frequency_counts_once():
    table = torch.stack([wave(6, p=12), wave(2, p=12)], dim=1)
    # Variance 1 of an alternating sign, 1/2 of another cosine.
    assert spherical.fourier_energies(table)[[6, 2]].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_random_tables_have_no_frequency():
    energies = spherical.fourier_energies(torch.randn(113, 128, generator=torch.Generator().manual_seed(0)))
    assert energies.max() < 2.5 / 56


def clock_logits(frequencies, operation="add"):
    """What a model that has grokked puts out: sum_k cos(2 pi k (a + b - c) / p)."""
    pairs, labels = spherical.modular_pairs(P, operation)
    difference = labels[:, None] - torch.arange(P)
    return sum(torch.cos(2 * math.pi * k * difference / P) for k in frequencies), labels, pairs


def test_accuracy_with_the_top_frequencies():
    logits, labels, _ = clock_logits([3, 5, 8])
    noise = 0.02 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    by_k = spherical.accuracy_by_top_k(logits + noise, labels, ks=(0, 3, 11))
    assert by_k[3] == 1 and by_k[11] == pytest.approx(spherical.accuracy(logits + noise, labels))
    assert by_k[0] < 0.2
    assert sorted(spherical.top_frequencies(spherical.fourier_energies(logits, -1), 3).tolist()) == [3, 5, 8]
    # Logits that learnt by heart, class by class, have no few frequencies.
    heart = torch.nn.functional.one_hot(labels, P).double() + 0.1 * noise
    assert spherical.accuracy_by_top_k(heart + 0.8 * torch.randn(heart.shape), labels, ks=(2,))[2] < 0.6


def test_modular_pairs():
    pairs, labels = spherical.modular_pairs(5)
    assert pairs.shape == (25, 3) and pairs[7].tolist() == [1, 2, 5] and labels[7] == 3
    assert spherical.modular_pairs(5, "multiply")[1][[7, 18]].tolist() == [2, 9 % 5]


@pytest.mark.parametrize("p", [3, 5, 23, 113])
def test_powers_run_through_all_residues(p):
    order = spherical.discrete_log_order(p)
    assert sorted(order.tolist()) == list(range(1, p))
    # Multiplication is addition of places: a table of characters of the group has one frequency in this order.
    place = torch.empty(p, dtype=torch.long)
    place[order] = torch.arange(p - 1)
    a, b = 2, p - 1
    assert place[a * b % p] == (place[a] + place[b]) % (p - 1)
