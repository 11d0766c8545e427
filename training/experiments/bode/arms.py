"""Which shear each arm has."""

# Fields of `MomentumConfig`. Without `momentum_gamma`: the published law.
ARMS = {
    "momentum": {},
    "pre-rope": {"momentum_placement": "pre_rope"},
    # Nyquist gain 1 + 2 gamma = 0.2. At -0.5 it would be 0, where no phase can be measured.
    "low-pass": {"momentum_gamma": -0.4},
    "keys-only": {"momentum_streams": "k"},
    # High-pass, Llama and low-pass layers in one model; for four layers.
    "per-layer": {"momentum_gamma": [3.0, 1.0, 0.0, -0.4]},
    "gamma-0": {"momentum_gamma": 0.0},
}
