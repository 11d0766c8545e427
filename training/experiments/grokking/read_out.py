"""The published one-layer model at its read-out, without what the read-out does not need."""

import torch
from torch import nn

from modeling_prism import SphericalForCausalLM
from modeling_prism.modeling_spherical import SphericalUniformAttention


class ReadOut(nn.Module):
    """
    The logits of a one-layer Spherical model at the last of three tokens [a, b, =], and nothing else: exactly those of
    the full forward pass, gradients included, for about a third of the work.

    A position has no more inputs than the vocabulary has tokens, so that norm, keys and values are computed for those
    (a table a position) and looked up; query, output projection, MLP and unembedding are computed at "=" alone.

    Shapes: B pairs, V vocab_size, d hidden_size, H heads, D head width.
    """

    def __init__(self, causal_lm: SphericalForCausalLM, answers_only: bool = False):
        super().__init__()
        config = causal_lm.config
        if config.num_hidden_layers != 1:
            raise ValueError(f"`causal_lm` must have one layer, got {config.num_hidden_layers}: later ones read more.")
        self.causal_lm = causal_lm
        # As published: "=" is no class. A causal LM has a logit for it.
        self.num_classes = config.vocab_size - 1 if answers_only else config.vocab_size

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """`pairs` (B, 2), the numbers a and b -> logits (B, V), or (B, V - 1) with `answers_only`."""
        model = self.causal_lm.model
        layer = model.layers[0]
        attention = layer.self_attn
        equals = model.embed_tokens.num_embeddings - 1
        heads = (-1, self.causal_lm.config.num_attention_heads, attention.head_dim)

        # The residual stream before the layer: of every token in the places of a and b, (V, d), and of "=", (1, d).
        tokens, places = model.embed_tokens.weight, model.embed_positions.weight
        streams = [
            model.embedding_norm(tokens + places[0]),
            model.embedding_norm(tokens + places[1]),
            model.embedding_norm(tokens[equals:] + places[2]),
        ]
        # (V or 1, H, D) each; what "=" reads from itself is the same for every pair.
        values = [attention.v_proj(stream).view(heads) for stream in streams]
        rows = (pairs[:, 0], pairs[:, 1], slice(None))
        if isinstance(attention, SphericalUniformAttention):
            mixed = sum(value[row] for value, row in zip(values, rows)) / 3
        else:
            query = attention.q_proj(streams[2]).view(heads)
            scores = [(query * attention.k_proj(stream).view(heads)).sum(-1) * attention.scaling for stream in streams]
            # (B, H, 3)
            at_pairs = torch.broadcast_tensors(*(score[row] for score, row in zip(scores, rows)))
            weights = torch.stack(at_pairs, dim=-1).softmax(-1)
            mixed = sum(weights[..., i, None] * values[i][rows[i]] for i in range(3))

        hidden_states = layer.attention_norm(streams[2] + attention.o_proj(mixed.flatten(1)))
        hidden_states = layer.mlp_norm(hidden_states + layer.mlp(hidden_states))
        return self.causal_lm.lm_head(model.norm(hidden_states))[:, : self.num_classes]
