"""Figures of heads, on maps whose figures are known."""

import math

import pytest
import torch

from modeling_prism.analysis import heads


S = 16


def uniform_map(S=S):
    """Every query spreads its attention evenly over what it may see."""
    A = torch.ones(S, S).tril()
    return A / A.sum(-1, keepdim=True)


def lag_map(lag, S=S):
    """All attention on the token `lag` before the query, or on the first."""
    A = torch.zeros(S, S)
    for t in range(S):
        A[t, max(t - lag, 0)] = 1
    return A


def random_map(*shape, seed=0):
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(shape[-2:], dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def test_distance():
    t = torch.arange(S)
    assert torch.allclose(heads.attention_distance(lag_map(3)), t.clamp(max=3).float())
    assert torch.allclose(heads.attention_distance(uniform_map()), t / 2, atol=1e-5)
    assert heads.attention_distance(lag_map(0)).abs().max() == 0


def test_entropy():
    assert torch.allclose(heads.attention_entropy(uniform_map()), torch.arange(1, S + 1).float().log(), atol=1e-6)
    assert heads.attention_entropy(lag_map(5)).abs().max() == 0


def test_sink():
    assert torch.allclose(heads.sink_mass(uniform_map()), 1 / torch.arange(1, S + 1))
    assert torch.equal(heads.sink_mass(lag_map(S)), torch.ones(S))


def test_means_count_every_valid_query_once():
    values = torch.tensor([[[1.0, 2.0, 3.0]], [[5.0, 100.0, 100.0]]])  # (B, H, S)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert heads.mean_over_queries(values, valid).item() == pytest.approx(11 / 4)
    assert heads.mean_over_queries(values).item() == pytest.approx(211 / 6)
    layers = torch.stack([values, 2 * values])
    assert heads.mean_over_queries(layers, valid).flatten().tolist() == pytest.approx([11 / 4, 22 / 4])


def test_attention_by_lag_against_a_loop():
    A = random_map(2, 3, S, S)
    valid = torch.ones(2, S, dtype=torch.bool)
    valid[1, 10:] = False
    for mask in (None, valid):
        profile = heads.attention_by_lag(A, mask)
        for lag in (0, 1, 7, 12):
            seen = [A[b, :, t, t - lag] for b in range(2) for t in range(lag, S) if mask is None or mask[b, t]]
            assert torch.allclose(profile[:, lag], torch.stack(seen).mean(0), atol=1e-6)
    assert heads.attention_by_lag(A[1:], valid[1:])[:, 10:].isnan().all()


def test_spectrum_of_a_single_token_is_flat_and_of_uniform_attention_low():
    energies, frequencies = heads.attention_spectrum(lag_map(4)[None, None])
    assert energies.sum().item() == pytest.approx(1)
    assert heads.spectral_centroid(energies, frequencies).item() == pytest.approx(0.25)
    assert heads.band_energies(energies, frequencies, (0, 0.25, 0.5)).flatten().tolist() == pytest.approx(
        [7 / 16, 9 / 16]
    )
    # One query over S keys, evenly: nothing but frequency 0.
    energies, frequencies = heads.attention_spectrum(torch.full((1, 1, S, S), 1 / S))
    assert heads.spectral_centroid(energies, frequencies).abs().item() < 1e-6


@pytest.mark.parametrize("f", [1 / 16, 3 / 16, 7 / 16])
def test_centroid_of_a_cosine_is_its_frequency(f):
    lag = torch.arange(S)
    A = (torch.cos(2 * math.pi * f * lag) / S).expand(1, 1, S, S)
    energies, frequencies = heads.attention_spectrum(A)
    assert heads.spectral_centroid(energies, frequencies).item() == pytest.approx(f, abs=1e-5)
    bands = heads.band_energies(energies, frequencies, (0, 2 / 16, 6 / 16, 0.5))
    assert bands.flatten().argmax().item() == [1 / 16, 3 / 16, 7 / 16].index(f)
    assert bands.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("num_points", [S, S + 5, 64])
def test_spectrum_of_each_query_counts_once_and_ignores_padding(num_points):
    A = random_map(2, 3, S, S)
    energies, frequencies = heads.attention_spectrum(A, num_points=num_points)
    assert energies.shape == (3, num_points // 2 + 1) and frequencies.shape == (num_points // 2 + 1,)
    assert torch.allclose(energies.sum(-1), torch.ones(3), atol=1e-5)
    # The centroid is the mean of those of the queries, however evenly each one spreads.
    A[:, :, ::2] = torch.eye(S)[::2]
    energies, frequencies = heads.attention_spectrum(A, num_points=num_points)
    alone = [heads.attention_spectrum(A[:, :, t : t + 1].expand(A.shape), num_points=num_points)[0] for t in range(S)]
    centroids = torch.stack([heads.spectral_centroid(query, frequencies) for query in alone])
    assert torch.allclose(heads.spectral_centroid(energies, frequencies), centroids.mean(0), atol=1e-6)
    assert centroids[0::2].sub(0.25).abs().max() < 0.02 and centroids[-1].max() < 0.2
    valid = torch.ones(2, S, dtype=torch.bool)
    valid[1] = False
    alone, _ = heads.attention_spectrum(A[:1], num_points=num_points)
    assert torch.allclose(heads.attention_spectrum(A, valid, num_points)[0], alone, atol=1e-6)


def test_previous_token_score():
    A = torch.stack([lag_map(1), lag_map(2), uniform_map()])[None]
    expected = [1, 1 / (S - 1), (1 / torch.arange(2, S + 1)).mean().item()]
    assert heads.previous_token_score(A).tolist() == pytest.approx(expected)


def attending(pattern):
    """A head that spreads its attention over `pattern` (B, S, S), or attends to itself: (B, 1, S, S)."""
    eye = torch.eye(pattern.shape[-1], dtype=torch.bool)
    A = torch.where(pattern.any(-1, keepdim=True), pattern, eye).float()
    return (A / A.sum(-1, keepdim=True))[:, None]


def test_duplicate_and_prefix_matching_scores():
    ids = torch.tensor([[5, 6, 7, 5, 8, 6, 5]])
    duplicate = torch.zeros(1, 7, 7)
    for t, s in ((3, 0), (5, 1), (6, 0), (6, 3)):
        duplicate[0, t, s] = 1
    assert torch.equal(heads.duplicate_token_pattern(ids), duplicate.bool())
    following = torch.zeros(1, 7, 7)
    for t, s in ((3, 1), (5, 2), (6, 1), (6, 4)):
        following[0, t, s] = 1
    assert torch.equal(heads.prefix_matching_pattern(ids), following.bool())

    A = torch.cat([attending(duplicate.bool()), attending(following.bool())], dim=1)
    assert heads.duplicate_token_score(A, ids).tolist() == pytest.approx([1, 0])
    assert heads.prefix_matching_score(A, ids).tolist() == pytest.approx([0, 1])
    # Two of three queries that have something to match are padding: the third decides.
    valid = torch.tensor([[True, True, True, True, False, False, False]])
    A[0, 1, 3] = torch.tensor([0, 0.25, 0, 0.75, 0, 0, 0])
    assert heads.prefix_matching_score(A, ids, valid).tolist() == pytest.approx([0, 0.25])


def test_scores_take_layers_and_refuse_texts_without_repeats():
    ids, _ = heads.random_repeats(torch.arange(40), 3, num_distinct=12, num_pairs=5)
    A = random_map(2, 3, 4, ids.shape[1], ids.shape[1])
    scores = heads.prefix_matching_score(A, ids)
    assert scores.shape == (2, 4)
    assert torch.allclose(scores[1], heads.prefix_matching_score(A[1], ids))


def test_random_repeats_vary_in_distance_and_defeat_a_fixed_lag():
    ids, predictable = heads.random_repeats(torch.arange(100, 400), 8, num_distinct=32, num_pairs=16, seed=1)
    assert ids.shape == predictable.shape == (8, 64) and predictable.sum() == 8 * 16
    assert all(row[:32].unique().numel() == 32 for row in ids)
    for row, known in zip(ids.tolist(), predictable.tolist()):
        for t in range(64):
            if known[t]:
                first = row[:32].index(row[t - 1])
                assert row[t] == row[first + 1]
    # A head that knows what to look for scores 1; one with a fixed lag, whichever, next to nothing.
    assert heads.prefix_matching_score(attending(heads.prefix_matching_pattern(ids)), ids).item() == pytest.approx(1)
    fixed = torch.stack([lag_map(lag, 64) for lag in range(64)]).expand(8, -1, -1, -1)
    assert heads.prefix_matching_score(fixed, ids).max() < 0.2
    assert torch.equal(ids, heads.random_repeats(torch.arange(100, 400), 8, 32, 16, seed=1)[0])
