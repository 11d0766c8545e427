"""Presets, recipes and launch files: each loads, and says what its comments say."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_prism import MomentumConfig, PrismConfig
from training.flops import forward_flops_per_token, training_flops_per_token
from training.loading import load_config
from training.options import parse_arguments


CONFIGURATION = Path(__file__).parent.parent / "configuration"
PRESETS = sorted(path.parent for path in CONFIGURATION.glob("models/*/config.json"))
RECIPES = sorted(CONFIGURATION.glob("recipes/*.yaml"))


def num_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CONFIGURATION / "models" / name))
    return model.num_parameters()


@pytest.mark.parametrize("folder", PRESETS, ids=lambda folder: folder.name)
def test_presets_run(folder):
    # A forward pass on the meta device, in which the head does 2 * hidden_size * vocab_size of the FLOPs.
    config = AutoConfig.from_pretrained(folder)
    length = min(4, config.max_position_embeddings)
    assert forward_flops_per_token(config, length) > 2 * config.hidden_size * config.vocab_size


@pytest.mark.parametrize("size", ["tiny", "10m", "50m", "124m"])
@pytest.mark.parametrize("baseline", ["gpt-neox", "gpt2", "llama"])
def test_baselines_have_the_parameters_of_prism(size, baseline):
    assert num_parameters(f"{baseline}-{size}") == pytest.approx(num_parameters(f"prism-{size}"), rel=0.01)


@pytest.mark.parametrize("baseline", ["gpt-neox", "gpt2", "llama"])
def test_compute_matched_baselines_have_the_flops_of_prism(baseline):
    configs = [
        AutoConfig.from_pretrained(CONFIGURATION / "models" / name)
        for name in (f"{baseline}-tiny-compute", "prism-tiny")
    ]
    flops = [training_flops_per_token(config, 256) for config in configs]
    assert flops[0] == pytest.approx(flops[1], rel=0.01)


def test_the_published_model():
    assert num_parameters("prism-50m") == 51_192_320
    config = AutoConfig.from_pretrained(CONFIGURATION / "models" / "prism-50m")
    assert config.learned_position_embeddings and config.hidden_dropout == config.attention_dropout == 0.1
    assert config.head_dim == 128 and config.num_attention_heads == 16
    # Without the position table, as the paper counts.
    assert num_parameters("prism-50m") - 512 * 512 == pytest.approx(50.93e6, rel=1e-3)


@pytest.mark.parametrize(
    "size, layers, gamma", [("tiny", 4, 1.495), ("10m", 6, 1.107), ("50m", 8, 0.895), ("125m", 12, 0.663)]
)
def test_momentum_presets_are_the_llama_presets_with_the_published_gamma(size, layers, gamma):
    momentum = AutoConfig.from_pretrained(CONFIGURATION / "models" / f"momentum-{size}")
    llama = AutoConfig.from_pretrained(CONFIGURATION / "models" / f"llama-{size.replace('125m', '124m')}")
    assert momentum.num_hidden_layers == layers and momentum.momentum_gamma == pytest.approx(gamma, abs=0.0005)
    own = ("_name_or_path", "architectures", "model_type", "momentum_gamma", "momentum_streams", "momentum_placement")
    assert {name: value for name, value in momentum.to_dict().items() if name not in own} == {
        name: value for name, value in llama.to_dict().items() if name not in own
    }


def test_sizes_of_the_published_momentum_comparison():
    assert num_parameters("momentum-125m") == pytest.approx(125e6, rel=0.02)
    assert num_parameters("llama-350m") == pytest.approx(350e6, rel=0.02)


def test_the_published_spherical_model():
    config = AutoConfig.from_pretrained(CONFIGURATION / "models" / "spherical-grok")
    # The published head has no row for "=": 113 outputs of 114 tokens.
    assert num_parameters("spherical-grok") - config.hidden_size == 226_688
    assert (config.vocab_size, config.max_position_embeddings, config.num_hidden_layers) == (114, 3, 1)
    assert (config.residual_norm, config.bounded_unembedding, config.logit_scale) == ("sphere", True, 10)


@pytest.mark.parametrize("size", ["tiny", "10m"])
def test_spherical_presets_have_the_parameters_of_prism(size):
    assert num_parameters(f"spherical-{size}") == pytest.approx(num_parameters(f"prism-{size}"), rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_parse_and_explain_every_key(recipe, tmp_path):
    model, data, training = parse_arguments([str(recipe), "--use_cpu", "true", "--bf16", "false"])
    assert data.block_size <= load_config(model).max_position_embeddings
    if recipe.stem == "grokking":
        assert training.lr_scheduler_type == "constant" and training.warmup_steps == 0 == training.max_grad_norm
    elif recipe.stem == "release":
        assert training.lr_scheduler_type == "warmup_stable_decay" and training.max_steps == 2000
    else:
        assert training.lr_scheduler_type == "cosine_with_min_lr"
        assert training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    for line in recipe.read_text(encoding="utf-8").splitlines():
        assert not line or re.fullmatch(r"#.*|\w+: .*  # \S.*", line), f"unexplained: {line}"


def test_the_published_recipe():
    _, data, training = parse_arguments(
        [str(CONFIGURATION / "recipes" / "tinystories_50m.yaml"), "--use_cpu", "true", "--bf16", "false"]
    )
    assert training.per_device_train_batch_size * data.block_size == 32_768
    assert (training.max_steps, training.warmup_steps, training.learning_rate) == (20_000, 1000, 6e-4)


@pytest.mark.parametrize("file", sorted(CONFIGURATION.glob("accelerate/*.yaml")), ids=lambda file: file.stem)
def test_launch_files_are_read_by_accelerate(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 1 and config.mixed_precision == ("no" if file.stem == "two_cpus" else "bf16")
    assert set(yaml.safe_load(file.read_text())) <= set(vars(config))


def test_a_tokenizer_may_be_given_options_of_its_own(tmp_path):
    PrismConfig().save_pretrained(tmp_path)
    options = {"padding_side": "left", "model_max_length": 9, "pad_token": "<|pad|>"}
    assert isinstance(AutoConfig.from_pretrained(tmp_path, **options), PrismConfig)
    with pytest.raises(ValueError, match="`padding_left` is not a field of PrismConfig"):
        AutoConfig.from_pretrained(tmp_path, padding_left=True)


def test_a_tool_may_write_the_value_of_a_field_under_a_name_of_its_own():
    """As TransformerLens does with a copy; another value is refused."""
    config = MomentumConfig(hidden_size=48, num_attention_heads=4)
    config.d_model = 48
    with pytest.raises(ValueError, match="did you mean `hidden_size`"):
        config.d_model = 64
