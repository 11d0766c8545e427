"""
The filter measured in a loaded model: the counterpart of the formulas in `momentum.py`, for any model with RoPE.

Hooks make the projections emit signals of known frequency. The model's own rotary embedding and shear process them,
and queries and keys are recorded where attention receives them.

Shapes: L layers, B texts, H heads, S tokens, D head width, P = D / 2 rotary planes, W frequencies.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import scipy.signal
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .momentum import dc_ac_table, model_response, score_shares, score_terms, to_planes, turn


RECORDING = "modeling_prism_recording"
# Where `recorded_attention` writes to; empty while nobody listens.
_listeners: list[dict[int, tuple[Tensor, Tensor]]] = []


def recorded_attention(module, query, key, value, attention_mask, **kwargs):
    """sdpa attention that also records its queries (B, H, S, D) and keys (B, K, S, D), K <= H, for `listening`."""
    if _listeners:
        _listeners[-1][module.layer_idx] = (query.detach(), key.detach())
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(RECORDING, recorded_attention)
AttentionMaskInterface.register(RECORDING, sdpa_mask)


@contextlib.contextmanager
def listening(model: PreTrainedModel) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Yields, per layer, the queries (B, H, S, D) and keys (B, K, S, D) of attention in the last forward pass."""
    implementation, training = model.config._attn_implementation, model.training
    received: dict[int, tuple[Tensor, Tensor]] = {}
    _listeners.append(received)
    try:
        model.eval()
        model.set_attn_implementation(RECORDING)
        yield received
    finally:
        _listeners.pop()
        model.train(training)
        model.set_attn_implementation(implementation)


def rotary_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """
    The attention modules (L,) of a model with query and key projections and one rotary embedding.

    Raises:
        ValueError: the model lacks them.
    """
    layers = getattr(model.base_model, "layers", [])
    modules = [getattr(layer, "self_attn", None) for layer in layers]
    complete = all(hasattr(module, "q_proj") and hasattr(module, "k_proj") for module in modules)
    if not modules or not complete or not hasattr(model.base_model, "rotary_emb"):
        raise ValueError(
            f"{type(model).__name__} has no query and key projections with RoPE (`layers.N.self_attn.q_proj`), and "
            "therefore no rotary plane to measure. Llama, Momentum and similar models do."
        )
    return modules


def plane_frequencies(model: PreTrainedModel) -> Tensor:
    """theta_i (P,) of a model's rotary embedding (`inv_freq`), in radians per token, fp64."""
    rotary_layers(model)
    return model.base_model.rotary_emb.inv_freq.double().cpu()


