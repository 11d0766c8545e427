"""
One text up close, for the report's page: the loss of every token, where every head looks, and what both become when
the mechanism is turned down or up.

Shapes: V settings of the mechanism, L layers, H heads, S tokens.
"""

import base64
import math
import zlib
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .collect import prepared, run_batch
from .examine import family_of, read_windows, steered
from .reducers import angle_between
from .verdicts import number


# Bytes of all maps of a page before compression: 64 heads at 5 settings read 256 tokens.
MAP_BYTES = 12_000_000
# A head is listed under the kind of token that gets most of its attention, if that is at least this share.
KIND_SHARE = 0.3
KINDS = {
    "previous token": "the token before",
    "induction": "what followed the same token",
    "duplicate token": "the same token, earlier",
    "sink": "the first token",
    "self": "the token itself",
}
# What the slider moves.
MECHANISMS = {
    "prism": "lambda, the weight at which noise heads are subtracted; below 0 they are added",
    "momentum": "gamma, the weight of a token's change in its query and key",
    "spherical": "the scale of attention scores; at 0 every head is the running mean",
}


def settings_of(model: PreTrainedModel) -> tuple[list[float], list[str], int]:
    """
    What `steered` is given, the labels of these values, and the index of the trained one: five values for Prism,
    Momentum and Spherical with softmax attention, otherwise one.
    """
    family = family_of(model)
    if family == "prism":
        trained = model.config.noise_coefficient
        values = sorted({0.0, trained / 2, trained, 0.5 if trained < 0 else (1 + trained) / 2, 1.0})
        if len(values) < 5:
            values = [0.0, 0.25, 0.5, 0.75, 1.0]
        return values, [number(value) for value in values], values.index(trained)
    gammas = set(model.config.layer_gammas) if family == "momentum" else {1.0}
    softmax = getattr(model.config, "attention_routing", None) == "softmax"
    if gammas == {0.0} or family == "spherical" and not softmax or family not in MECHANISMS:
        return [1.0], ["as trained"], 0
    values = [0.0, 0.5, 1.0, 1.5, 2.0]
    if len(gammas) == 1:
        (unit,) = gammas
        return values, [number(value * unit) for value in values], 2
    return values, [f"{number(value)} times the trained" for value in values], 2


def kinds_of(heads: dict | None, shape: tuple[int, int]) -> list[tuple[str, list[int]]]:
    """
    The heads of a model, numbered layer by layer, by what they look at: pairs of a kind and its heads, the clearest
    first. Heads without a kind come last, from near to far.

    Args:
        heads: `examine`'s metrics of all heads (L, H); without them, all heads are of one kind.
        shape: L and H.
    """
    if heads is None:
        return [("all heads", list(range(math.prod(shape))))]
    names = [name for name in KINDS if name in heads]
    shares = torch.stack([heads[name].flatten() for name in names])
    best, kind = shares.max(0)
    kinds = []
    for index, name in enumerate(names):
        own = ((kind == index) & (best >= KIND_SHARE)).nonzero().flatten()
        kinds.append((f"look at {KINDS[name]}", own[best[own].argsort(descending=True)].tolist()))
    rest = (best < KIND_SHARE).nonzero().flatten()
    kinds.append(("spread, from near to far", rest[heads["distance"].flatten()[rest].argsort()].tolist()))
    return [(name, own) for name, own in kinds if own]


