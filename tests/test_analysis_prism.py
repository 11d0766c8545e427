"""Prism's figures: bank splits of known size, and an objective whose ascent is known."""

import math

import pytest
import torch

from modeling_prism import PrismConfig
from modeling_prism.analysis import collect, prism, reducers
from modeling_prism.analysis.momentum import rotary_frequencies
from modeling_prism.reference import rope
from tests.families import CASES, random_ids


PRISM = next(case.values[0] for case in CASES if case.id == "prism-default")


def test_cliffs_delta():
    assert prism.cliffs_delta(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])) == 1
    assert prism.cliffs_delta(torch.tensor([1.0, 2.0]), torch.tensor([3.0])) == -1
    assert prism.cliffs_delta(torch.tensor([1.0, 3.0]), torch.tensor([2.0])) == 0
    # 9 pairs: 3 larger, 4 smaller, 2 equal.
    x, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 3.0, 1.0])
    assert prism.cliffs_delta(x, y) == pytest.approx((4 - 3) / 9)


def test_split_by_bank_finds_a_difference_and_no_other():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 8, generator=generator)
    # Layers differ far more than banks.
    figure = noise + 20 * torch.arange(4.0)[:, None]
    none = prism.split_by_bank(figure, 4)
    assert none.p_value > 0.05
    figure[:, :4] += 2.5
    some = prism.split_by_bank(figure, 4)
    assert some.p_value < 0.01
    assert some.signal - some.noise == pytest.approx(none.signal - none.noise + 2.5)
    assert some == prism.split_by_bank(figure, 4)


def test_p_values_of_no_difference_are_uniform():
    generator = torch.Generator().manual_seed(1)
    p_values = [
        prism.split_by_bank(torch.randn(3, 6, generator=generator), 3, num_resamples=199).p_value for _ in range(60)
    ]
    assert sum(p < 0.05 for p in p_values) <= 8 and sum(p > 0.5 for p in p_values) >= 18


def test_small_tests_are_exact():
    # 2 + 2 heads: 6 ways to deal them, 2 of which are as extreme.
    split = prism.split_by_bank(torch.tensor([[5.0, 6.0, 1.0, 2.0]]), 2)
    assert split.p_value == pytest.approx(2 / 6) and split.cliffs_delta == 1


def test_the_smallest_p_is_of_both_tails():
    # Banks that nothing overlaps, and far more ways to deal the heads than are tried.
    figure = torch.cat([torch.arange(16.0) + 100, torch.arange(16.0)])[None]
    assert prism.split_by_bank(figure, 16, num_resamples=199).p_value == pytest.approx(2 / 200)


def test_adjusted_p_values():
    assert prism.adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert prism.adjusted([]) == []


def test_bank_compression():
    d = 8
    Q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    # Signal heads span the first half of the space, noise heads the second: tokens live in the first.
    Z = torch.randn(60, 4, dtype=torch.float64) @ Q[:4]
    signal, noise = prism.bank_compression(Z, Q, num_heads=4, num_signal_heads=2)
    assert signal > 1 and noise.abs() < 1e-9


def test_ascent_direction_is_the_gradient_by_hand():
    Z = torch.randn(5, 6, dtype=torch.float64)
    U = torch.randn(2, 3, 6, dtype=torch.float64)
    V = torch.randn(1, 3, 6, dtype=torch.float64)
    direction = prism.ascent_direction(Z, U, V, lam=0.3)
    step = 1e-6 * torch.randn_like(Z)
    change = prism.objective(Z + step, U, V, 0.3) - prism.objective(Z - step, U, V, 0.3)
    assert change.item() == pytest.approx(2 * (direction * step).sum().item(), rel=1e-5)
    assert prism.objective(Z + 1e-3 * direction, U, V, 0.3) > prism.objective(Z, U, V, 0.3)
    # In one dimension: R_c = 1/2 ln(1 + z^2 / (N eps^2)), whose derivative is z / (N eps^2 + z^2).
    one = prism.ascent_direction(torch.tensor([[2.0]]), torch.ones(1, 1, 1), 0 * torch.ones(1, 1, 1), 1.0, eps2=0.5)
    assert one.item() == pytest.approx(-2 / (0.5 + 4))


