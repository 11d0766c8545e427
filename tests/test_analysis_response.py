"""The measured response of loaded models lies on the formula, and would not if the model computed another filter."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_prism.analysis import momentum, response
from modeling_prism.modeling_momentum import MomentumAttention
from tests.families import CASES, random_ids


MOMENTUM = [case for case in CASES if case.id.startswith("momentum")]
DEFAULT = MOMENTUM[0].values[0]
OMEGAS = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)


def expected(model, layer, stream):
    gamma = model.config.layer_gammas[layer] if stream[0] in model.config.momentum_streams else 0.0
    theta = response.plane_frequencies(model)
    return momentum.plane_response(OMEGAS, theta, gamma, model.config.momentum_placement)


@pytest.mark.parametrize("case", MOMENTUM)
def test_sinusoids_meet_the_formula(case):
    model = case.model()
    measured = response.measured_response(model, OMEGAS)
    for stream, responses in measured.items():
        assert responses.shape == (model.config.num_hidden_layers, 4, len(OMEGAS))
        for layer, H in enumerate(responses):
            assert torch.allclose(H, expected(model, layer, stream), atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_llama_is_flat():
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4
    )
    measured = response.measured_response(LlamaForCausalLM(config), OMEGAS)["keys"]
    assert torch.allclose(measured, torch.ones_like(measured), atol=1e-5)


def wrong_gamma(self, states, previous):
    return states + (self.gamma + 0.1) * (states - previous)


def wrong_lag(self, states, previous):
    previous = torch.cat((states[:, :1], previous[:, :-1]), dim=1)
    return states + self.gamma * (states - previous)


def wrong_sign(self, states, previous):
    return states + self.gamma * (states + previous)


@pytest.mark.parametrize("wrong", [wrong_gamma, wrong_lag, wrong_sign])
def test_another_filter_is_noticed(wrong, monkeypatch):
    monkeypatch.setattr(MomentumAttention, "shear", wrong)
    model = DEFAULT.model()
    measured = response.measured_response(model, OMEGAS)["keys"][0]
    assert (measured - expected(model, 0, "keys")).abs().max() > 0.1
    omegas, noise = response.measured_noise_response(model)
    H = momentum.transfer_function(omegas, model.config.momentum_gamma)
    assert (noise["keys"][0] - H).abs().max() > 0.1


def test_content_appears_at_its_frequency_plus_that_of_the_plane():
    """Seen by Fourier transform, without the formula: one line in each plane, at w + theta_i."""
    model = DEFAULT.model()
    S = 64
    omega = 2 * math.pi * 10 / S
    t = torch.arange(S, dtype=torch.float64)
    theta = response.plane_frequencies(model)
    signal = torch.exp(1j * omega * t)[None, :, None].expand(1, S, len(theta))
    queries, _ = response.drive(model, signal)
    spectrum = torch.fft.fft(queries[0, 0, 1:], n=8192, dim=0).abs()
    lines = spectrum.argmax(0).double() * 2 * math.pi / 8192
    assert torch.allclose(lines, omega + theta, atol=2 * math.pi / 8192 + 1e-3)


@pytest.mark.parametrize("gamma", [-0.4, 0.8])
def test_white_noise_meets_the_formula(gamma):
    model = DEFAULT.model(momentum_gamma=gamma)
    omegas, noise = response.measured_noise_response(model)
    assert omegas.min() >= -math.pi and (omegas.diff() > 0).all()
    H = momentum.transfer_function(omegas, gamma)
    for stream in ("queries", "keys"):
        assert (noise[stream] - H).abs().max() < 0.05


@pytest.mark.parametrize("case", MOMENTUM)
def test_terms_sum_to_the_scores_that_attention_computes(case):
    model = case.model()
    ids = random_ids(1, 20)
    layers = response.queries_and_keys(model, ids)
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True).attentions
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    for layer, A in zip(layers, maps):
        scores = momentum.score_terms(**layer).sum(0) * model.config.head_dim**-0.5
        attention = scores.masked_fill(~causal, -math.inf).softmax(-1)
        assert torch.allclose(attention.float(), A, atol=1e-5)
    shares = response.measured_shares(model, [ids[0], random_ids(24)])["variance"]
    assert shares.shape == (4, model.config.num_hidden_layers, 4)
    assert torch.allclose(shares.sum(0), torch.ones(()).double(), atol=1e-6)
    if model.config.momentum_streams == "k":
        assert shares[[1, 3]].abs().max() < 1e-6


def test_dc_and_ac_of_a_model():
    model = DEFAULT.model()
    tables = response.measured_dc_ac(model, [random_ids(30), random_ids(24)])
    keys = tables["keys"]
    assert keys["content_dc"].shape == (2, 4)
    # Turning changes neither the energy in all nor, in the slowest plane, its split.
    received = keys["received_dc"] + keys["received_ac"]
    assert torch.allclose(received, keys["content_dc"] + keys["content_ac"])
    assert torch.allclose(keys["received_dc"][:, -1], keys["content_dc"][:, -1], rtol=0.05)
    assert (keys["content_ac_sheared"] > keys["content_ac"]).all()
