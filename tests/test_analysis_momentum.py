"""Momentum as a filter: formulas against published numbers, against scipy, and against sequences sheared by hand."""

import math

import pytest
import scipy.signal
import torch

from modeling_prism import reference
from modeling_prism.analysis import momentum


OMEGA = torch.linspace(0, math.pi, 33, dtype=torch.float64)


@pytest.mark.parametrize(
    "gamma, nyquist, noise, lead, at",
    [
        (0.15, 1.30, 1.345, 7.5, 1.440),
        (0.8, 2.6, 3.88, 26.4, 1.110),
        (1.0, 3, 5, 30, 1.047),
        (4.17, 9.34, 44.1, 53.8, 0.632),
    ],
)
def test_table_of_the_filter(gamma, nyquist, noise, lead, at):
    assert momentum.gain(momentum.transfer_function(math.pi, gamma)).item() == pytest.approx(nyquist)
    assert momentum.gain(momentum.transfer_function(0.0, gamma)).item() == 1
    assert momentum.noise_gain(gamma) == pytest.approx(noise, abs=0.05)
    degrees, omega = momentum.greatest_lead(gamma)
    assert (degrees, omega) == (pytest.approx(lead, abs=0.05), pytest.approx(at, abs=5e-4))
    # The lead of the filter itself, found by looking.
    fine = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    phases = momentum.phase(momentum.transfer_function(fine, gamma))
    assert phases.max().item() == pytest.approx(degrees, abs=1e-4)
    assert fine[phases.argmax()].item() == pytest.approx(omega, abs=1e-3)


@pytest.mark.parametrize("gamma", [-0.4, 0.0, 0.8])
def test_transfer_function_is_scipys(gamma):
    _, expected = scipy.signal.freqz([1 + gamma, -gamma], worN=OMEGA.numpy())
    H = momentum.transfer_function(OMEGA, gamma)
    assert torch.allclose(H, torch.as_tensor(expected), atol=1e-12)
    assert torch.allclose(momentum.gain(H).square(), 1 + 2 * gamma * (1 + gamma) * (1 - OMEGA.cos()))
    assert torch.allclose(10 ** (momentum.gain(H, decibels=True) / 20), momentum.gain(H))


def test_planes_turn_as_rope_turns():
    D, S, theta = 8, 6, 100.0
    states = torch.randn(S, D, dtype=torch.float64)
    frequencies = momentum.rotary_frequencies(D, theta)
    turned = momentum.from_planes(momentum.turn(momentum.to_planes(states), frequencies))
    expected = torch.stack([reference.rope(states[t], t, theta) for t in range(S)])
    assert torch.allclose(turned, expected)
    assert torch.allclose(momentum.turn(momentum.to_planes(turned), frequencies, -1), momentum.to_planes(states))


