"""
The families of the package as tiny models of odd sizes. A family is one entry of `FAMILIES`; every contract,
generation and remote-code test then runs on each of its variants (`CASES`) or on the family once (`DEFAULT_CASES`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import modeling_prism
from modeling_prism.reference import momentum_logits, prism_logits, spherical_logits


# Rounding in fp32 stays below the one; what is to be seen lies above the other.
TOLERANCE, VISIBLE = 1e-5, 1e-3
PAD, BOS, EOS = 0, 1, 2
VOCAB = 99

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


@dataclass(frozen=True)
class Family:
    """One architecture. Class names are attributes of `modeling_prism` (prefix + "Config", "Model", ...)."""

    prefix: str
    # Naive logits: (model or state dict, config, input_ids (B, S), position_ids (B, S) or None) -> (B, S, V).
    reference_logits: Callable
    attention_class: str
    # Arguments of the config that all variants share, beside COMMON.
    arguments: dict
    # What each variant changes; "default" changes nothing.
    variants: dict[str, dict] = field(default_factory=lambda: {"default": {}})
    # The flat files that loading with `trust_remote_code=True` needs, and nothing else.
    remote_files: tuple[str, ...] = ()
    # By how much the test models of a config multiply weights, by a part of their names.
    gains: Callable = lambda config: {}

    def get_class(self, suffix: str) -> type:
        return getattr(modeling_prism, self.prefix + suffix)


SHARED_FILES = ("configuration_checks.py", "modeling_common.py")

FAMILIES = {
    "prism": Family(
        prefix="Prism",
        reference_logits=prism_logits,
        attention_class="PrismAttention",
        # A head width of 16 that differs from hidden_size; a lambda that cannot be overlooked; ten times the usual
        # initial weights, so that attention is far from uniform and a wrong mask or position shows in the logits.
        arguments={"num_attention_heads": 8, "noise_coefficient": 0.4, "initializer_range": 0.2},
        variants={
            "default": {},
            "uneven": {"num_attention_heads": 6, "num_signal_heads": 4},
            "learned_positions": {"learned_position_embeddings": True},
            "expansion_1": {"dictionary_expansion": 1},
            # One tensor is key and value.
            "rotary_values": {"rotary_values": True, "output_step": 0.5},
            "stepped": {
                **{"output_step": 0.7, "rotary_values": True, "query_gain": True, "output_gain": True},
                **{"key_shift": True, "noise_coefficient": -1.0},
            },
        },
        remote_files=(
            *(*SHARED_FILES, "configuration_prism.py", "modeling_prism.py"),
            *("rotary_prism.py", "state_previous_token.py"),
        ),
    ),
    "momentum": Family(
        prefix="Momentum",
        reference_logits=momentum_logits,
        attention_class="MomentumAttention",
        # At 0.2 a Llama's scores, too, are so large that rounding in fp32 comes near the tolerances.
        arguments={
            "num_attention_heads": 4,
            "momentum_gamma": 0.8,
            "tie_word_embeddings": True,
            "initializer_range": 0.13,
        },
        variants={
            "default": {},
            "keys": {"momentum_streams": "k"},
            "queries": {"momentum_streams": "q"},
            "pre_rope": {"momentum_placement": "pre_rope"},
            "grouped": {"num_key_value_heads": 2},
            # Layers with and without a state in one cache; a low-pass filter.
            "per_layer": {"num_hidden_layers": 3, "momentum_gamma": [1.5, 0.0, -0.4]},
        },
        remote_files=(*SHARED_FILES, "configuration_momentum.py", "modeling_momentum.py", "state_previous_token.py"),
    ),
    "spherical": Family(
        prefix="Spherical",
        reference_logits=spherical_logits,
        attention_class="SphericalAttention",
        arguments={"num_attention_heads": 4, "tie_word_embeddings": True},
        variants={
            "default": {},
            "layer_norm": {"residual_norm": "layer_norm"},
            "rms_norm": {"residual_norm": "rms_norm", "bounded_unembedding": False, "hidden_act": "gelu"},
            "non_affine": {"residual_norm": "layer_norm", "norm_affine": False, "bounded_unembedding": False},
            "unbounded": {"bounded_unembedding": False},
            "uniform": {"attention_routing": "uniform"},
            "uniform_layer_norm": {"attention_routing": "uniform", "residual_norm": "layer_norm"},
        },
        remote_files=(*SHARED_FILES, "configuration_spherical.py", "modeling_spherical.py", "state_spherical.py"),
        # On the sphere attention starts all but uniform, and what it reads adds little; without the bound, rows of
        # length sqrt(d) lift the logits so far that rounding in fp32 comes near the tolerances.
        gains=lambda config: (
            {"q_proj": 8.0, "k_proj": 8.0, "v_proj": 3.0}
            if config.residual_norm == "sphere"
            else {"embed": 1.0 if config.bounded_unembedding else 0.3}
        ),
    ),
}


@dataclass(frozen=True)
class Case:
    """A variant of a family."""

    family_name: str
    variant: str

    @property
    def family(self) -> Family:
        return FAMILIES[self.family_name]

    def config(self, **overrides):
        arguments = {**COMMON, **self.family.arguments, **self.family.variants[self.variant], **overrides}
        return self.family.get_class("Config")(**arguments)

    def model(self, head: str = "ForCausalLM", seed: int = 0, **overrides):
        """A model in eval mode with every weight drawn at random, the gains of the norms too."""
        attention = overrides.pop("attn_implementation", "sdpa")
        torch.manual_seed(seed)
        model = self.family.get_class(head)._from_config(self.config(**overrides), attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                if name.endswith("_bias"):
                    parameter.normal_(std=0.5)
                for part, gain in self.family.gains(model.config).items():
                    parameter.mul_(gain if part in name else 1.0)
        return model.eval()


CASES = [
    pytest.param(Case(name, variant), id=f"{name}-{variant}")
    for name, family in FAMILIES.items()
    for variant in family.variants
]
DEFAULT_CASES = [pytest.param(Case(name, "default"), id=name) for name in FAMILIES]
UNIFORM_CASE = pytest.param(Case("spherical", "uniform"), id="spherical-uniform")
ROUTING_CASES = [*DEFAULT_CASES, UNIFORM_CASE]
# What they keep of the past is more than keys and values, or something else.
STATE_CASES = [
    pytest.param(Case("momentum", "default"), id="momentum"),
    pytest.param(Case("prism", "stepped"), id="prism-stepped"),
    UNIFORM_CASE,
]


def head_parameter(model) -> torch.nn.Parameter:
    """The parameter of a language-model head; that of a bounded one is not its `weight`."""
    return model.lm_head.rows if hasattr(model.lm_head, "rows") else model.lm_head.weight


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids without the special ones."""
    return torch.randint(EOS + 1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids that count real tokens only, as `generate` makes them: (B, T) -> (B, T)."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def left_pad(documents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents (S_i,) as ids and mask (B, max S_i), padding on the left."""
    longest = max(map(len, documents))
    ids = torch.full((len(documents), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, longest - len(document) :] = document
        mask[row, longest - len(document) :] = 1
    return ids, mask


def right_pad(documents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents (S_i,) as ids and mask (B, max S_i), padding on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(document) for document in documents])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def scatter_padding(documents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents (S_i,) as ids and mask (B, 2 max S_i), padding before, between and after the tokens."""
    length = 2 * max(map(len, documents))
    mask = torch.zeros(len(documents), length, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for row, document in enumerate(documents):
        mask[row, torch.randperm(length, generator=generator)[: len(document)]] = 1
    ids = torch.full_like(mask, PAD)
    ids[mask.bool()] = torch.cat(documents)
    return ids, mask


DOCUMENTS = [random_ids(length, seed=length) for length in (11, 3, 7)]
PADDINGS = [left_pad, right_pad, scatter_padding]


def leaves(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's weights that collect gradients of their own."""
    return {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    """A scalar that weighs every logit differently, of a size that gives gradients near 1."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    return (logits * weights).sum() / logits[..., 0].numel()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 277 tokens, whose special ones are those of `COMMON`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=277,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Once upon a time there was a little signal in a lot of noise."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def assert_near(actual, expected, **kwargs):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0, **kwargs)


def logits_error(model: torch.nn.Module) -> float:
    """The largest difference between the logits of a model and those of its family's reference."""
    ids, family = random_ids(2, 11), FAMILIES[model.config.model_type]
    with torch.no_grad():
        return (model(ids).logits - family.reference_logits(model, model.config, ids)).abs().max().item()