def test_update_cosines():
    Z = torch.randn(30, 16, dtype=torch.float64)
    direction = torch.randn(30, 16, dtype=torch.float64)
    assert prism.update_cosines(3 * direction, direction, Z) == pytest.approx({"plain": 1, "tangential": 1})
    # Against the token, but otherwise with the direction: the two figures tell it.
    unit = torch.nn.functional.normalize(Z, dim=-1)
    across = direction - (direction * unit).sum(-1, keepdim=True) * unit
    cosines = prism.update_cosines(across + 10 * Z, across - 10 * Z, Z)
    assert cosines["plain"] < -0.9 and cosines["tangential"] == pytest.approx(1)
    other = prism.update_cosines(torch.randn(30, 16), direction, Z)
    assert abs(other["plain"]) < 4 / math.sqrt(30 * 16)


def test_a_step_of_mssa_agrees_with_the_objective():
    """What the derivation says, where it holds: orthonormal subspaces, attention by similarity over all tokens."""
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q.view(3, 4, 12)
    clusters = torch.randn(3, 4, dtype=torch.float64)
    Z = (clusters[torch.arange(60) % 3] + 0.3 * torch.randn(60, 4, dtype=torch.float64)) @ U[0]
    h = Z @ U[0].T
    update = ((h @ h.T / 2).softmax(-1) @ h) @ U[0]
    direction = prism.ascent_direction(Z, U[:1], U[1:], lam=0.0)
    cosines = prism.update_cosines(update, direction, Z)
    # Shrinking is left to the residual connection.
    assert cosines["plain"] < 0 < 0.2 < cosines["tangential"]
    assert abs(prism.update_cosines(torch.randn(60, 12), direction, Z)["tangential"]) < 4 / math.sqrt(60 * 12)


def test_rope_kernel_is_the_score_of_equal_vectors():
    D, theta = 16, 300.0
    lags = torch.tensor([0, 1, 5, 40])
    x = torch.ones(D, dtype=torch.float64) / D**0.5
    scores = [float(rope(x, 50, theta) @ rope(x, 50 - int(lag), theta)) for lag in lags]
    assert prism.rope_kernel(rotary_frequencies(D, theta), lags).tolist() == pytest.approx(scores)


def test_rope_bands():
    bands = prism.rope_bands(PrismConfig(hidden_size=32, num_attention_heads=8))
    assert {bank: band["base"] for bank, band in bands.items()} == prism.PUBLISHED_ROPE_BASES
    assert bands["signal"]["wavelengths"][0].item() == pytest.approx(2 * math.pi)
    D = 16
    ratio = bands["noise"]["frequencies"] / bands["signal"]["frequencies"]
    assert ratio.tolist() == pytest.approx([math.pi ** (4 * j / D) for j in range(D // 2)])


def test_measures_of_a_model():
    model = PRISM.model()
    windows = [random_ids(24, seed=seed) for seed in range(3)]
    sums = collect.collect_windows(model, windows, [prism.input_reducer(model)], attentions=False, progress=False)
    layers = reducers.unstack_moments(sums, "prism")
    assert len(layers) == 2 and layers[0].count == 72
    cosines = prism.measure_update_cosines(model, windows)
    assert cosines["plain"].shape == (3, 2) and len(cosines) == 4
    assert all(values.abs().max() <= 1 for values in cosines.values())

    # The update that is compared is the one attention adds.
    heard = {}
    hook = model.model.layers[1].self_attn.register_forward_hook(
        lambda m, args, out: heard.update(z=args[0], y=out[0])
    )
    model(windows[0][None])
    hook.remove()
    U = prism.heads_of(model.model.layers[1].self_attn.dictionary.weight, 8)
    direction = prism.ascent_direction(heard["z"][0], U[:4], U[4:], 0.4)
    expected = prism.update_cosines(heard["y"][0], direction, heard["z"][0])
    assert cosines["tangential"][0, 1].item() == pytest.approx(expected["tangential"], abs=1e-5)