@torch.no_grad()
def drive(model: PreTrainedModel, signal: Tensor) -> tuple[Tensor, Tensor]:
    """
    Makes every head of every layer project `signal`, and returns what attention receives.

    Args:
        signal: content as complex planes (B, S, P).

    Returns:
        queries and keys of the first head as complex planes (L, B, S, P), fp64, in the unit of `signal`.
    """
    modules = rotary_layers(model)
    states = torch.cat((signal.real, signal.imag), dim=-1).to(model.device, model.dtype)  # (B, S, D)

    def replace(module, args, output):
        return states.repeat(1, 1, output.shape[-1] // states.shape[-1])

    hooks = [
        projection.register_forward_hook(replace)
        for module in modules
        for projection in (module.q_proj, module.k_proj)
    ]
    try:
        with listening(model) as received:
            model(input_ids=torch.zeros(signal.shape[:2], dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    queries, keys = zip(*(received[layer] for layer in range(len(modules))))
    return tuple(torch.stack([to_planes(states[:, 0].cpu()) for states in stream]) for stream in (queries, keys))


def measured_response(model: PreTrainedModel, omegas: Tensor, length: int = 64) -> dict[str, Tensor]:
    """
    The response of each rotary plane to content of known frequency, measured in the loaded model.

    Each content frequency drives all planes as e^(j w t), an eigenfunction of every linear filter. RoPE's rotation,
    e^(j theta_i t), is undone in what attention receives, and the rest is divided by the drive. The first token, which
    has no previous one, is left out.

    Args:
        omegas: content frequencies (W,), in radians per token.
        length: tokens per drive.

    Returns:
        `queries` and `keys`: complex (L, P, W), output over input, comparable with `plane_response(omegas, theta,
        gamma, placement)`.

    Derived here.
    """
    t = torch.arange(length, dtype=torch.float64)
    theta = plane_frequencies(model)
    drives = torch.exp(1j * omegas.double()[:, None] * t)[..., None].expand(-1, -1, len(theta))
    responses = {}
    for name, received in zip(("queries", "keys"), drive(model, drives)):
        content = turn(received, theta, sign=-1)
        responses[name] = (content[:, :, 1:] * drives[:, 1:].conj()).mean(-2).transpose(1, 2)
    return responses


def white_noise(num_texts: int, length: int, num_planes: int, seed: int) -> Tensor:
    """Complex white noise (B, S, P): real and imaginary parts are independent and normal, of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(num_texts, length, num_planes, 2, generator=generator, dtype=torch.float64)
    return torch.view_as_complex(parts)


def measured_noise_response(
    model: PreTrainedModel, length: int = 128, num_texts: int = 32, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    The transfer function of a model's shear, estimated from white noise: cross over power spectral density, by Welch's
    method (`scipy.signal.csd`, `scipy.signal.welch`), averaged over texts and rotary planes.

    The input is the noise after RoPE. For a shear after RoPE, the frequency is therefore the one at the shear,
    w + theta_i, in every plane.

    Returns:
        frequencies (W,) from -pi to pi, in radians per token; `queries` and `keys`, complex (L, W), output over input.

    Source: the H1 estimate of a frequency response (Bendat and Piersol), with spectra after Welch 1967.
    """
    theta = plane_frequencies(model)
    noise = white_noise(num_texts, length, len(theta), seed)
    options = {"nperseg": length // 4, "return_onesided": False, "detrend": False, "axis": -2}
    x = turn(noise, theta)[:, 1:].numpy()
    frequencies, power = scipy.signal.welch(x, **options)
    responses = {}
    for name, received in zip(("queries", "keys"), drive(model, noise)):
        _, cross = scipy.signal.csd(x[None], received[:, :, 1:].numpy(), **options)
        responses[name] = torch.as_tensor(cross.mean((1, 3)) / power.mean((0, 2)))
    order = frequencies.argsort()
    return torch.as_tensor(2 * torch.pi * frequencies[order]), {k: v[:, order] for k, v in responses.items()}


def measured_noise_gain(
    model: PreTrainedModel, length: int = 128, num_texts: int = 32, seed: int = 0
) -> dict[str, Tensor]:
    """
    Energy of what attention receives relative to its white-noise input, without the first token, comparable with
    `noise_gain`. `queries` and `keys`: (L, P).
    """
    noise = white_noise(num_texts, length, len(plane_frequencies(model)), seed)
    energy = noise[:, 1:].abs().square().mean((0, 1))
    queries, keys = (received[:, :, 1:].abs().square().mean((1, 2)) / energy for received in drive(model, noise))
    return {"queries": queries, "keys": keys}


@torch.no_grad()
def queries_and_keys(model: PreTrainedModel, input_ids: Tensor) -> list[dict[str, Tensor]]:
    """
    Queries and keys of texts (B, S) without padding, per layer: `q` and `k` after RoPE and without the shear, `q_hat`
    and `k_hat` as attention receives them. Each is (B, H, S, D); keys are repeated for their query heads.
    """
    modules = rotary_layers(model)
    heard: dict[int, tuple[Tensor, Tensor, tuple[Tensor, Tensor]]] = {}

    def listen(module, args, kwargs, output):
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        embeddings = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
        shape = (*hidden.shape[:-1], -1, module.head_dim)
        q, k = (projection(hidden).view(shape).transpose(1, 2) for projection in (module.q_proj, module.k_proj))
        heard[module.layer_idx] = apply_rotary_pos_emb(q, k, *embeddings)

    hooks = [module.register_forward_hook(listen, with_kwargs=True) for module in modules]
    try:
        with listening(model) as received:
            model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for layer in range(len(modules)):
        q, k = heard[layer]
        q_hat, k_hat = received[layer]
        group = q.shape[1] // k.shape[1]
        layers.append(
            {
                "q": q.double(),
                "k": k.double().repeat_interleave(group, dim=1),
                "q_hat": q_hat.double(),
                "k_hat": k_hat.double().repeat_interleave(group, dim=1),
            }
        )
    return layers


def measured_shares(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict[str, Tensor]:
    """
    `score_shares` of each layer and head, averaged over windows of token ids (S_i,): (4, L, H) each, shares of 1.
    """
    shares: dict[str, list[Tensor]] = {}
    for window in windows:
        layers = queries_and_keys(model, window[None])
        by_layer = [score_shares(score_terms(**layer)) for layer in layers]
        for name in by_layer[0]:
            shares.setdefault(name, []).append(torch.stack([layer[name][:, 0] for layer in by_layer], dim=1))
    return {name: torch.stack(values).mean(0).cpu() for name, values in shares.items()}


def measured_dc_ac(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
    """
    `dc_ac_table` of `queries` and `keys`, averaged over windows of token ids (S_i,): entries (L, P), energies per
    token.
    """
    theta = plane_frequencies(model)
    tables: dict[str, dict[str, list[Tensor]]] = {"queries": {}, "keys": {}}
    for window in windows:
        layers = queries_and_keys(model, window[None])
        for stream, name in (("queries", "q"), ("keys", "k")):
            by_layer = [dc_ac_table(layer[name].cpu(), layer[f"{name}_hat"].cpu(), theta) for layer in layers]
            for entry in by_layer[0]:
                stacked = torch.stack([table[entry] for table in by_layer])
                tables[stream].setdefault(entry, []).append(stacked)
    return {
        stream: {entry: torch.stack(values).mean(0) for entry, values in table.items()}
        for stream, table in tables.items()
    }


def content_spectra(
    model: PreTrainedModel, windows: Sequence[Tensor], nperseg: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Power spectra of the content (RoPE undone) of queries and keys without the shear, plane by plane, by Welch's method
    (`scipy.signal.welch`), averaged over heads and windows. The first token of each window is left out.

    Args:
        windows: token ids (S_i,).
        nperseg: tokens per segment; resolves frequencies of 2 pi / nperseg.

    Returns:
        frequencies (W,) from -pi to pi, in radians per token; `queries` and `keys`, (L, P, W), all in the same unit.

    Raises:
        ValueError: a window is shorter than a segment.

    Source: Welch 1967.
    """
    shortest = min(len(window) for window in windows)
    if shortest <= nperseg:
        raise ValueError(f"`nperseg`={nperseg} needs windows of more tokens: the shortest has {shortest}.")
    theta = plane_frequencies(model)
    spectra: dict[str, list[Tensor]] = {"queries": [], "keys": []}
    for window in windows:
        layers = queries_and_keys(model, window[None])
        for stream, name in (("queries", "q"), ("keys", "k")):
            planes = torch.stack([turn(to_planes(layer[name].cpu()), theta, sign=-1) for layer in layers])
            frequencies, power = scipy.signal.welch(
                planes[..., 1:, :].numpy(), nperseg=nperseg, return_onesided=False, detrend=False, axis=-2
            )
            # (L, 1, H, W, P) -> (L, P, W)
            spectra[stream].append(torch.as_tensor(power).mean((1, 2)).mT)
    order = frequencies.argsort()
    omegas = torch.as_tensor(2 * torch.pi * frequencies[order])
    return omegas, {stream: torch.stack(powers).mean(0)[..., order] for stream, powers in spectra.items()}


def text_response(
    model: PreTrainedModel, windows: Sequence[Tensor], omegas: Tensor, num_taps: int = 4
) -> dict[str, Tensor]:
    """
    The response of each rotary plane on text: the filter of `num_taps` taps that maps the content without the shear to
    the content that attention receives (RoPE undone), by least squares over heads and windows. It assumes only that
    the shear is linear and reaches back no further.

    Args:
        windows: token ids (S_i,), each longer than `num_taps`.
        omegas: content frequencies (W,), in radians per token.

    Returns:
        `queries` and `keys`: complex (L, P, W), output over input, comparable with `plane_response(omegas, theta,
        gamma, placement)`.

    Source: least squares, by the normal equations of a Wiener filter (Wiener 1949).
    """
    theta = plane_frequencies(model)
    sums: dict[str, tuple[Tensor | float, Tensor | float]] = {"queries": (0.0, 0.0), "keys": (0.0, 0.0)}
    for window in windows:
        layers = queries_and_keys(model, window[None])
        for stream, name in (("queries", "q"), ("keys", "k")):
            # (L, H, S, P)
            x, y = (
                torch.stack([turn(to_planes(layer[part][0].cpu()), theta, sign=-1) for layer in layers])
                for part in (name, f"{name}_hat")
            )
            end = x.shape[2]
            past = torch.stack([x[:, :, num_taps - 1 - lag : end - lag] for lag in range(num_taps)])
            auto, cross = sums[stream]
            auto = auto + torch.einsum("klhsp,mlhsp->lpkm", past.conj(), past)
            cross = cross + torch.einsum("klhsp,lhsp->lpk", past.conj(), y[:, :, num_taps - 1 :])
            sums[stream] = auto, cross
    delays = torch.exp(-1j * torch.arange(num_taps)[:, None] * omegas.double())
    return {stream: torch.linalg.solve(auto, cross) @ delays for stream, (auto, cross) in sums.items()}


def measure_momentum(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict:
    """
    Everything specific to Momentum.

    Args:
        windows: token ids (S_i,); none leaves `shares` and `dc ac` out.

    Returns:
        `gammas` (L,), `streams`, `placement`, `plane frequencies` (P,); per stream, `measured` (L, P, W), the response
        to sinusoids at `omegas` (W,), with its `formula`; `noise` (L, W), the response to white noise at `noise
        omegas`;
        `largest deviation` of `measured` from `formula`; `shares` of the four score terms (4, L, H); `dc ac` tables
        (L, P).
    """
    config = model.config
    omegas = torch.linspace(0, math.pi, 17, dtype=torch.float64)
    noise_omegas, noise = measured_noise_response(model)
    found: dict = {
        "gammas": [float(gamma) for gamma in config.layer_gammas],
        "streams": config.momentum_streams,
        "placement": config.momentum_placement,
        "plane frequencies": plane_frequencies(model),
        "omegas": omegas,
        "measured": measured_response(model, omegas),
        "noise omegas": noise_omegas,
        "noise": noise,
    }
    found["formula"] = model_response(
        omegas, found["plane frequencies"], found["gammas"], found["streams"], found["placement"]
    )
    found["largest deviation"] = max(
        (found["measured"][stream] - found["formula"][stream]).abs().max().item() for stream in ("queries", "keys")
    )
    if windows:
        found["shares"] = measured_shares(model, windows)
        found["dc ac"] = measured_dc_ac(model, windows)
    return found
