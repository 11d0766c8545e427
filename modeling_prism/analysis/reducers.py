"""
From batches to sums, and from sums to figures: what `collect_windows` adds up.

Shapes: L layers, B windows, H heads, S tokens, F frequencies, d width.
"""

import math

import torch
from torch import Tensor

from . import heads
from .collect import SHORTEST, Batch, Reducer
from .representations import Moments, coding_rate, effective_rank, matrix_entropy, moments


# What a head is described by: name, unit.
HEAD_FIGURES = {
    "distance": "tokens",
    "entropy": "nats",
    "centroid": "cycles / token",
    "sink": "share",
    "self": "share",
    "previous token": "share",
    "duplicate token": "share",
    "induction": "share",
}


def reduce_loss(batch: Batch) -> dict[str, Tensor]:
    """Nats of the predicted tokens, and their number."""
    nats = next_token_nats(batch)
    return {"nats": nats.sum(), "tokens": batch.valid[:, 1:].sum()}


def next_token_nats(batch: Batch) -> Tensor:
    """-ln p of each token but the first of a window: (B, S - 1), 0 where padded."""
    logits, targets = batch.logits[:, :-1], batch.input_ids[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.mT.float(), targets, reduction="none")
    return nats * batch.valid[:, 1:]


def head_reducer(max_length: int) -> Reducer:
    """
    A reducer for the figures of all heads. Windows shorter than `SHORTEST` tokens are left out.

    Args:
        max_length: of the windows: how many lags are kept, and the resolution of the spectrum.
    """

    def reduce(batch: Batch) -> dict[str, Tensor]:
        valid = batch.valid & (batch.valid.sum(-1, keepdim=True) >= SHORTEST)
        duplicate = heads.duplicate_token_pattern(batch.input_ids)
        following = heads.prefix_matching_pattern(batch.input_ids)
        queries = valid.sum()
        layers = []
        for A in batch.attentions:
            A = heads.check_maps(A)
            layer = {}
            for name, function in (
                ("distance", heads.attention_distance),
                ("entropy", heads.attention_entropy),
                ("sink", heads.sink_mass),
            ):
                layer[name] = torch.einsum("bht,bt->h", function(A), valid.to(A.dtype))
            lags, reach = heads.lag_sums(A, valid)
            layer["lags"] = torch.nn.functional.pad(lags, (0, max_length - lags.shape[-1]))
            layer["duplicate token"], num_duplicates = heads.pattern_sums(A, duplicate, valid)
            layer["induction"], num_following = heads.pattern_sums(A, following, valid)
            energies, _ = heads.attention_spectrum(A, valid, max_length)
            layer["spectrum"] = energies.nan_to_num() * queries
            layers.append(layer)
        sums = {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
        sums["reach"] = torch.nn.functional.pad(reach, (0, max_length - len(reach)))
        sums |= {"queries": queries, "duplicates": num_duplicates, "followings": num_following}
        return {f"heads/{name}": value for name, value in sums.items()}

    return reduce


def head_figures(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The figures of `HEAD_FIGURES` (L, H), and by head: `lags` (L, H, max_length) and how many queries have each,
    `reach` (max_length,); `spectrum` (L, H, F), `bands` (L, H, bands); `frequencies` (F,) in cycles a token.

    A figure that no token could tell (no token twice: no duplicates) is left out.

    Raises:
        ValueError: all windows were shorter than `SHORTEST` tokens.
    """
    if sums["heads/queries"] == 0:
        raise ValueError(f"Figures of heads need texts of at least {SHORTEST} tokens: all were shorter.")
    figures = {name: sums[f"heads/{name}"] / sums["heads/queries"] for name in ("distance", "entropy", "sink")}
    figures["reach"] = sums["heads/reach"]
    figures["lags"] = sums["heads/lags"] / figures["reach"]
    figures["self"], figures["previous token"] = figures["lags"][..., 0], figures["lags"][..., 1]
    figures["spectrum"] = sums["heads/spectrum"] / sums["heads/queries"]
    max_length = figures["lags"].shape[-1]
    figures["frequencies"] = torch.fft.rfftfreq(max_length, dtype=torch.float64)
    figures["centroid"] = heads.spectral_centroid(figures["spectrum"], figures["frequencies"])
    figures["bands"] = heads.band_energies(figures["spectrum"], figures["frequencies"])
    for name, count in (("duplicate token", "duplicates"), ("induction", "followings")):
        if sums[f"heads/{count}"] > 0:
            figures[name] = sums[f"heads/{name}"] / sums[f"heads/{count}"]
    return figures


def reduce_residual(batch: Batch) -> dict[str, Tensor]:
    """Second moments, norms and turns of the residual stream before the first layer and after each."""
    Z = [state[batch.valid].double() for state in batch.hidden_states]
    sums = stack_moments([moments(z) for z in Z], "residual")
    sums["residual/norm"] = torch.stack([z.norm(dim=-1).sum() for z in Z])
    angles = [angle_between(a, b).sum() for a, b in zip(Z[:-1], Z[1:])]
    sums["residual/angle"] = torch.stack(angles)
    return sums


def angle_between(x: Tensor, y: Tensor) -> Tensor:
    """
    Angle of vectors (..., d) in degrees, 0 to 180: (...). Exact near 0 too, where the arc cosine is not.

    Source: Kahan, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?", 2006.
    """
    x, y = (torch.nn.functional.normalize(vector.double(), dim=-1) for vector in (x, y))
    return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1)))


def stack_moments(by_layer: list[Moments], name: str) -> dict[str, Tensor]:
    """Moments of layers as sums of the names `name/count`, `name/total` and `name/gram`."""
    return {f"{name}/{field}": torch.stack(values) for field, values in zip(Moments._fields, zip(*by_layer))}


def unstack_moments(sums: dict[str, Tensor], name: str) -> list[Moments]:
    """The inverse of `stack_moments`."""
    return [Moments(*values) for values in zip(*(sums[f"{name}/{field}"] for field in Moments._fields))]


def residual_figures(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Of the residual stream before the first layer and after each, (L + 1,): `norm`, `effective rank` (dimensions),
    `entropy` (nats), `coding rate` (nats, of tokens scaled to a root-mean-square of 1); and `angle` (L,), by which
    each layer turns a token, in degrees.
    """
    layers = unstack_moments(sums, "residual")
    count = sums["residual/count"]
    figures = {
        "norm": sums["residual/norm"] / count,
        "effective rank": torch.stack([effective_rank(layer) for layer in layers]),
        "entropy": torch.stack([matrix_entropy(layer) for layer in layers]),
        "angle": sums["residual/angle"] / count[:-1],
    }
    # The coding rate grows with the scale of the stream, which the next norm takes away.
    scaled = [layer._replace(gram=layer.gram * layer.count * len(layer.gram) / layer.gram.trace()) for layer in layers]
    figures["coding rate"] = torch.stack([coding_rate(layer) for layer in scaled]) if scaled else count
    return figures


def loss_figures(sums: dict[str, Tensor], num_bytes: int) -> dict[str, float]:
    """Nats a token, perplexity, and bits a byte of text, which compares models of different tokenizers."""
    nats = (sums["nats"] / sums["tokens"]).item()
    bits_per_byte = sums["nats"].item() / math.log(2) / num_bytes
    return {"nats per token": nats, "perplexity": math.exp(min(nats, 700)), "bits per byte": bits_per_byte}
