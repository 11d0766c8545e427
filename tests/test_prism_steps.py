"""The attention step of `prism_steps` against its equations: token by token, and as the gradient of an energy."""

import pytest
import torch

from modeling_prism import PrismConfig, PrismForCausalLM
from training.experiments.prism_steps.arms import ARMS
from training.experiments.prism_steps.modeling import PrismStepsAttention, PrismStepsConfig, PrismStepsForCausalLM


pytestmark = pytest.mark.experiment

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
OURS = [name for name, arm in ARMS.items() if arm.preset is None and arm.ngram is None]


def build(**fields) -> PrismStepsForCausalLM:
    torch.manual_seed(0)
    model = PrismStepsForCausalLM(PrismStepsConfig(**{**SHAPE, **fields})).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_bias"):
                parameter.normal_(std=0.5)
    return model.eval()


def attention_and_codes(length: int = 7, **fields) -> tuple[PrismStepsAttention, torch.Tensor, tuple]:
    model = build(**fields)
    z = torch.randn(1, length, SHAPE["hidden_size"], dtype=torch.double)
    return model.model.layers[0].self_attn, z, model.model.rotary_emb(z, torch.arange(length)[None])


def causal_mask(length: int) -> torch.Tensor:
    return torch.full((length, length), -torch.inf, dtype=torch.double).triu(1)[None, None]


def as_complex(states: torch.Tensor) -> torch.Tensor:
    """(..., D) to (..., D / 2): plane j is the components j and j + D / 2."""
    return torch.complex(*states.chunk(2, dim=-1))


def naive(attention: PrismStepsAttention, z: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """One document (S, d), a loop per head and token, rotary planes as complex numbers; `angles` is (H, S, D / 2)."""
    config, D = attention.config, attention.head_dim
    written = []
    for head in range(config.num_attention_heads):
        rows = slice(head * D, (head + 1) * D)
        turn = torch.polar(torch.ones_like(angles[head]), angles[head])
        h = as_complex(z @ attention.dictionary.weight[rows].T)
        q = as_complex(z @ attention.query_dictionary.weight[rows].T) if config.free_queries else h
        g = o = torch.ones(D // 2, dtype=torch.cdouble)
        if config.query_gain:
            g = 1 + torch.complex(*attention.query_gain_bias[:, head])
        if config.output_gain:
            o = 1 + torch.complex(*attention.output_gain_bias[:, head])
        elif config.conjugate_gain:
            o = g.conj()
        s = attention.key_shift_bias[head].sigmoid() if config.key_shift else 1.0
        read = head
        if config.key_subspace == "next":
            first, end = (
                (0, config.num_signal_heads) if head < config.num_signal_heads else (config.num_signal_heads, None)
            )
            bank = list(range(config.num_attention_heads))[first:end]
            read = bank[(bank.index(head) + 1) % len(bank)]
        h = as_complex(z @ attention.dictionary.weight[read * D : (read + 1) * D].T)
        k = [s * h[t] + (1 - s) * h[max(t - 1, 0)] for t in range(len(z))]
        rows_out = []
        for t in range(len(z)):
            scores = torch.stack([(turn[t] * g * q[t] * (turn[u] * k[u]).conj()).real.sum() for u in range(t + 1)])
            weights = (scores / D**0.5).softmax(0)
            values = turn * h if config.rotary_values else h
            values = turn * torch.stack(k) if config.keys_as_values else values
            y = (weights[:, None] * values[: t + 1]).sum(0)
            y = o * (y if not (config.rotary_values or config.keys_as_values) else y * turn[t].conj())
            rows_out.append(torch.cat((y.real, y.imag)))
        weight = 1.0 if head < config.num_signal_heads else -config.noise_coefficient
        if config.learned_step == "layer":
            weight = weight * (1 + attention.step_bias[0])
        elif config.learned_step != "none":
            weight = weight + attention.step_bias[head]
        U = attention.output_dictionary.weight if config.free_output else attention.dictionary.weight
        written.append((weight * torch.stack(rows_out)) @ U[rows])
    scale = config.output_step / (config.num_attention_heads * config.dictionary_expansion) ** 0.5
    return scale * sum(written)


@pytest.mark.parametrize("arm", OURS)
def test_every_arm_equals_its_equations(arm):
    fields = {**ARMS[arm].fields, "intermediate_size": 37}
    attention, z, (cos, sin) = attention_and_codes(**fields)
    out, _ = attention(z, (cos, sin), causal_mask(z.shape[1]))
    torch.testing.assert_close(out[0], naive(attention, z[0], torch.atan2(sin, cos)[0]))


@pytest.mark.parametrize("arm", ["published", "step-0.2", "rotary-0.2", "all", "all-output-gain"])
def test_what_the_model_offers_is_what_the_search_found(arm):
    steps = build(**ARMS[arm].fields)
    model = PrismForCausalLM(PrismConfig(**{**SHAPE, **ARMS[arm].fields})).double()
    model.load_state_dict(steps.state_dict())
    ids = torch.randint(99, (2, 9))
    torch.testing.assert_close(steps(ids).logits, model(ids).logits)


@pytest.mark.parametrize("subspace", ["own", "next"])
@pytest.mark.parametrize("as_values, conjugate, exact", [(True, True, True), (False, False, False)])
def test_the_exact_step_is_the_gradient_of_its_energy(as_values, conjugate, exact, subspace):
    fields = {"query_gain": True, "key_shift": True, "keys_as_values": as_values, "conjugate_gain": conjugate}
    fields["key_subspace"] = subspace
    attention, z, (cos, sin) = attention_and_codes(**fields)
    out, _ = attention(z, (cos, sin), causal_mask(z.shape[1]))

    D, turn = attention.head_dim, torch.polar(torch.ones_like(cos), torch.atan2(sin, cos))

    def codes(z):
        return as_complex(attention.dictionary(z).view(1, z.shape[1], -1, D).transpose(1, 2))

    held = codes(z)
    if subspace == "next":
        held = torch.cat([bank.roll(-1, dims=1) for bank in held.chunk(2, dim=1)], dim=1)
    s = attention.key_shift_bias.sigmoid()[:, None, None]
    keys = turn * (s * held + (1 - s) * torch.cat((held[:, :, :1], held[:, :, :-1]), dim=2))
    point = z.clone().requires_grad_()
    gain = 1 + torch.complex(*attention.query_gain_bias)[:, None]
    scores = ((turn * gain * codes(point))[:, :, :, None] * keys[:, :, None].conj()).real.sum(-1) / D**0.5
    energy = D**0.5 * (scores + causal_mask(z.shape[1])).logsumexp(-1)
    (energy.sum(-1) * attention.head_gain).sum().backward()
    distance = (out - attention.output_scaling * point.grad).abs().max()
    assert (distance < 1e-6) == exact


def test_what_starts_at_the_published_value_does_not_decay():
    from transformers import Trainer, TrainingArguments

    model = build(key_shift=True, query_gain=True, learned_step="head")
    trainer = Trainer(model=model, args=TrainingArguments(report_to="none"))
    assert not [name for name in trainer.get_decay_parameter_names(model) if name.endswith("_bias")]


def test_a_cache_is_refused():
    with pytest.raises(ValueError, match="past_key_values"):
        build()(torch.tensor([[1, 2]]), use_cache=True)
