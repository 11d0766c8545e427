"""Naive references: the attentions written like their equations, with loops over heads and tokens.

They define what the modeling files must compute; the tests compare logits and gradients with them. Everything is
differentiable, takes one unpadded document and runs in fp32, or in fp64 if the weights do. There is no mask, no cache
and no dropout.

Shapes: S tokens of one document, V vocabulary, d width of the residual stream, D width of a head, M rows of Prism's
dictionary.
"""

import torch
from torch import Tensor


# What the families share


def at_least_fp32(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with bf16 and fp16 widened to fp32."""
    return {name: weight.to(torch.promote_types(weight.dtype, torch.float32)) for name, weight in state_dict.items()}


def layer_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`gain * (x - mean(x)) / sqrt(var(x) + eps)` over the last dimension; no bias. (S, d) -> (S, d)."""
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, `x * Phi(x)` with Phi the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def rope(x: Tensor, position: int, theta: float) -> Tensor:
    """
    Rotary position embedding (Su et al., arXiv 2104.09864, eq. 34) of one vector (D,).

    Plane j is spanned by the components j and j + D / 2 and turns by `position * theta ** (-2 j / D)` radians.
    """
    D = x.shape[-1]
    first, second = x[: D // 2], x[D // 2 :]
    j = torch.arange(D // 2, dtype=x.dtype, device=x.device)
    angle = position * theta ** (-2 * j / D)
    return torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()))


def logits_of_documents(document_logits, model_or_state_dict, config, input_ids: Tensor, position_ids=None) -> Tensor:
    """Stacks `document_logits(weights, config, ids, positions)` (S, V) over the rows of `input_ids` (B, S)."""
    weights = model_or_state_dict
    if isinstance(weights, torch.nn.Module):
        weights = dict(weights.named_parameters())
    weights = at_least_fp32(weights)
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    documents = zip(input_ids.tolist(), position_ids.tolist())
    return torch.stack([document_logits(weights, config, ids, positions) for ids, positions in documents])


# Prism: Huang, "PRISM: Deriving the Transformer as a Signal-Denoising Operator via Maximum Coding Rate Reduction",
# arXiv 2601.15540. z is the normalised residual stream, U the dictionary, lambda the weight of the noise heads.


def multiply_planes(x: Tensor, bias: Tensor) -> Tensor:
    """Multiplies plane (j, j + D / 2) of one vector (D,) by a complex number, 1 + a bias; `bias` is (2, D / 2)."""
    (first, second), (real, imaginary) = x.chunk(2), (1 + bias[0], bias[1])
    return torch.cat((first * real - second * imaginary, second * real + first * imaginary))


def prism_head(h: Tensor, theta: float, position_ids: list[int], config, weights: dict[str, Tensor]) -> Tensor:
    """
    One head (arXiv 2601.15540, the attention operator): q = k = RoPE(h), v = h, causal softmax at 1 / sqrt(D).

    Ours, where `config` says so: values are rotated and the output is rotated back; the planes of queries and outputs
    are multiplied by complex numbers, 1 + a bias (2, D / 2); keys mix two tokens, k_t = RoPE(s h_t + (1 - s) h_(t-1)),
    s = sigmoid(bias), h_(-1) = h_0. `weights` are the biases of this head.

    Maps (S, D) to (S, D). Every head has its own softmax: banks are subtracted as outputs.
    """
    S, D = h.shape
    rotated = [rope(h[t], position_ids[t], theta) for t in range(S)]
    q, k, v = rotated, rotated, rotated if config.rotary_values else h
    if config.query_gain:
        q = [multiply_planes(q[t], weights["query_gain_bias"]) for t in range(S)]
    if config.key_shift:
        share = weights["key_shift_bias"].sigmoid()
        k = [rope(share * h[t] + (1 - share) * h[max(t - 1, 0)], position_ids[t], theta) for t in range(S)]
    y = []
    for t in range(S):
        scores = torch.stack([q[t] @ k[s] for s in range(t + 1)]) / D**0.5
        a = scores.softmax(0)
        y.append(sum(a[s] * v[s] for s in range(t + 1)))
        if config.rotary_values:
            y[t] = rope(y[t], -position_ids[t], theta)
        if config.output_gain:
            y[t] = multiply_planes(y[t], weights["output_gain_bias"])
    return torch.stack(y)


def prism_attention(z: Tensor, weights: dict[str, Tensor], config, position_ids: list[int]) -> Tensor:
    """
    One Prism attention over one document (arXiv 2601.15540, signal-noise decomposition with one dictionary U):

        h = U z,    y = concat(head_1, ..., head_Hs, -lambda head_Hs+1, ..., -lambda head_H),
        out = eta U^T y / sqrt(H R)

    where H counts all heads (the paper writes 2H, with H in each bank) and eta is 1 as published.

    Args:
        z: layer-normed residual stream (S, d).
        weights: by their names within the attention; `dictionary.weight` is U (M, d), with M = H D, and the rows of
            head i are i * D to (i + 1) * D.
        config: its `num_signal_heads` first heads are signal heads, the others noise heads.
        position_ids: position of each token.

    Returns:
        the update of the residual stream (S, d).
    """
    U, H = weights["dictionary.weight"], config.num_attention_heads
    D = U.shape[0] // H
    y = []
    for i in range(H):
        is_signal = i < config.num_signal_heads
        theta = config.signal_rope_theta if is_signal else config.noise_rope_theta
        own = {name: bias[..., i, :] for name, bias in weights.items() if name.endswith("gain_bias")}
        own |= {name: bias[i] for name, bias in weights.items() if name == "key_shift_bias"}
        head = prism_head(z @ U[i * D : (i + 1) * D].T, theta, position_ids, config, own)
        y.append(head if is_signal else -config.noise_coefficient * head)
    return config.output_step * torch.cat(y, dim=-1) @ U / (H * config.dictionary_expansion) ** 0.5


def prism_document(weights: dict[str, Tensor], config, input_ids: list[int], position_ids: list[int]) -> Tensor:
    """
    Logits (S, V) of one document: blocks of `z + attention(norm(z))` and `z + mlp(norm(z))` (GELU), a last norm, the
    head.

    Raises:
        KeyError: a weight that the config requires is missing.
    """
    eps = config.layer_norm_eps
    z = weights["model.embed_tokens.weight"][input_ids]
    if config.learned_position_embeddings:
        z = z + weights["model.embed_positions.weight"][position_ids]
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}."
        z = z + prism_attention(
            layer_norm(z, weights[block + "input_layernorm.weight"], eps),
            {name.removeprefix(f"{block}self_attn."): weight for name, weight in weights.items()},
            config,
            position_ids,
        )
        up = (
            layer_norm(z, weights[block + "post_attention_layernorm.weight"], eps)
            @ weights[block + "mlp.up_proj.weight"].T
        )
        z = z + gelu(up) @ weights[block + "mlp.down_proj.weight"].T
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return layer_norm(z, weights["model.norm.weight"], eps) @ head.T


