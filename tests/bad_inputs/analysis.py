"""The report (words of its command), and the functions that it is made of (calls)."""

import shlex
from unittest import mock

import torch
from families import random_ids
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from modeling_prism import PrismConfig, PrismModel
from modeling_prism.analysis import __main__ as command
from modeling_prism.analysis import (
    collect,
    examine,
    examine_cyclic,
    figures,
    figures_momentum,
    figures_prism,
    figures_spherical,
    heads,
    momentum,
    reducers,
    representations,
    response,
    spherical,
)
from training.data import load_tokenizer

from . import Row, copy, cut, not_finite


WORLD = ("finished", "table", "bare", "bert", "body", "classifier", "headless", "residues", "gpt2", "corpus")
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def give(given):
    if callable(given):
        return given()
    # Before any work.
    with mock.patch.object(collect, "run_batch", side_effect=AssertionError("a model was run")):
        command.main(shlex.split(given))


def examining(make, texts=("Tom had a red ball.",), **options):
    return lambda: examine(make(), load_tokenizer("finished"), texts, progress=False, **options)


def llama(**sizes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 37, **sizes}))


FOREIGN = {
    "depend on later tokens": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "does not return logits": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)),
    "not return logits": lambda: T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=32, d_ff=37)),
    "does not return log": lambda: PrismModel(PrismConfig(**SIZES)),
}
ONE = {"name": "one", "family": "llama", "residual": {}}
TWO = {"name": "two", "family": "prism", "prism": {}}
MAPS, Q = torch.eye(8).expand(2, 3, 8, 8), torch.eye(4)
TEXTS = "--texts corpus/valid.txt --out x"
ROWS = [
    Row(f"nowhere {TEXTS}", "'nowhere' is neither the folder nor the hub name of a causal"),
    Row(f"gpt2 {TEXTS}", "'gpt2' is neither|'gpt2'"),
    Row(f"m {TEXTS}", "'m' is neither the folder nor the hub name", {"m/config.json": "{}"}),
    Row(f"m {TEXTS}", "'m' is neither the folder nor", {"m": copy("bare"), "m/model.safetensors": cut}),
    Row(f"m {TEXTS}", "logits that are not numbers", {"m": copy("finished"), "m/model.safetensors": not_finite}),
    Row(f"m {TEXTS}", "'m' ", {"m": copy("finished"), "m/tokenizer.json": "{"}),
    Row(f"bare {TEXTS}", "'bare' has no tokenizer.*--modulus"),
    Row(f"bert {TEXTS}", "BertLMHeadModel is not a causal language model.*depend on later tokens"),
    Row(f"body {TEXTS}", "'body' holds a PrismModel, not a causal language model"),
    Row(f"classifier {TEXTS}", "'classifier' holds a LlamaForSequenceClassification, not a causal"),
    Row(f"headless {TEXTS}", "'headless' lacks weights of a causal.*lm_head.weight"),
    Row(f"finished {TEXTS} --compare nowhere", "'nowhere' is neither"),
    Row(f"finished {TEXTS} --num_text 3", "Unknown option '--num_text': did you mean `--num_texts`"),
    Row(f"finished {TEXTS} --compare finished bare", "'bare' has no tokenizer"),
    Row(f"finished {TEXTS} --compare table", "`compare`: 'table' solves a task modulo .*reads no texts"),
    Row(f"finished {TEXTS} --max_length 2", "`max_length`=2 .*at least 4"),
    Row(f"finished {TEXTS} --max_length 3", "`max_length`=3 .*at least 4"),
    Row(f"finished {TEXTS} --num_texts 0", "`num_texts` must be at least 1, got 0"),
    Row(f"finished {TEXTS} --memory_budget 0", r"`memory_budget` \(GiB\).*got 0"),
    Row(f"finished {TEXTS} --memory_budget nan", r"`memory_budget` \(GiB\).*got nan"),
    Row(f"finished {TEXTS} --control_copies 0", "`control_copies` must be at least 1"),
    Row(f"finished {TEXTS} --device tpuu", "`device`='tpuu'.*give 'cpu'"),
    Row(f"finished {TEXTS} --device cuda:99", "`device`='cuda:99'.*give 'cpu'"),
    Row("finished --texts nothing.txt --out x", "`texts`='nothing.txt' cannot be read"),
    Row("finished --texts corpus --out x", "`texts`='corpus' cannot be read"),
    Row("finished --texts a --out x", "holds no text", {"a": "\n\n  \n"}),
    Row("finished --texts a --out x", "holds no text", {"a": "\ufeff"}),
    Row("finished --texts a --out x", "`texts`='a' cannot be read", {"a": "Zoë".encode("latin-1")}),
    Row("finished --texts corpus/valid.txt --out a", "`out`='a' cannot hold a report.*is a file", {"a": ""}),
    Row("finished --texts corpus/valid.txt --out a/x", "a' is a file: give a folder", {"a": ""}),
    Row("finished --texts corpus/valid.txt --out /proc/x", "`out`='/proc/x'"),
    Row("finished --texts corpus/valid.txt --modulus 7", "Give either `--texts`.*or `--modulus`.*not both"),
    *[Row(f"bare --modulus {p} --out x", f"`modulus`={p} has no two residues.*2 or more") for p in (0, -3, 1)],
    Row("bare --modulus 9 --operation multiply --out x", "`modulus`=9: .*Give such a prime"),
    Row("bare --modulus 700 --out x", "`modulus`=700 needs 701 tokens.*has 300.*at most 299"),
    Row("finished --modulus 7 --out x", "`modulus`=7.*'finished': its token 0 is .*, the task's is '0'.*--texts"),
    Row("residues --modulus 19 --out x", "token 19 is '19', the task's is '='.*`--modulus 23`"),
    Row("residues --modulus 29 --out x", "token 23 is '=', the task's is '23'.*`--modulus 23`"),
    Row("residues --modulus 23 --out x --compare finished", "`modulus`=23 does not fit.*'finished'"),
    # In a notebook.
    *[Row(examining(make), f"is not a causal language model.*{says}") for says, make in FOREIGN.items()],
    *[Row(lambda make=make: examine_cyclic(make(), 11), "is not a causal language") for make in FOREIGN.values()],
    Row(examining(lambda: llama(vocab_size=50)), "do not belong together. Use the tokenizer"),
    *[Row(examining(llama, max_length=length), f"`max_length`={length} ") for length in (0, 3)],
    Row(examining(llama, texts="Tom had a red ball."), r"`texts` must be a list of strings.*\[text\]"),
    Row(examining(llama, texts=[]), "text"),
    Row(examining(llama, texts=["Tom", 3]), "`texts` must be a list of strings"),
    Row(lambda: examine_cyclic(llama(), 1), "`modulus`=1"),
    Row(lambda: examine_cyclic(llama(), -3), "`modulus`=-3"),
    Row(lambda: examine_cyclic(llama(), 2, "multiply"), "`modulus`=2"),
    Row(lambda: examine_cyclic(llama(), 9, "multiply"), "`modulus`=9"),
    # Figures.
    *[
        Row(lambda plot=plot: plot(ONE), f"`{plot.__name__}` draws findings of {whose}.*'one', a llama model")
        for plot, whose in (
            (figures.plot_heads, "a model that gives attention maps"),
            (figures.plot_induction, "a model that gives attention maps"),
            (figures_prism.plot_banks, "a Prism model"),
            (figures_prism.plot_rope_bands, "a Prism model"),
            (figures_momentum.plot_bode, "a Momentum model"),
            (figures_momentum.plot_dc_ac, "a Momentum model"),
            (figures_spherical.plot_fourier, "a task modulo a number"),
        )
    ],
    Row(lambda: figures_prism.plot_banks(TWO), "`plot_banks` draws 'banks', but the findings of 'two'.*longer texts"),
    Row(lambda: figures.plot_comparison(ONE), r"draws a list of findings: give \[found, other\]"),
    Row(lambda: figures.plot_comparison([ONE]), "`plot_comparison` draws findings of a model on texts"),
    Row(lambda: figures.plot_head_comparison([ONE]), "draws findings of a model that gives attention maps"),
    # Metrics.
    Row(
        lambda: collect.collect_windows(
            MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, state_size=4)).eval(),
            [random_ids(32)],
            [reducers.head_reducer(32)],
            progress=False,
        ),
        "MambaForCausalLM gives no attention maps.*attentions=False",
    ),
    Row(lambda: collect.plan_length(llama(), 400, 1000), "raise the budget"),
    Row(lambda: collect.cut_texts(load_tokenizer("finished"), [""], 7), "two tokens"),
    Row(lambda: heads.attention_spectrum(MAPS, num_points=7), "num_points"),
    Row(lambda: heads.prefix_matching_score(MAPS, torch.arange(8).expand(2, -1)), "random_repeats"),
    Row(lambda: heads.prefix_matching_score(MAPS[..., :3, :], torch.zeros(2, 8)), "square"),
    Row(lambda: heads.random_repeats(torch.arange(10), 1), "num_distinct"),
    Row(lambda: momentum.greatest_lead(-0.5), "lags"),
    Row(lambda: momentum.plane_response(torch.ones(3), torch.ones(3), 1.0, "postrope"), "pre_rope"),
    Row(lambda: representations.effective_rank(torch.ones(1, 4)), "two tokens"),
    Row(lambda: representations.compression(torch.ones(5, 4), Q), "K, p, d"),
    Row(
        lambda: response.measured_response(
            GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=4)), torch.ones(3)
        ),
        "GPT2LMHeadModel has no query and key projections",
    ),
    Row(lambda: spherical.modular_pairs(5, "divide"), "multiply"),
    *[Row(lambda p=p: spherical.discrete_log_order(p), "prime") for p in (2, 15)],
]
