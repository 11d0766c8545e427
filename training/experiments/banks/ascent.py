"""
Does attention's update follow the gradient of the objective that it is derived from?

Shapes: N tokens of width d, H heads of width D, H_S signal heads first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_prism.analysis.collect import prepared
from modeling_prism.analysis.representations import log_volume
from modeling_prism.rotary_prism import apply_rotary_pos_emb


def directions(
    Z: Tensor, U: Tensor, weights: Tensor, rotation: tuple[Tensor, Tensor] | None, eps2: float = 0.5
) -> tuple[Tensor, Tensor]:
    """
    Of `J = - sum_k w_k R_c(Z | U_k)` for tokens Z (N, d), subspaces U (H, D, d) and weights w (H,): the gradient in
    Z, and the term in it that each token has without the others, `- alpha sum_k w_k U_k^T U_k z_t` with alpha = D / (N
    eps^2).

    The derivation leaves that term to the residual connection. The rest, in which tokens meet, is what attention
    should follow. With a rotation, cosines and sines (1, H, N, D / 2), the codes `U_k z_t` are turned to their
    positions first, as the scores of attention compare them.

    Source: arXiv 2601.15540, with the coding rates of arXiv 2306.01129, eq. 8; the rotated objective is ours.
    """
    U, weights, alpha = U.double(), weights.double(), U.shape[1] / (len(Z) * eps2)
    with torch.enable_grad():
        leaf = Z.detach().double().requires_grad_()
        codes = torch.einsum("hpd,nd->hnp", U, leaf)
        if rotation is not None:
            codes = apply_rotary_pos_emb(codes[None], *rotation)[0]
        (whole,) = torch.autograd.grad(-(weights * log_volume(codes.mT @ codes, alpha)).sum(), leaf)
    return whole, -alpha * torch.einsum("h,hpd,hpe,ne->nd", weights, U, U, Z.double())


def cosine_without(update: Tensor, direction: Tensor, *away: Tensor) -> float:
    """Cosine of two (N, d) over all tokens at once, after the components along `away`, (N, d) each, are taken out."""
    basis, _ = torch.linalg.qr(torch.stack([vectors.double() for vectors in away], dim=-1))  # (N, d, number)
    update, direction = (
        x.double() - (basis @ (basis.mT @ x.double()[..., None]))[..., 0] for x in (update, direction)
    )
    return ((update * direction).sum() / (update.norm() * direction.norm()).clamp(min=1e-300)).item()


def subspaces(attention, num_heads: int) -> Tensor:
    """Of a Prism its dictionary, of a Llama its value matrix, by head: (H, D, d)."""
    matrix = attention.dictionary if hasattr(attention, "dictionary") else attention.v_proj
    return matrix.weight.detach().unflatten(0, (num_heads, -1))


def random_frame(U: Tensor, seed: int = 0) -> Tensor:
    """A random dictionary (H, D, d) with the singular values of U."""
    flat = U.flatten(0, 1)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))
    left, _, right = torch.linalg.svd(noise, full_matrices=False)
    return (left @ torch.diag(torch.linalg.svdvals(flat)) @ right).view_as(U)


@torch.no_grad()
def measure_ascent(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict[str, list[float]]:
    """
    Cosines of attention's update with the parts of `directions`, for each layer, averaged over windows of token ids
    (S,). What lies along the token, which layer norm takes away, is left out of all.

    Returns:
        For the objectives `plain` and, of a Prism, `rotated`:

        - `whole`: with the gradient;
        - `alone`: with the sum of `w_k U_k^T U_k z_t`;
        - `meeting`: with the rest of the gradient, after what lies along `alone` is left out, too.

        With the suffixes `, banks shuffled` and `, random dictionary`, the same with heads assigned to banks at random
        and with another dictionary. A Llama has no banks: all heads have the weight 1.
    """
    config, layers = model.config, model.model.layers
    num_heads, heard = config.num_attention_heads, {}
    weights = torch.ones(num_heads)
    is_prism = hasattr(config, "num_signal_heads")
    if is_prism:
        weights[config.num_signal_heads :] = -config.noise_coefficient
    order = torch.randperm(num_heads, generator=torch.Generator().manual_seed(0))

    def listen(module, args, kwargs, output):
        states = args[0] if args else kwargs["hidden_states"]
        heard[module.layer_idx] = states[0], output[0][0]

    handles = [layer.self_attn.register_forward_hook(listen, with_kwargs=True) for layer in layers]
    rows: dict[str, list[list[float]]] = {}
    try:
        with prepared(model, attentions=False):
            for window in windows:
                model(window[None], use_cache=False)
                row: dict[str, list[float]] = {}
                for index, layer in enumerate(layers):
                    Z, update = heard[index]
                    U = subspaces(layer.self_attn, num_heads)
                    rotations = {"plain": None}
                    if is_prism:
                        positions = torch.arange(len(Z))[None]
                        rotations["rotated"] = model.model.rotary_emb(torch.zeros(1, dtype=torch.double), positions)
                    for objective, rotation in rotations.items():
                        controls = {"": (U, weights), ", random dictionary": (random_frame(U), weights)}
                        if is_prism:
                            controls[", banks shuffled"] = (U, weights[order])
                        for control, (subspace, weight) in controls.items():
                            whole, alone = directions(Z, subspace, weight, rotation)
                            for part, cosine in (
                                ("whole", cosine_without(update, whole, Z)),
                                ("alone", cosine_without(update, -alone, Z)),
                                ("meeting", cosine_without(update, whole - alone, Z, alone)),
                            ):
                                row.setdefault(f"{objective}, {part}{control}", []).append(cosine)
                for name, values in row.items():
                    rows.setdefault(name, []).append(values)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.tensor(values).mean(0).tolist() for name, values in rows.items()}