def prism_logits(model_or_state_dict, config, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """
    Logits (B, S, V) of a `PrismForCausalLM`; each row of `input_ids` (B, S) is one unpadded document.

    Args:
        model_or_state_dict: the model, or its weights by name (for gradients, pass leaves that require them).
        config: its `PrismConfig`.
        input_ids: token ids (B, S).
        position_ids: positions (B, S); default 0, 1, 2, ...
    """
    return logits_of_documents(prism_document, model_or_state_dict, config, input_ids, position_ids)


# Momentum: Maitra, "Momentum Attention: The Physics of In-Context Learning and Spectral Forensics for Mechanistic
# Interpretability", arXiv 2602.04902. A Llama whose queries and keys are sheared along the sequence.


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`gain * x / sqrt(mean(x ** 2) + eps)` over the last dimension. (S, d) -> (S, d)."""
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def shear(x: list[Tensor], gamma: float) -> list[Tensor]:
    """
    Kinematic difference and symplectic shear (arXiv 2602.04902) of one document, in either stream: p_0 = 0,
    p_t = x_t - x_(t-1), x^_t = x_t + gamma * p_t.
    """
    sheared = []
    for t in range(len(x)):
        p = x[t] - x[t - 1] if t > 0 else torch.zeros_like(x[t])
        sheared.append(x[t] + gamma * p)
    return sheared


def momentum_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: float,
    streams: str,
    placement: str,
    theta: float,
    position_ids: list[int],
) -> Tensor:
    """
    One head: causal softmax of q^_t . k^_s / sqrt(D) over unsheared values. (S, D) each -> (S, D).

    Args:
        gamma: strength of the shear.
        streams: what is sheared, "qk", "k" or "q".
        placement: "post_rope": RoPE, then shear; "pre_rope": shear, then RoPE.
        theta: RoPE base.
        position_ids: position of each token; the previous token is the one before it, whatever the positions.
    """
    S, D = q.shape
    rotated = []
    for name, x in (("q", q), ("k", k)):
        x = [x[t] for t in range(S)]
        if placement == "pre_rope" and name in streams:
            x = shear(x, gamma)
        x = [rope(x[t], position_ids[t], theta) for t in range(S)]
        if placement == "post_rope" and name in streams:
            x = shear(x, gamma)
        rotated.append(x)
    q_hat, k_hat = rotated
    y = []
    for t in range(S):
        scores = torch.stack([q_hat[t] @ k_hat[s] for s in range(t + 1)]) / D**0.5
        a = scores.softmax(0)
        y.append(sum(a[s] * v[s] for s in range(t + 1)))
    return torch.stack(y)


def momentum_document(weights: dict[str, Tensor], config, input_ids: list[int], position_ids: list[int]) -> Tensor:
    """Logits (S, V) of one document: Llama's blocks (RMSNorm, SwiGLU, grouped queries) around `momentum_head`."""
    eps, D = config.rms_norm_eps, config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    gammas = config.momentum_gamma
    z = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}."
        W = {name: weights[f"{block}self_attn.{name}_proj.weight"] for name in ("q", "k", "v", "o")}
        x = rms_norm(z, weights[block + "input_layernorm.weight"], eps)
        y = []
        for i in range(config.num_attention_heads):
            own, shared = slice(i * D, (i + 1) * D), slice(i // group * D, (i // group + 1) * D)
            y.append(
                momentum_head(
                    x @ W["q"][own].T,
                    x @ W["k"][shared].T,
                    x @ W["v"][shared].T,
                    gammas[layer] if isinstance(gammas, list) else gammas,
                    config.momentum_streams,
                    config.momentum_placement,
                    config.rope_parameters["rope_theta"],
                    position_ids,
                )
            )
        z = z + torch.cat(y, dim=-1) @ W["o"].T
        x = rms_norm(z, weights[block + "post_attention_layernorm.weight"], eps)
        gate, up = (x @ weights[f"{block}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        z = z + (gate * torch.sigmoid(gate) * up) @ weights[block + "mlp.down_proj.weight"].T
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return rms_norm(z, weights["model.norm.weight"], eps) @ head.T


def momentum_logits(model_or_state_dict, config, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Logits (B, S, V) of a `MomentumForCausalLM`; arguments as in `prism_logits`."""
    return logits_of_documents(momentum_document, model_or_state_dict, config, input_ids, position_ids)


# Spherical: Yildirim, "The Geometric Inductive Bias of Grokking: Bypassing Phase Transitions via Architectural
# Topology", arXiv 2603.05228. The residual stream itself is normalised; P projects to the unit sphere.


def sphere(x: Tensor) -> Tensor:
    """`P(x) = x / max(|x|, 0.01)` over the last dimension. (S, d) -> (S, d)."""
    return x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=0.01)


def residual_norm(x: Tensor, weights: dict[str, Tensor], name: str, config) -> Tensor:
    """The norm `name` of the residual stream: P, or a baseline's with its gain (and bias) if it has them."""
    if config.residual_norm == "sphere":
        return sphere(x)
    gain, eps = weights.get(name + ".weight", torch.ones(())), config.layer_norm_eps
    if config.residual_norm == "rms_norm":
        return rms_norm(x, gain, eps)
    return layer_norm(x, gain, eps) + weights.get(name + ".bias", 0)


def spherical_head(q: Tensor, k: Tensor, v: Tensor, routing: str) -> Tensor:
    """One head: causal softmax of q_t . k_s / sqrt(D), or of zeros ("uniform"). (S, D) each -> (S, D)."""
    S, D = q.shape
    y = []
    for t in range(S):
        scores = torch.stack([q[t] @ k[s] for s in range(t + 1)]) / D**0.5
        a = (torch.zeros_like(scores) if routing == "uniform" else scores).softmax(0)
        y.append(sum(a[s] * v[s] for s in range(t + 1)))
    return torch.stack(y)


def spherical_document(weights: dict[str, Tensor], config, input_ids: list[int], position_ids: list[int]) -> Tensor:
    """
    Logits (S, V) of one document (arXiv 2603.05228, bounded spherical topology):

        h = P(tok + pos),    h = P(h + attention(h)),    h = P(h + mlp(h)),    logits = tau P(h) . P(rows of W).
    """
    H = config.num_attention_heads
    act = {"relu": lambda x: x.clamp(min=0), "gelu": gelu}[config.hidden_act]
    h = weights["model.embed_tokens.weight"][input_ids] + weights["model.embed_positions.weight"][position_ids]
    h = residual_norm(h, weights, "model.embedding_norm", config)
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}."
        q, k, v = ((h @ weights[f"{block}self_attn.{name}_proj.weight"].T).chunk(H, dim=-1) for name in "qkv")
        y = torch.cat([spherical_head(q[i], k[i], v[i], config.attention_routing) for i in range(H)], dim=-1)
        h = h + y @ weights[block + "self_attn.o_proj.weight"].T
        h = residual_norm(h, weights, block + "attention_norm", config)
        up = act(h @ weights[block + "mlp.up_proj.weight"].T + weights[block + "mlp.up_proj.bias"])
        h = h + up @ weights[block + "mlp.down_proj.weight"].T + weights[block + "mlp.down_proj.bias"]
        h = residual_norm(h, weights, block + "mlp_norm", config)
    own = "lm_head.rows" if config.bounded_unembedding else "lm_head.weight"
    W = weights["model.embed_tokens.weight" if config.tie_word_embeddings else own]
    return config.logit_scale * sphere(h) @ sphere(W).T if config.bounded_unembedding else h @ W.T


def spherical_logits(model_or_state_dict, config, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Logits (B, S, V) of a `SphericalForCausalLM`; arguments as in `prism_logits`."""
    return logits_of_documents(spherical_document, model_or_state_dict, config, input_ids, position_ids)
