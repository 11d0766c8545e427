import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from modeling_prism import PrismConfig, PrismModel
from training import pretrain


SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES["max_position_embeddings"] = 32


@pytest.fixture(scope="session")
def world(recipe, finished, corpus, tmp_path_factory):
    """What rows may name: configs, a corpus, a finished run of stories and one of a lookup table, foreign models."""
    world = tmp_path_factory.mktemp("world")
    for name in ("recipe.yaml", "model", "spherical", "gpt2"):
        (world / name).symlink_to(recipe.parent / name)
    (world / "corpus").symlink_to(corpus)
    (world / "finished").symlink_to(finished[0])
    table = "--dataset_name addition --block_size 3 --modulus 23 --max_steps 1 --save_strategy no --model_config"
    spherical, folder = str(recipe.parent / "spherical"), str(world / "table")
    pretrain.main([str(recipe), *table.split(), spherical, "--output_dir", folder])

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **SIZES)).save_pretrained(world / "bare")
    BertForMaskedLM(BertConfig(vocab_size=300, **SIZES)).save_pretrained(world / "bert")
    PrismModel(PrismConfig(vocab_size=300, **SIZES)).save_pretrained(world / "body")
    LlamaForSequenceClassification(LlamaConfig(vocab_size=300, **SIZES)).save_pretrained(world / "classifier")
    shutil.copytree(world / "bare", world / "headless")
    weights = load_file(world / "bare" / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "lm_head" not in n}, world / "headless" / "model.safetensors")
    # A tokenizer to which every word but a number is "=".
    LlamaForCausalLM(LlamaConfig(vocab_size=24, **SIZES)).save_pretrained(world / "residues")
    words = Tokenizer(WordLevel({**{str(number): number for number in range(23)}, "=": 23}, unk_token="="))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="=").save_pretrained(world / "residues")
    return world