@pytest.mark.parametrize("placement", ["post_rope", "pre_rope"])
def test_plane_response_against_a_sheared_sinusoid(placement):
    """A content frequency w passes plane i with the gain of w + theta_i, or of w if sheared before RoPE."""
    S, D, gamma, omega = 12, 8, 0.8, 0.7
    frequencies = momentum.rotary_frequencies(D, 50.0)
    content = momentum.from_planes(
        torch.exp(1j * omega * torch.arange(S))[:, None].expand(S, D // 2).to(torch.complex128)
    )
    x = [content[t] for t in range(S)]
    if placement == "pre_rope":
        x = reference.shear(x, gamma)
    x = [reference.rope(x[t], t, 50.0) for t in range(S)]
    if placement == "post_rope":
        x = reference.shear(x, gamma)
    received = momentum.turn(momentum.to_planes(torch.stack(x)), frequencies, -1)
    measured = received[1:] / momentum.to_planes(content)[1:]
    expected = momentum.plane_response(torch.tensor([omega]), frequencies, gamma, placement)[:, 0]
    assert torch.allclose(measured, expected.expand_as(measured), atol=1e-10)
    # The wrong placement is not the same function.
    other = {"post_rope": "pre_rope", "pre_rope": "post_rope"}[placement]
    wrong = momentum.plane_response(torch.tensor([omega]), frequencies, gamma, other)[:, 0]
    assert (measured - wrong).abs().max() > 0.1


def sheared(x, gamma):
    return torch.stack(reference.shear(list(x), gamma))


def test_four_terms_sum_to_the_score():
    q, k = torch.randn(2, 9, 8, dtype=torch.float64)
    gamma = 0.6
    terms = momentum.score_terms(q, k, sheared(q, gamma), sheared(k, gamma))
    assert torch.allclose(terms.sum(0), sheared(q, gamma) @ sheared(k, gamma).T)
    p_q = torch.cat([torch.zeros(1, 8), q[1:] - q[:-1]])
    assert torch.allclose(terms[1], gamma * p_q @ k.T) and torch.allclose(terms[0], q @ k.T)
    keys_only = momentum.score_terms(q, k, q, sheared(k, gamma))
    assert keys_only[1].abs().max() == keys_only[3].abs().max() == 0


def test_shares():
    q, k = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    for shares in momentum.score_shares(momentum.score_terms(q, k, sheared(q[0], 0.6)[None] * q, k * 2)).values():
        assert shares.shape == (4, 3) and torch.allclose(shares.sum(0), torch.ones(3, dtype=torch.float64))
    plain = momentum.score_shares(momentum.score_terms(q, k, q, k))
    assert torch.allclose(plain["variance"][0], torch.ones(3, dtype=torch.float64))
    # Terms that are the same up to a factor share in proportion to it.
    T = torch.randn(9, 9, dtype=torch.float64)
    proportional = momentum.score_shares(torch.stack([2 * T, T, T, 0 * T]))
    for shares in proportional.values():
        assert shares.tolist() == pytest.approx([0.5, 0.25, 0.25, 0])
    # What the softmax ignores does not count: a constant for each query, and the future.
    shifted = torch.stack([2 * T, T, T, 0 * T])
    shifted[3] += torch.arange(9.0)[:, None] + 100 * torch.ones(9, 9).triu(1)
    assert momentum.score_shares(shifted)["variance"].tolist() == pytest.approx([0.5, 0.25, 0.25, 0])
    # A term that works against the sum has a negative share.
    assert momentum.score_shares(torch.stack([3 * T, -T, 0 * T, 0 * T]))["variance"].tolist() == pytest.approx(
        [1.5, -0.5, 0, 0]
    )


def test_dc_and_ac_of_a_known_signal():
    t = torch.arange(20)
    planes = torch.stack([3 + 2 * torch.exp(2j * math.pi * 3 * t / 20), torch.full((20,), 1j)], dim=-1).to(
        torch.complex128
    )
    dc, ac = momentum.dc_ac_energy(planes)
    assert dc.tolist() == pytest.approx([9, 1]) and ac.tolist() == pytest.approx([4, 0], abs=1e-6)
    assert torch.allclose(dc + ac, planes.abs().square().mean(0))


def test_constant_content_gains_what_the_theorem_says():
    D, S, gamma, theta = 8, 400, 0.8, 10000.0
    frequencies = momentum.rotary_frequencies(D, theta)
    noise = torch.randn(5, S, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    content = 3 + 0.5 * noise
    states = momentum.from_planes(momentum.turn(momentum.to_planes(content), frequencies))
    received = torch.stack([sheared(x, gamma) for x in states])
    table = momentum.dc_ac_table(states, received, frequencies)
    gains = table["content_dc_sheared"] / table["content_dc"]
    predicted = momentum.gain(momentum.plane_response(torch.zeros(1), frequencies, gamma))[:, 0].square()
    assert torch.allclose(gains, predicted, rtol=0.02)
    assert gains[0] > 1.5 and gains[-1] == pytest.approx(1, abs=0.01)
    # White noise gains the same in every plane.
    gains = table["content_ac_sheared"] / table["content_ac"]
    assert torch.allclose(gains, torch.full_like(gains, momentum.noise_gain(gamma)), rtol=0.1)
    # Received, the constant has moved out of DC in the fast plane and not in the slow one.
    assert table["received_dc"][0] < 0.01 * table["content_dc"][0]
    assert table["received_dc"][-1] > 0.9 * table["content_dc"][-1]
    # |p| / |q| of constant content.
    p = momentum.turn(torch.ones(S, 4), frequencies).diff(dim=0)
    assert p.abs()[0].tolist() == pytest.approx([0.959, 0.100, 0.010, 0.001], abs=5e-4)