@torch.no_grad()
def view_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    found: dict,
    progress: bool = True,
) -> dict:
    """
    Reads the first text that has a token to predict, at every setting of the model's mechanism.

    Args:
        model, tokenizer, texts: as for `examine`. The text is cut to the windows of `found`, or to what `MAP_BYTES`
            allow.
        found: the findings of `examine`, which say what each head does.
        progress: show a progress bar.

    Returns:
        `tokens`, S strings; `bits` (V, S), the loss of each token, 0 for the first; `guesses`, per token up to three
        pairs of a token that the trained model expected there and its probability; `angles` (L, S), by which each
        layer turns a token, in degrees; `maps` (V, L, H, S, S), uint8, 255 times the square root of attention, or None
        if the model gives none; `kinds` (see `kinds_of`); `mechanism`, `settings` and `trained`, what was turned, the
        labels of its V values, and the index of the trained one.

    Raises:
        ValueError: no text has a token to predict.
    """
    family, attentions = family_of(model), "repeats" in found
    values, labels, trained = settings_of(model)
    length = found["max length"]
    if attentions:
        triangles = MAP_BYTES / (len(values) * found["layers"] * found["heads per layer"])
        length = min(length, max(4, int(math.sqrt(2 * triangles))))
    ids = read_windows(model, tokenizer, texts, length)[0][0]
    view = {
        "tokens": [tokenizer.decode([token]) for token in ids.tolist()],
        "kinds": kinds_of(found.get("heads"), (found["layers"], found["heads per layer"])) if attentions else [],
        "mechanism": MECHANISMS.get(family, ""),
        "settings": labels,
        "trained": trained,
        "maps": None,
    }
    bits, maps = [], []
    for index, value in enumerate(tqdm(values, desc=f"{found['name']}: one text up close", disable=not progress)):
        with steered(model, value), prepared(model, attentions):
            batch = run_batch(model, [ids], [0], attentions)
        logs = batch.logits[0, :-1].float().log_softmax(-1).cpu()
        nats = -logs.gather(-1, ids[1:, None])[:, 0]
        bits.append(torch.nn.functional.pad(nats / math.log(2), (1, 0)))
        if attentions:
            maps.append(torch.stack([A[0].float().sqrt().mul(255).round().byte().cpu() for A in batch.attentions]))
        if index == trained:
            shares, tokens = logs.exp().topk(min(3, logs.shape[-1]))
            rows = zip(tokens.tolist(), shares.tolist())
            view["guesses"] = [[], *([(tokenizer.decode([t]), p) for t, p in zip(*row)] for row in rows)]
            states = [state[0] for state in batch.hidden_states]
            view["angles"] = torch.stack([angle_between(a, b).cpu() for a, b in zip(states[:-1], states[1:])])
    view["bits"] = torch.stack(bits)
    if attentions:
        view["maps"] = torch.stack(maps)
    return view


def pack(values: torch.Tensor) -> str:
    """Bytes of a tensor, compressed (zlib) and in base64."""
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()


def page_data(found: dict) -> dict | None:
    """What the page's script reads of findings: those of one text (`view`) or those of a task (`clock`), or None."""
    if "view" in found:
        view = found["view"]
        data = {key: view[key] for key in ("tokens", "kinds", "guesses", "settings", "trained", "mechanism")}
        data["guesses"] = [[[token, round(share, 3)] for token, share in row] for row in data["guesses"]]
        data["bits"] = [[round(value, 2) for value in row] for row in view["bits"].tolist()]
        if found["family"] == "spherical":
            data["angles"] = view["angles"].round().int().tolist()
        if view["maps"] is not None:
            lower = torch.ones(view["maps"].shape[-2:], dtype=torch.bool).tril()
            data |= {
                "layers": found["layers"],
                "heads": found["heads per layer"],
                "maps": pack(view["maps"][..., lower]),
            }
        if "prism" in found:
            data["signal"] = found["prism"]["signal heads"]
        return data
    if "clock" in found:
        clock = found["clock"]
        hands = torch.view_as_real(clock["hands"] / clock["hands"].abs().max()).mul(127).round().to(torch.int8)
        return {
            "residues": clock["residues"].tolist(),
            "product": found["task"].startswith("multiply"),
            "frequencies": clock["frequencies"].tolist(),
            "circles": [[[round(x, 2) for x in point] for point in circle] for circle in clock["circles"].tolist()],
            "hands": pack(hands),
        }
    return None
