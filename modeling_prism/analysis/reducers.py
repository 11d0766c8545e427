"""
From batches to sums, and from sums to metrics: the reducers of `collect_windows`.

Shapes: L layers, B windows, H heads, S tokens, F frequencies, d width.
"""

import math

import torch
from torch import Tensor

from . import heads
from .collect import SHORTEST, Batch, Reducer
from .representations import Moments, coding_rate, effective_rank, matrix_entropy, moments


# The metrics of a head, with their units.
HEAD_METRICS = {
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
    """-ln p of every token but the first of a window: (B, S - 1), 0 at padding."""
    logits, targets = batch.logits[:, :-1], batch.input_ids[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.mT.float(), targets, reduction="none")
    return nats * batch.valid[:, 1:]


def head_reducer(max_length: int) -> Reducer:
    """
    A reducer for all head metrics. It skips windows shorter than `SHORTEST` tokens.

    Args:
        max_length: length of the longest window; sets the number of lags and the resolution of the spectrum.
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


def head_metrics(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The metrics of `HEAD_METRICS` (L, H), and per head: `lags` (L, H, max_length) with `reach` (max_length,), the
    number of queries per lag; `spectrum` (L, H, F) over `frequencies` (F,), in cycles per token; `bands` (L, H,
    bands).

    A metric without a query to measure it (no token occurs twice: no duplicates) is left out.

    Raises:
        ValueError: all windows are shorter than `SHORTEST` tokens.
    """
    if sums["heads/queries"] == 0:
        raise ValueError(f"Head metrics need texts of at least {SHORTEST} tokens; all texts are shorter.")
    metrics = {name: sums[f"heads/{name}"] / sums["heads/queries"] for name in ("distance", "entropy", "sink")}
    metrics["reach"] = sums["heads/reach"]
    metrics["lags"] = sums["heads/lags"] / metrics["reach"]
    metrics["self"], metrics["previous token"] = metrics["lags"][..., 0], metrics["lags"][..., 1]
    metrics["spectrum"] = sums["heads/spectrum"] / sums["heads/queries"]
    metrics["frequencies"] = torch.fft.rfftfreq(metrics["lags"].shape[-1], dtype=torch.float64)
    metrics["centroid"] = heads.spectral_centroid(metrics["spectrum"], metrics["frequencies"])
    metrics["bands"] = heads.band_energies(metrics["spectrum"], metrics["frequencies"])
    for name, count in (("duplicate token", "duplicates"), ("induction", "followings")):
        if sums[f"heads/{count}"] > 0:
            metrics[name] = sums[f"heads/{name}"] / sums[f"heads/{count}"]
    return metrics


def reduce_residual(batch: Batch) -> dict[str, Tensor]:
    """Moments, norms and turns of the residual stream before the first layer and after each layer."""
    Z = [state[batch.valid].double() for state in batch.hidden_states]
    sums = stack_moments([moments(z) for z in Z], "residual")
    sums["residual/norm"] = torch.stack([z.norm(dim=-1).sum() for z in Z])
    sums["residual/angle"] = torch.stack([angle_between(a, b).sum() for a, b in zip(Z[:-1], Z[1:])])
    return sums


def angle_between(x: Tensor, y: Tensor) -> Tensor:
    """
    Angle between vectors (..., d) in degrees, 0 to 180: (...). Unlike the arc cosine, it is accurate near 0.

    Source: Kahan, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?", 2006.
    """
    x, y = (torch.nn.functional.normalize(vector.double(), dim=-1) for vector in (x, y))
    return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1)))


def stack_moments(by_layer: list[Moments], name: str) -> dict[str, Tensor]:
    """Moments of layers as sums named `name/count`, `name/total` and `name/gram`."""
    return {f"{name}/{field}": torch.stack(values) for field, values in zip(Moments._fields, zip(*by_layer))}


def unstack_moments(sums: dict[str, Tensor], name: str) -> list[Moments]:
    """The inverse of `stack_moments`."""
    return [Moments(*values) for values in zip(*(sums[f"{name}/{field}"] for field in Moments._fields))]


def residual_metrics(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Metrics of the residual stream before the first layer and after each layer (L + 1,): `norm`, `effective rank`
    (dimensions), `entropy` (nats), `coding rate` (nats, for tokens scaled to a root-mean-square of 1); and `angle`
    (L,), by which each layer turns a token, in degrees.
    """
    layers = unstack_moments(sums, "residual")
    count = sums["residual/count"]
    metrics = {
        "norm": sums["residual/norm"] / count,
        "effective rank": torch.stack([effective_rank(layer) for layer in layers]),
        "entropy": torch.stack([matrix_entropy(layer) for layer in layers]),
        "angle": sums["residual/angle"] / count[:-1],
    }
    # The coding rate grows with the scale of the stream, which the next norm removes.
    scaled = [layer._replace(gram=layer.gram * layer.count * len(layer.gram) / layer.gram.trace()) for layer in layers]
    metrics["coding rate"] = torch.stack([coding_rate(layer) for layer in scaled])
    return metrics


def loss_metrics(sums: dict[str, Tensor], num_bytes: int) -> dict[str, float]:
    """Nats per token, perplexity, and bits per byte of text, which compares models across tokenizers."""
    nats = (sums["nats"] / sums["tokens"]).item()
    bits_per_byte = sums["nats"].item() / math.log(2) / num_bytes
    return {"nats per token": nats, "perplexity": math.exp(min(nats, 700)), "bits per byte": bits_per_byte}
