"""
What attention heads do, from their attention maps.

Shapes: L layers, B texts, H heads, S queries and as many keys; `...` any leading dimensions, none or (L,). A map A
holds in A[t, s] the attention of query t to key s; its rows sum to 1, and A[t, s] = 0 for s > t. `valid` (B, S) is
False where a text is padded (on the right); None: nowhere. Averages are over the valid queries of all texts, each
counting once.
"""

import torch
from torch import Tensor


# Edges of the bands of `band_energies`, in cycles a token: periods above 64 tokens, 16 to 64, 4 to 16, 2 to 4.
BANDS = (0.0, 1 / 64, 1 / 16, 1 / 4, 1 / 2)


def check_maps(attentions: Tensor) -> Tensor:
    """
    Maps (..., S, S) in fp32 at least. Raises `ValueError` where the last two dimensions differ.

    Definition of this package.
    """
    if attentions.ndim < 2 or attentions.shape[-1] != attentions.shape[-2]:
        raise ValueError(
            f"Attention maps must be square in their last two dimensions (query, key), got {tuple(attentions.shape)}; "
            "maps of cached decoding have fewer queries than keys: run the text in one pass."
        )
    return attentions.to(torch.promote_types(attentions.dtype, torch.float32))


def mean_over_queries(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Values by query (..., B, H, S), averaged over the valid queries of all texts, in their unit: (..., H).

    Definition of this package.
    """
    if valid is None:
        return values.mean((-3, -1))
    return torch.einsum("...bht,bt->...h", values, valid.to(values.dtype)) / valid.sum()


# By query: (..., S, S) -> (..., S)


def attention_distance(attentions: Tensor) -> Tensor:
    """
    Mean distance of what a query attends to: `sum_s A[t, s] (t - s)`, in tokens. (..., S, S) -> (..., S).

    Source: Vig and Belinkov, "Analyzing the Structure of Attention in a Transformer Language Model", arXiv 1906.04284.
    """
    A = check_maps(attentions)
    position = torch.arange(A.shape[-1], device=A.device, dtype=A.dtype)
    return position - A @ position


def attention_entropy(attentions: Tensor) -> Tensor:
    """
    Entropy of a query's attention, `-sum_s A[t, s] ln A[t, s]`, in nats: 0 to ln(t + 1). (..., S, S) -> (..., S).

    Source: Shannon 1948; of attention, Vig and Belinkov, arXiv 1906.04284.
    """
    return torch.special.entr(check_maps(attentions)).sum(-1)


def sink_mass(attentions: Tensor) -> Tensor:
    """
    Attention to the first token, A[t, 0], a share of 1. (..., S, S) -> (..., S).

    The first query has nothing else to attend to. Source: Xiao et al., "Efficient Streaming Language Models with
    Attention Sinks", arXiv 2309.17453.
    """
    return check_maps(attentions)[..., 0]


# Over the lag


def align_by_lag(attentions: Tensor) -> Tensor:
    """
    Maps with their columns counted back from the query: out[t, lag] = A[t, t - lag], 0 for lag > t. (..., S, S) ->
    (..., S, S).

    Definition of this package.
    """
    A = check_maps(attentions)
    t = torch.arange(A.shape[-1], device=A.device)
    source = t[:, None] - t
    return A.gather(-1, source.clamp(min=0).expand_as(A)) * (source >= 0)


def attention_by_lag(attentions: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Mean attention to the token `lag` before the query, over the queries that have one: (..., B, H, S, S) -> (..., H,
    S).

    A share of 1 for each lag; the values do not sum to 1, because large lags are open to few queries. NaN for lags
    that no valid query reaches. Definition of this package.
    """
    total, count = lag_sums(attentions, valid)
    return total / count


def lag_sums(attentions: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    Of maps (..., B, H, S, S), the sum over queries of the attention at each lag (..., H, S), and how many queries
    reach the lag (S,).

    Definition of this package.
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
    Energy spectrum of attention as a function of the lag: each query's row as shares of its own energy, averaged over
    queries, so that a query that spreads its attention counts as much as one that does not.

    Args:
        attentions: (..., B, H, S, S).
        valid: (B, S).
        num_points: rows are padded with zeros to this length, at least S; default S.

    Returns:
        energies (..., H, num_points // 2 + 1), one-sided, sum 1; frequencies in cycles a token, 0 to 1/2.

    All attention on one token, at whatever lag, is a flat spectrum; attention spread evenly over many has its energy
    near 0. The magnitude of a Fourier transform does not see shifts and reversals, so it is taken over the keys as
    they lie.

    Source: the periodogram of each row (Schuster 1898); the average over queries is a definition of this package.
    """
    A = check_maps(attentions)
    num_points = num_points or A.shape[-1]
    if num_points < A.shape[-1]:
        raise ValueError(f"`num_points`={num_points} would cut rows of {A.shape[-1]} keys: choose at least as many.")
    energy = torch.fft.rfft(A, n=num_points).abs().square() / num_points
    # All frequencies but 0 and the Nyquist frequency stand for a negative one too.
    energy[..., 1 : (num_points + 1) // 2] *= 2
    energy /= energy.sum(-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    frequencies = torch.fft.rfftfreq(num_points, device=A.device)
    return mean_over_queries(energy.movedim(-1, 0), valid).movedim(0, -1), frequencies


def spectral_centroid(energies: Tensor, frequencies: Tensor) -> Tensor:
    """
    Centre of mass of an energy spectrum, `sum f E / sum E`, in cycles a token. (..., F), (F,) -> (...).

    With frequency 0 in it: 1/4 for attention to single tokens. Attention spread evenly over the t + 1 tokens that a
    causal query sees has about 0.6 / t, from the edge where it ends: averaged over 256 queries, 0.011.

    Source: the spectral centroid of audio analysis (Peeters 2004), here of energies; the two values are derived here.
    """
    return (energies * frequencies).sum(-1) / energies.sum(-1)


def band_energies(energies: Tensor, frequencies: Tensor, edges: tuple[float, ...] = BANDS) -> Tensor:
    """
    Shares of the energy in the bands between `edges` (cycles a token): (..., F), (F,) -> (..., len(edges) - 1).

    A band holds its lower edge, the last one its upper edge too; shares sum to 1 if the edges span all frequencies.
    Definition of this package, as are the `BANDS`.
    """
    upper = [*edges[1:-1], float("inf")]
    bands = [(low <= frequencies) & (frequencies < high) for low, high in zip(edges, upper)]
    bands[-1] &= frequencies <= edges[-1]
    return torch.stack([(energies * band).sum(-1) for band in bands], dim=-1) / energies.sum(-1, keepdim=True)


# Where a head of a known kind would look


def previous_token_pattern(input_ids: Tensor) -> Tensor:
    """
    True where s = t - 1: (B, S) -> (B, S, S).

    Source: `get_previous_token_head_detection_pattern` of TransformerLens.
    """
    S = input_ids.shape[-1]
    return torch.eye(S, dtype=torch.bool, device=input_ids.device).roll(-1, 1).tril(-1).expand(*input_ids.shape, S)


def duplicate_token_pattern(input_ids: Tensor) -> Tensor:
    """
    True where key s < t holds the token of query t: (B, S) -> (B, S, S).

    Source: `get_duplicate_token_head_detection_pattern` of TransformerLens.
    """
    return (input_ids[..., :, None] == input_ids[..., None, :]).tril(-1)


def prefix_matching_pattern(input_ids: Tensor) -> Tensor:
    """
    True where key s follows an earlier occurrence of the token of query t: (B, S) -> (B, S, S).

    Source: `get_induction_head_detection_pattern` of TransformerLens.
    """
    return torch.nn.functional.pad(duplicate_token_pattern(input_ids)[..., :-1], (1, 0))


def pattern_sums(attentions: Tensor, pattern: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    Attention of maps (..., B, H, S, S) on `pattern` (B, S, S) summed over queries, (..., H), and how many valid
    queries have any of it, a scalar.

    Source: as `pattern_score`, whose numerator and denominator they are.
    """
    if valid is not None:
        pattern = pattern & valid[..., None]
    A = check_maps(attentions)
    return torch.einsum("...bhts,bts->...h", A, pattern.to(A.dtype)), pattern.any(-1).sum()


def pattern_score(attentions: Tensor, pattern: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Attention on `pattern`, averaged over the queries that have any of it: a share of 1.

    Args:
        attentions: (..., B, H, S, S).
        pattern: (B, S, S), True where a head of the kind looked for attends to.
        valid: (B, S).

    Returns:
        (..., H).

    Raises:
        ValueError: no query has any of the pattern.

    Source: transformer_lens/head_detector.py (TransformerLens), whose `error_measure="mul"` divides by all queries
    instead, so that it also measures how often the pattern occurs.
    """
    total, count = pattern_sums(attentions, pattern, valid)
    if count == 0:
        raise ValueError(
            "No query has a key to match: for duplicate and induction scores some token must occur twice in a text "
            "(`random_repeats` makes such texts), and a text needs two tokens."
        )
    return total / count


def previous_token_score(attentions: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Mean attention at lag 1, over the queries that have one, a share of 1. (..., B, H, S, S) -> (..., H).

    Source: as `pattern_score`.
    """
    ids = torch.zeros(attentions.shape[-4], attentions.shape[-1], device=attentions.device)
    return pattern_score(attentions, previous_token_pattern(ids), valid)


def duplicate_token_score(attentions: Tensor, input_ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Mean attention to earlier occurrences of the query's own token, a share of 1. (..., B, H, S, S) -> (..., H).

    `input_ids` (B, S). Source: Wang et al., arXiv 2211.00593 (duplicate token heads); scored as `pattern_score` does.
    """
    return pattern_score(attentions, duplicate_token_pattern(input_ids), valid)


def prefix_matching_score(attentions: Tensor, input_ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """
    Induction score: for each query whose token occurred before, attention to the tokens that followed its earlier
    occurrences, all of them together; averaged over such queries.

    Args:
        attentions: maps (..., B, H, S, S).
        input_ids: token ids (B, S) with repeats. Their distances must vary: what repeats at one fixed distance can be
            found by position alone. `random_repeats` makes such ids.
        valid: (B, S), False where padded.

    Returns:
        a share of 1 for each head, (..., H).

    Raises:
        ValueError: no token occurs twice.

    Source: Olsson et al., "In-context Learning and Induction Heads", 2022 (prefix matching), as TransformerLens
    defines it (`get_induction_head_detection_pattern`), but averaged over the queries that have something to match.
    """
    return pattern_score(attentions, prefix_matching_pattern(input_ids), valid)


def random_repeats(
    token_ids: Tensor, batch_size: int, num_distinct: int = 48, num_pairs: int = 24, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """
    Random texts that repeat themselves at varying distances: `num_distinct` different tokens in random order, then
    `num_pairs` times a pair of neighbours out of them.

    Args:
        token_ids: tokens to draw from (V,).

    Returns:
        ids (B, num_distinct + 2 * num_pairs); and (B, S), True at the second token of each pair, which a model that
        looks up what followed the first can predict, and nothing else.

    Raises:
        ValueError: fewer tokens than `num_distinct`.

    Source: the repeated random tokens of Olsson et al. 2022; their distances vary here, because one fixed distance can
    be found by position alone.
    """
    if len(token_ids) < num_distinct:
        raise ValueError(
            f"{num_distinct} different tokens cannot be drawn from {len(token_ids)}: lower `num_distinct`."
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
