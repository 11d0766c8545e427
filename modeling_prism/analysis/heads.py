"""
Metrics of attention heads, from their attention maps.

Shapes: L layers, B texts, H heads, S queries and keys; `...` stands for any leading dimensions, none or (L,). A map A
holds in A[t, s] the attention of query t to key s: rows sum to 1, and A[t, s] = 0 for s > t. `valid` (B, S) is False
at padding (on the right); None means no padding. Averages run over the valid queries of all texts, each with equal
weight.
"""

import torch
from torch import Tensor


# Band edges in cycles per token; the bands hold periods above 64 tokens, 16 to 64, 4 to 16 and 2 to 4.
BANDS = (0.0, 1 / 64, 1 / 16, 1 / 4, 1 / 2)


def check_maps(attentions: Tensor) -> Tensor:
    """Casts maps (..., S, S) to fp32 at least. Raises `ValueError` unless they are square."""
    if attentions.ndim < 2 or attentions.shape[-1] != attentions.shape[-2]:
        raise ValueError(
            f"Attention maps must be square in their last two dimensions (query, key), got {tuple(attentions.shape)}. "
            "Cached decoding gives fewer queries than keys: run the text in one pass."
        )
    return attentions.to(torch.promote_types(attentions.dtype, torch.float32))


def mean_over_queries(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Averages values per query (..., B, H, S) over the valid queries of all texts: (..., H)."""
    if valid is None:
        return values.mean((-3, -1))
    return torch.einsum("...bht,bt->...h", values, valid.to(values.dtype)) / valid.sum()


# Per query: (..., S, S) -> (..., S)


def attention_distance(attentions: Tensor) -> Tensor:
    """
    Mean attention distance per query, `sum_s A[t, s] (t - s)`, in tokens: (..., S, S) -> (..., S).

    Source: Vig and Belinkov, "Analyzing the Structure of Attention in a Transformer Language Model", arXiv 1906.04284.
    """
    A = check_maps(attentions)
    position = torch.arange(A.shape[-1], device=A.device, dtype=A.dtype)
    return position - A @ position


def attention_entropy(attentions: Tensor) -> Tensor:
    """
    Attention entropy per query, `-sum_s A[t, s] ln A[t, s]`, 0 to ln(t + 1) nats: (..., S, S) -> (..., S).

    Source: Shannon 1948; for attention, Vig and Belinkov, arXiv 1906.04284.
    """
    return torch.special.entr(check_maps(attentions)).sum(-1)


def sink_mass(attentions: Tensor) -> Tensor:
    """
    Attention to the first token, A[t, 0], a share of 1: (..., S, S) -> (..., S). The first query can attend to nothing
    else.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
    """
    return check_maps(attentions)[..., 0]


# By lag


def align_by_lag(attentions: Tensor) -> Tensor:
    """Indexes maps (..., S, S) by lag instead of key: out[t, lag] = A[t, t - lag], and 0 for lag > t."""
    A = check_maps(attentions)
    t = torch.arange(A.shape[-1], device=A.device)
    source = t[:, None] - t
    return A.gather(-1, source.clamp(min=0).expand_as(A)) * (source >= 0)


def attention_by_lag(attentions: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Mean attention to the token `lag` before the query, over the queries that have one: (..., B, H, S, S) -> (..., H,
    S).

    Each value is a share of 1. They do not sum to 1, because few queries reach large lags; a lag that no valid query
    reaches is NaN.
    """
    total, count = lag_sums(attentions, valid)
    return total / count


def lag_sums(attentions: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    For maps (..., B, H, S, S): the attention at each lag, summed over queries (..., H, S), and the number of queries
    that reach the lag (S,).
    """
    aligned = align_by_lag(attentions)
    S = aligned.shape[-1]
    if valid is None:
        valid = torch.ones(aligned.shape[-4], S, dtype=torch.bool, device=aligned.device)
    reach = torch.ones(S, S, device=aligned.device).tril().to(aligned.dtype)
    weight = valid.to(aligned.dtype)
    return torch.einsum("...bhtk,bt->...hk", aligned, weight), torch.einsum("tk,bt->k", reach, weight)


def attention_spectrum(
    attentions: Tensor, valid: Tensor | None = None, num_points: int | None = None
) -> tuple[Tensor, Tensor]:
    """
    Energy spectrum of attention over the lag. Each query's spectrum is normalised before averaging, so that diffuse
    queries weigh as much as sharp ones.

    Attention to a single token, at any lag, has a flat spectrum; attention spread evenly over many tokens has its
    energy near 0. The transform runs over keys rather than lags: magnitudes do not depend on shift or reversal.

    Args:
        attentions: (..., B, H, S, S).
        valid: (B, S).
        num_points: length to which rows are zero-padded, at least S. Default: S.

    Returns:
        energies (..., H, num_points // 2 + 1), one-sided, sum 1; frequencies in cycles per token, 0 to 1/2.

    Source: the periodogram (Schuster 1898) of each row.
    """
    A = check_maps(attentions)
    num_points = num_points or A.shape[-1]
    if num_points < A.shape[-1]:
        raise ValueError(f"`num_points`={num_points} would truncate rows of {A.shape[-1]} keys: give at least that.")
    energy = torch.fft.rfft(A, n=num_points).abs().square() / num_points
    # Every frequency except 0 and Nyquist also stands for its negative.
    energy[..., 1 : (num_points + 1) // 2] *= 2
    energy /= energy.sum(-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    frequencies = torch.fft.rfftfreq(num_points, device=A.device)
    return mean_over_queries(energy.movedim(-1, 0), valid).movedim(0, -1), frequencies


def spectral_centroid(energies: Tensor, frequencies: Tensor) -> Tensor:
    """
    Spectral centroid, `sum f E / sum E`, in cycles per token: (..., F), (F,) -> (...).

    Attention to single tokens has 1/4. Attention spread evenly over the t + 1 tokens of a causal query has about
    0.6 / t, because of the edge where it ends; averaged over 256 queries, 0.011.

    Source: Peeters 2004 (audio analysis), applied to energies here.
    """
    return (energies * frequencies).sum(-1) / energies.sum(-1)


def band_energies(energies: Tensor, frequencies: Tensor, edges: tuple[float, ...] = BANDS) -> Tensor:
    """
    Shares of the energy between successive `edges` (cycles per token): (..., F), (F,) -> (..., len(edges) - 1).

    A band includes its lower edge, the last band both. Shares sum to 1 if the edges span all frequencies.
    """
    upper = [*edges[1:-1], float("inf")]
    bands = [(low <= frequencies) & (frequencies < high) for low, high in zip(edges, upper)]
    bands[-1] &= frequencies <= edges[-1]
    return torch.stack([(energies * band).sum(-1) for band in bands], dim=-1) / energies.sum(-1, keepdim=True)


# Patterns of known kinds of heads


def previous_token_pattern(input_ids: Tensor) -> Tensor:
    """
    True where s = t - 1: (B, S) -> (B, S, S).

    Source: `get_previous_token_head_detection_pattern` of TransformerLens.
    """
    S = input_ids.shape[-1]
    return torch.eye(S, dtype=torch.bool, device=input_ids.device).roll(-1, 1).tril(-1).expand(*input_ids.shape, S)


def duplicate_token_pattern(input_ids: Tensor) -> Tensor:
    """
    True where key s < t holds the same token as query t: (B, S) -> (B, S, S).

    Source: `get_duplicate_token_head_detection_pattern` of TransformerLens.
    """
    return (input_ids[..., :, None] == input_ids[..., None, :]).tril(-1)


def prefix_matching_pattern(input_ids: Tensor) -> Tensor:
    """
    True where key s follows an earlier occurrence of query t's token: (B, S) -> (B, S, S).

    Source: `get_induction_head_detection_pattern` of TransformerLens.
    """
    return torch.nn.functional.pad(duplicate_token_pattern(input_ids)[..., :-1], (1, 0))


def pattern_sums(attentions: Tensor, pattern: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    Numerator and denominator of `pattern_score`: the attention of maps (..., B, H, S, S) on `pattern` (B, S, S),
    summed over queries (..., H), and the number of valid queries with any of the pattern, a scalar.
    """
    if valid is not None:
        pattern = pattern & valid[..., None]
    A = check_maps(attentions)
    return torch.einsum("...bhts,bts->...h", A, pattern.to(A.dtype)), pattern.any(-1).sum()


def pattern_score(attentions: Tensor, pattern: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Attention on `pattern`, a share of 1, averaged over the queries that have any of it.

    Args:
        attentions: (..., B, H, S, S).
        pattern: (B, S, S), True where the kind of head in question attends.
        valid: (B, S).

    Returns:
        (..., H).

    Raises:
        ValueError: no query has any of the pattern.

    Source: transformer_lens/head_detector.py (TransformerLens), whose `error_measure="mul"` divides by all queries
    and thereby also measures how often the pattern occurs.
    """
    total, count = pattern_sums(attentions, pattern, valid)
    if count == 0:
        raise ValueError(
            "No query has a key to match. Duplicate and induction scores need a token that occurs twice in a text "
            "(`random_repeats` makes such texts); previous-token scores need two tokens."
        )
    return total / count


def previous_token_score(attentions: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean attention at lag 1, a share of 1, over the queries that have one: (..., B, H, S, S) -> (..., H)."""
    ids = torch.zeros(attentions.shape[-4], attentions.shape[-1], device=attentions.device)
    return pattern_score(attentions, previous_token_pattern(ids), valid)


def duplicate_token_score(attentions: Tensor, input_ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Mean attention to earlier occurrences of the query's token, a share of 1; `input_ids` (B, S): (..., B, H, S, S) ->
    (..., H).

    Source: Wang et al., arXiv 2211.00593 (duplicate token heads), scored by `pattern_score`.
    """
    return pattern_score(attentions, duplicate_token_pattern(input_ids), valid)


def prefix_matching_score(attentions: Tensor, input_ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Induction score. A query whose token occurred before scores its total attention to the tokens that followed the
    earlier occurrences; the score is the mean over such queries.

    Args:
        attentions: (..., B, H, S, S).
        input_ids: token ids (B, S) that repeat at varying distances, such as those of `random_repeats`. At a fixed
            distance, position alone would find the match.
        valid: (B, S).

    Returns:
        a share of 1 per head, (..., H).

    Raises:
        ValueError: no token occurs twice.

    Source: Olsson et al., "In-context Learning and Induction Heads", 2022 (prefix matching), as TransformerLens
    defines it (`get_induction_head_detection_pattern`), averaged over the queries that have a match.
    """
    return pattern_score(attentions, prefix_matching_pattern(input_ids), valid)


def random_repeats(
    token_ids: Tensor, batch_size: int, num_distinct: int = 48, num_pairs: int = 24, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """
    Random texts that repeat at varying distances: `num_distinct` different tokens in random order, followed by
    `num_pairs` pairs of neighbours from among them.

    Args:
        token_ids: tokens to draw from (V,).

    Returns:
        ids (B, num_distinct + 2 * num_pairs); and a mask of the same shape, True at the second token of each pair.
        Only a model that looks up what followed the pair's first token can predict it.

    Raises:
        ValueError: fewer tokens than `num_distinct`.

    Source: the repeated random tokens of Olsson et al. 2022, with distances that vary, so that position alone is of no
    help.
    """
    if len(token_ids) < num_distinct:
        raise ValueError(
            f"`num_distinct`={num_distinct} different tokens cannot be drawn from {len(token_ids)}: lower it."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch_size):
        first = token_ids[torch.randperm(len(token_ids), generator=generator)[:num_distinct]]
        start = torch.randint(num_distinct - 1, (num_pairs,), generator=generator)
        rows.append(torch.cat([first, torch.stack([first[start], first[start + 1]], dim=1).flatten()]))
    predictable = torch.zeros(batch_size, num_distinct + 2 * num_pairs, dtype=torch.bool)
    predictable[:, num_distinct + 1 :: 2] = True
    return torch.stack(rows), predictable
