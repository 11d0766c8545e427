"""The report, end to end: what it writes and what it says. How it looks is in test_analysis_page.py."""

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

import modeling_prism.analysis
from modeling_prism import (
    MomentumConfig,
    MomentumForCausalLM,
    PrismConfig,
    PrismForCausalLM,
    SphericalConfig,
    SphericalForCausalLM,
)
from modeling_prism.analysis import __main__ as command
from modeling_prism.analysis import (
    cut_texts,
    examine,
    examine_untrained,
    figures,
    figures_momentum,
    figures_prism,
    report,
    sentences,
    untrained_copy,
)
from modeling_prism.analysis.examine import steered, unknown_tokens
from modeling_prism.analysis.response import measure_momentum
from training.data import train_tokenizer
from training.tasks.arithmetic import make_tokenizer
from training.tasks.stories import tell


VOCAB = 300
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}


def make_models():
    torch.manual_seed(7)
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
    return {
        "prism": PrismForCausalLM(PrismConfig(**SIZES, num_attention_heads=8, max_position_embeddings=64)),
        "momentum": MomentumForCausalLM(MomentumConfig(**SIZES, **heads, momentum_gamma=[0.0, 0.8])),
        "spherical": SphericalForCausalLM(SphericalConfig(**SIZES, **heads)),
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES, **heads)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "mamba": MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models with a tokenizer; one with another tokenizer; texts."""
    folder = tmp_path_factory.mktemp("analysis")
    stories = [tell(seed).text for seed in range(12)]
    tokenizer = train_tokenizer(Dataset.from_dict({"text": stories}), VOCAB)
    for name, model in make_models().items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    make_models()["llama"].save_pretrained(folder / "other_tokenizer")
    train_tokenizer(Dataset.from_dict({"text": stories[:3]}), 280).save_pretrained(folder / "other_tokenizer")
    (folder / "texts.txt").write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    (folder / "short.txt").write_text("Tom ran.\n\nMia sat.", encoding="utf-8")
    return folder


def run(folder, model, out, *arguments, texts="texts.txt"):
    page = command.main([str(folder / model), "--texts", str(folder / texts), "--out", str(out), *arguments])
    return page.read_text(encoding="utf-8"), json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reports(folder, tmp_path_factory):
    """Page, numbers and folder of the report on each model, made when first asked for."""
    made = {}

    def get(model):
        if model not in made:
            out = tmp_path_factory.mktemp(f"report_{model}")
            made[model] = (*run(folder, model, out, *FEW), out)
        return made[model]

    return get


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes most of the time."""
    monkeypatch.setattr(
        report,
        "draw",
        lambda picture: {f"{picture.name}.{kind}": b'<svg viewBox="0 0 1 1"></svg>' for kind in ("png", "svg")},
    )


FEW = ("--num_texts", "4", "--max_length", "40")
EVERY = {"attention_maps", "heads", "attention_over_lag", "induction", "residual"}
PICTURES = {
    "prism": EVERY | {"banks", "bank_compression", "update_cosines", "rope_bands"},
    "momentum": EVERY | {"bode", "planes", "score_terms", "dc_ac"},
    "spherical": EVERY,
    "llama": EVERY,
    "gpt2": EVERY,
    "mamba": {"residual"},
}


@pytest.mark.experiment
@pytest.mark.parametrize("model", PICTURES)
def test_every_family_shows_what_applies(model, reports):
    page, numbers, out = reports(model)
    for kind in ("png", "svg"):
        files = {file.stem for file in (out / "figures").glob(f"*.{kind}")}
        assert files == PICTURES[model]
    assert set(re.findall(r'<figure id="(\w+)">', page)) == PICTURES[model]
    # Self-contained: pictures inside, nothing to fetch.
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page
    # Where something is published, it says what of it is shown.
    assert page.count(report.NO_PUBLISHED_PLOTS) == (model in ("prism", "momentum"))
    assert len(numbers["opening"]) == 3
    assert all(sentence in html.unescape(page) for sentence in numbers["opening"])
    assert numbers["model"]["loss"]["bits per byte"] > 0 and numbers["control"]["loss"]["bits per byte"] > 0
    assert f"{numbers['model']['loss']['bits per byte']:.3f}" in numbers["opening"][0]
    assert f"{numbers['control']['loss']['bits per byte']:.3f}" in numbers["opening"][2]
    # Nothing was trained here, so that nothing may stand out.
    if model in ("llama", "gpt2", "prism", "spherical"):
        assert numbers["opening"][1].startswith(
            "No head stands out" if model != "prism" else "No head metric separates"
        )
    if model == "mamba":
        assert any("MambaForCausalLM gives no attention maps" in note for note in numbers["notes"])
        assert "MambaForCausalLM gives no attention maps" in page
    else:
        assert numbers["notes"] == []


def test_the_shear_beside_its_formula():
    """The gains and leads of gamma 0.8 and 4.17 as the formula has them; the lead is read on a grid of 16 steps."""
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
    for placement in ("post_rope", "pre_rope"):
        config = MomentumConfig(**SIZES, **heads, momentum_gamma=[0.8, 4.17], momentum_placement=placement)
        model = MomentumForCausalLM(config)
        rows = figures_momentum.filter_table({"momentum": measure_momentum(model, [])})["rows"]
        for row, known in zip(rows, ((2.6, 3.88, 26.4), (9.34, 44.1, 53.8))):
            formula, measured = ([float(value) for value in row[start::2]] for start in (3, 4))
            assert formula[:2] == pytest.approx(known[:2], rel=2e-3) and formula[2] == pytest.approx(
                known[2], rel=1e-2
            )
            assert measured == pytest.approx(formula, rel=1e-4)
        assert [row[:3] for row in rows] == [["0", "0.8", "2.5"], ["1", "4.17", "2.5"]]


def test_the_dictionaries_beside_each_other(reports):
    """An untrained dictionary is a tight frame: the norms of U_S U_N^T have bounds, and the page shows them."""
    page, numbers, _ = reports("prism")
    found, control = numbers["model"]["prism"], numbers["control"]["prism"]
    assert "||U_S U_N^T|| (spectral)" in page and "(Frobenius)" in page
    for layer, norms in enumerate(zip(control["coherence spectral"], control["coherence frobenius"])):
        assert 0 < norms[0] <= 1 / 2 + 1e-6 and norms[0] < norms[1] <= 32**0.5 / 2
        row = re.search(rf"<tr><td[^>]*>{layer}</td>(.*)</tr>", page)[1]
        for name in ("coherence spectral", "coherence frobenius"):
            trained, untrained = (sentences.number(each[name][layer]) for each in (found, control))
            assert f">{trained} ({untrained})</td>" in row


@pytest.mark.parametrize(
    "gammas, streams, drawn",
    [
        (
            [0.8, 0.8],
            "qk",
            "the keys (queries are sheared alike) of layer 0, because layers with the same gamma are the same filter.",
        ),
        ([0.0, 0.8], "q", "the queries (keys are not sheared) of layers 0, 1. report.json has the numbers of all"),
    ],
)
def test_the_filter_s_figures_say_what_they_show(gammas, streams, drawn):
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
    model = MomentumForCausalLM(MomentumConfig(**SIZES, **heads, momentum_gamma=gammas, momentum_streams=streams))
    found = {"momentum": measure_momentum(model, [])}
    bode = next(picture for picture in figures_momentum.momentum_section(found) if picture.name == "bode")
    assert f"Drawn: {drawn}" in bode.caption and "scatter" in bode.caption
    gain, phase = bode.figure.axes
    points = [line for line in gain.lines if line.get_label().startswith("measured")][-1]
    # The Nyquist frequency is measured too, in order after the others or before.
    assert max(points.get_xdata()) == pytest.approx(torch.pi) and min(points.get_xdata()) == 0
    nyquist = float(points.get_ydata()[points.get_xdata().argmax()])
    assert nyquist == pytest.approx(20 * torch.log10(torch.tensor(2.6)).item(), abs=0.3)


@pytest.mark.experiment
def test_other_models_beside_it(folder, tmp_path, undrawn):
    others = ["--compare", str(folder / "llama"), str(folder / "other_tokenizer")]
    page, numbers = run(folder, "prism", tmp_path, *FEW, *others)
    assert [other["same tokenizer"] for other in numbers["others"]] == [True, False]
    assert {"comparison", "head_comparison"} <= set(re.findall(r'<figure id="(\w+)">', page))
    (note,) = numbers["notes"]
    assert note.startswith(
        "other_tokenizer and prism have different tokenizers: bits per byte are comparable, attention maps"
    )
    assert note in html.unescape(page)
    # The bytes are those of the same texts, so that bits per byte compare; the tokens differ.
    assert numbers["others"][0]["tokens"] == numbers["model"]["tokens"] != numbers["others"][1]["tokens"]


@pytest.mark.experiment
def test_only_another_tokenizer_beside_it(folder, tmp_path, undrawn):
    page, _ = run(folder, "llama", tmp_path, *FEW, "--compare", str(folder / "other_tokenizer"))
    assert 'id="comparison"' in page and "head_comparison" not in page


@pytest.fixture(scope="module")
def residues(folder):
    """A model of residues modulo 23 and a tokenizer to which every word is "="."""
    vocabulary = {**{str(number): number for number in range(P)}, "=": P}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="="))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="=").save_pretrained(folder / "residues")
    sizes = {**SIZES, "vocab_size": P + 1, "num_attention_heads": 4, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "residues")
    return folder / "residues"


@pytest.mark.experiment
def test_a_tokenizer_that_does_not_know_the_texts(folder, residues, tmp_path, undrawn):
    page, numbers = run(folder, "residues", tmp_path, *FEW, "--compare", str(folder / "llama"))
    assert numbers["model"]["unknown tokens"] == 1 and numbers["others"][0]["unknown tokens"] == 0
    unread, note = numbers["notes"]
    assert "does not know 100.0% of the tokens of these texts and replaces them by '='" in unread
    assert "that of residues does not know the texts, so neither bits per byte nor attention maps" in note
    assert "nats per token; its tokenizer does not know 100% of these tokens" in numbers["opening"][0]
    assert "nats per token" in numbers["opening"][2] and "(unknown tokens)" in page
    assert 'id="comparison"' not in page
    # Beside another it is left out of the comparison of the others.
    others = ["--compare", str(residues), str(folder / "other_tokenizer")]
    page, numbers = run(folder, "llama", tmp_path, *FEW, *others)
    assert 'id="comparison"' in page and "Models whose tokenizer does not know the texts are left out." in page
    assert "bits per byte" in numbers["opening"][0]


def test_a_tokenizer_that_refuses_the_texts(folder, residues, tmp_path):
    shutil.copytree(residues, tmp_path / "strict")
    make_tokenizer("addition", P).save_pretrained(tmp_path / "strict")
    with pytest.raises(ValueError, match=r"tokenizer cannot read these texts .*Missing \[UNK\].*`--modulus`"):
        run(folder, tmp_path / "strict", tmp_path, *FEW)


def test_a_token_that_stands_for_unknown_words_may_be_in_the_text(residues):
    tokenizer = command.AutoTokenizer.from_pretrained(residues)
    assert unknown_tokens(tokenizer, ["3 4 = 7", "22 22 = 21"]) == (0, "=")
    assert unknown_tokens(tokenizer, ["3 + 4 = 7", "once 3 4"]) == (2 / 8, "=")


def test_short_texts_leave_figures_out_and_say_so(folder, tmp_path, undrawn):
    page, numbers = run(folder, "prism", tmp_path, texts="short.txt")
    assert any("at least 16 tokens" in note for note in numbers["notes"])
    assert any("No text has 32 tokens" in note for note in numbers["notes"])
    assert 'id="banks"' not in page and 'id="residual"' in page


def test_a_small_budget_is_kept_and_said(folder, tmp_path, undrawn):
    with pytest.warns(UserWarning, match="texts are cut shorter"):
        _, numbers = run(folder, "llama", tmp_path, "--num_texts", "3", "--memory_budget", "0.0002")
    assert any("texts are cut shorter" in note for note in numbers["notes"])
    assert numbers["model"]["max length"] < 64


def test_windows_are_cut_to_the_context(folder, tmp_path, undrawn):
    with pytest.warns(UserWarning, match="`max_length`=9999 exceeds the 64 positions"):
        _, numbers = run(folder, "gpt2", tmp_path, "--num_texts", "3", "--max_length", "9999")
    assert numbers["model"]["max length"] == 64
    assert any("`max_length`=9999" in note for note in numbers["notes"])


@pytest.mark.parametrize("model", ["prism", "momentum"])
def test_the_shortest_windows_that_are_accepted(model, folder, tmp_path, undrawn):
    page, numbers = run(folder, model, tmp_path, "--num_texts", "3", "--max_length", "4")
    assert numbers["model"]["max length"] == 4 and numbers["model"]["repeats"]["nats of repeats"] > 0
    assert any("at least 16 tokens" in note for note in numbers["notes"]) and 'id="induction"' in page


def test_the_smallest_modulus_that_is_accepted():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4))
    for modulus, operation in ((2, "add"), (3, "multiply")):
        found = modeling_prism.analysis.examine_cyclic(model, modulus, operation)
        assert all(0 <= share <= 1 for share in found["explained by top 5"].values())


def test_a_llama_opened_as_momentum_is_examined_as_momentum(folder):
    tokenizer, texts = command.AutoTokenizer.from_pretrained(folder / "llama"), ["Tom had a red ball."]
    found = examine(MomentumForCausalLM.from_pretrained(folder / "llama"), tokenizer, texts, progress=False)
    llama = examine(LlamaForCausalLM.from_pretrained(folder / "llama"), tokenizer, texts, progress=False)
    assert found["family"] == "momentum" and found["momentum"]["gammas"] == pytest.approx([2.497] * 2, rel=1e-3)
    assert found["loss with the mechanism off"] == pytest.approx(llama["loss"]) and found["loss"] != llama["loss"]


def test_special_tokens_in_a_text_are_characters(folder):
    """What a text says is what is scored: every byte of it, and no token that the text could not contain."""
    tokenizer = command.AutoTokenizer.from_pretrained(folder / "llama")
    special = tokenizer.all_special_tokens[0]
    text = f"Tom saw {special} and ran. {special}"
    windows, num_bytes = cut_texts(tokenizer, [text], 99)
    ids = windows[0][tokenizer.bos_token_id is not None :].tolist()
    assert tokenizer.convert_tokens_to_ids(special) not in ids and tokenizer.decode(ids) == text
    assert num_bytes == len(text.encode()) - (tokenizer.bos_token_id is None)
    assert unknown_tokens(tokenizer, [text])[0] == 0


class Clock(LlamaForCausalLM):
    """Answers a + b mod 11 by three frequencies, as a model that has grokked does."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        answers = input_ids[:, 0] + input_ids[:, 1]
        difference = answers[:, None] - torch.arange(self.config.vocab_size)
        waves = sum(torch.cos(2 * torch.pi * k * difference / 11) for k in (2, 3, 5))
        output.logits[:, -1] = waves
        return output


@pytest.mark.experiment
def test_a_cyclic_task(folder, tmp_path):
    config = LlamaConfig(**{**SIZES, "vocab_size": 12}, num_attention_heads=4)
    for operation in ("add", "multiply"):
        found = modeling_prism.analysis.examine_cyclic(Clock(config), 11, operation)
        control = modeling_prism.analysis.examine_cyclic(LlamaForCausalLM(config), 11, operation)
        if operation == "add":
            assert found["accuracy"] == 1 and found["accuracy by k"][3] == 1 > found["accuracy by k"][0]
            assert found["logits"][[2, 3, 5]].tolist() == pytest.approx([1 / 3] * 3)
            assert control["accuracy"] < 0.5
        page = report.write_report(found, control, tmp_path / operation).read_text()
        assert 'id="fourier"' in page and f"{operation} mod 11" in page
        # The published accuracy is that of addition modulo 113, and beside no other.
        assert "2603.05228" not in page
        published = {**found, "task": f"{operation} mod 113"}
        picture = dict(report.sections_of(published, control, []))["Fourier basis"][0]
        assert ("2603.05228" in picture.caption) == (operation == "add")
        crosses = [line for ax in picture.figure.axes for line in ax.lines if "published" in str(line.get_label())]
        assert len(crosses) == (operation == "add")
        spectrum = picture.figure.axes[0]
        assert all(tick == int(tick) for tick in spectrum.get_xticks())
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    command.main([str(tmp_path / "model"), "--modulus", "11", "--out", str(tmp_path / "add")])
    assert (tmp_path / "add" / "figures" / "fourier.png").is_file()


P, FREQUENCIES = 23, (2, 5)


def spherical_clock():
    """
    A Spherical model that adds modulo 23 by two frequencies, each by its own four dimensions and sixteen neurons:
    e(a) + e(b) points at the angle (a + b) / 2, or opposite; neurons around the circle double that angle.

    Its tables are known: the embedding has energies 0.64 and 0.36, the unembedding 0.2 and 0.8, W_U W_out 0.5 and 0.5.
    """
    size = {"vocab_size": P + 1, "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2}
    config = SphericalConfig(**size, num_hidden_layers=1, max_position_embeddings=3, attention_routing="uniform")
    model = SphericalForCausalLM(config)
    layer, phases = model.model.layers[0], 2 * torch.pi * torch.arange(16) / 16

    def circle(angles):
        return torch.stack((angles.cos(), angles.sin()), dim=-1)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            projection.weight.copy_(torch.eye(8))
        for index, (k, embedded, read, gain) in enumerate(zip(FREQUENCIES, (0.8, 0.6), (0.2, 0.8), (1.0, 0.5))):
            residues = circle(2 * torch.pi * k * torch.arange(P) / P)
            start, neurons = 4 * index, slice(16 * index, 16 * index + 16)
            heard, said = slice(start, start + 2), slice(start + 2, start + 4)
            model.model.embed_tokens.weight[:P, heard] = embedded * residues
            layer.mlp.up_proj.weight[neurons, heard] = circle(phases)
            layer.mlp.down_proj.weight[said, neurons] = gain * circle(2 * phases).T
            model.lm_head.rows[:P, said] = read**0.5 * residues
        # The length of a row makes no difference to the model, and is a frequency in the rows as they are stored.
        model.lm_head.rows[:P] *= 1 + 0.9 * torch.cos(2 * torch.pi * torch.arange(P) / P)[:, None]
    return model


@pytest.mark.experiment
def test_a_cyclic_task_of_known_frequencies(tmp_path, monkeypatch):
    """Without an option: the tokenizer tells the task, the answers tell the operation."""
    spherical_clock().save_pretrained(tmp_path / "clock")
    make_tokenizer("addition", P).save_pretrained(tmp_path / "clock")
    monkeypatch.chdir(tmp_path)
    page = command.main(["clock"])
    assert page == Path("outputs/report_clock/report.html")
    numbers = json.loads(page.with_name("report.json").read_text())
    assert numbers["model"]["task"] == "add mod 23"
    found = numbers["model"]
    assert found["accuracy"] == found["accuracy by k"]["1"] == found["accuracy by k"]["5"] == 1
    known = {"embedding": (0.64, 0.36), "unembedding": (0.2, 0.8), "W_U W_out": (0.5, 0.5)}
    for label, energies in known.items():
        assert [found[label][k] for k in FREQUENCIES] == pytest.approx(energies, abs=1e-5), label
    assert sum(found["logits"][k] for k in FREQUENCIES) == pytest.approx(1)
    assert set(found["top frequencies"][:2]) == set(FREQUENCIES)
    assert "including those it was trained on, it answers 100.0% correctly" in numbers["opening"][0]
    assert "hold 100.0% of their variance between inputs and 100.0% of the embedding's" in numbers["opening"][1]
    assert numbers["control"]["accuracy"] < 0.2


def test_models_of_one_task_beside_each_other(residues, tmp_path, undrawn):
    spherical_clock().save_pretrained(tmp_path / "clock")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "clock"), "--modulus", str(P), "--compare", str(residues), "--out", str(out)]
    page = command.main(arguments).read_text(encoding="utf-8")
    (other,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["others"]
    rows = re.findall(r"<tr>(<td data.*?)</tr>", page, flags=re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [row[:2] for row in cells] == [
        ["clock", "Spherical"],
        ["untrained copy", "Spherical"],
        ["residues", "Llama"],
    ]
    assert cells[0][3:5] == ["100.0%", "100.0%"] and cells[2][3] == f"{other['accuracy']:.1%}"
    # W_U W_out is read of Spherical alone.
    header = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert cells[0][header.index("W_U W_out")] == "100.0%" and cells[2][header.index("W_U W_out")] == ""
    assert cells[2][header.index("logits")] == f"{other['explained by top 5']['logits']:.1%}"
    assert "the variance in 5 of 11 frequencies (equal ones: 45%)" in page


def test_two_reports_never_mix(folder, tmp_path, undrawn, monkeypatch):
    """Wherever the second report is cut off, a page that is there belongs to the files beside it."""
    tokenizer, texts = command.AutoTokenizer.from_pretrained(folder / "llama"), ["Tom had a red ball. " * 9]
    found = {
        name: examine(make_models()[name], tokenizer, texts, name=name, progress=False) for name in ("llama", "prism")
    }
    report.write_report(found["prism"], found["prism"], tmp_path / "first")
    (tmp_path / "first" / "figures" / "mine.png").write_bytes(b"no report wrote this")
    steps = {(Path, "write_bytes"): Path.write_bytes, (Path, "unlink"): Path.unlink, (os, "replace"): os.replace}
    for cut_off in range(100):
        out, calls = tmp_path / f"out_{cut_off}", iter(range(100))
        shutil.copytree(tmp_path / "first", out)

        def interrupted(step, *args, calls=calls, cut_off=cut_off, **options):
            if next(calls) == cut_off:
                raise KeyboardInterrupt
            return step(*args, **options)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for (owner, name), step in steps.items():
                patch.setattr(owner, name, lambda *a, s=step, **o: interrupted(s, *a, **o))
            report.write_report(found["llama"], found["llama"], out)
            break
        if (out / "report.html").exists():
            check_report_is_of("prism", out)
        if cut_off % 4 == 0:
            # The next report leaves nothing of either.
            report.write_report(found["llama"], found["llama"], out)
            check_report_is_of("llama", out)
    assert cut_off > 2 * len(PICTURES["prism"])
    check_report_is_of("llama", out)


def check_report_is_of(name, out):
    """The page, the numbers and the figures are of one model, and nothing else is there but what no report wrote."""
    numbers = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert numbers["model"]["name"] == name and f"Inside {name}" in (out / "report.html").read_text(encoding="utf-8")
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {*numbers["files"], "figures/mine.png", "report.html", "report.json"}
    assert {file.split("/")[1][:-4] for file in files if file.endswith(".svg")} == PICTURES[name] - {"attention_maps"}


@pytest.mark.parametrize(
    "name", ["a $x$ b_$ {c}", "故事模型 한국어 العربية 🙂", "<b>&amp;</b>", "x" * 200, "a\x01b\nc"]
)
def test_any_name_can_be_drawn(name, folder, tmp_path):
    found = {"name": name, "family": "llama", "parameters": 10, "loss": {"bits per byte": 1.0}}
    found["residual"] = {key: torch.ones(3) for key in ("norm", "effective rank", "entropy", "coding rate", "angle")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (figures.plot_comparison([found, found]), figures.plot_residual(found, found)):
            files = report.draw(figures.Picture("it", "", figure))
            text = "".join(ElementTree.fromstring(files["it.svg"]).itertext())
            # Text is text, and a name is what it says.
            assert figures.label_of(found) in text and len(files["it.png"]) > 5000
            assert figure.axes[0].get_window_extent().width > 100
    assert figures.label_of(found) == name or len(name) > 100 or not name.isprintable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", ["prism", "momentum", "gpt2"])
def test_a_gpu_finds_the_same(model, folder):
    arguments = command.AnalysisArguments(out="", texts="")
    tokenizer = command.load_tokenizer(str(folder / model), arguments)
    texts = command.read_texts(folder / "texts.txt", 3)
    found = {}
    for device in ("cpu", "cuda"):
        arguments.device = device
        loaded = command.load_model(str(folder / model), arguments)
        found[device] = examine(loaded, tokenizer, texts, max_length=40, progress=False)
    for part in ("heads", "residual"):
        for name, values in found["cpu"][part].items():
            assert torch.allclose(values, found["cuda"][part][name], rtol=1e-2, atol=1e-3), name


# Sentences


def split(signal, noise, delta, p):
    return {"signal": signal, "noise": noise, "cliffs_delta": delta, "p_value": p, "adjusted_p": p}


def prism_findings(bits=1.0, **banks):
    return {"family": "prism", "prism": {"banks": banks, "signal heads": 2}, "loss": {"bits per byte": bits}}


def test_what_stands_out_is_the_largest_difference_that_is_no_accident():
    found = prism_findings(distance=split(9.0, 3.0, 0.6, 0.01), entropy=split(1.0, 2.0, -0.9, 0.2))
    # As certain as can be, and too small to speak of.
    found["prism"]["banks"] |= {"sink": split(0.1, 0.06, 1.0, 1e-4), "centroid": split(0.1, 0.0951, 1.0, 1e-4)}
    said = sentences.what_stands_out(found, found)
    assert "the mean distance of attention: 9 tokens in signal heads and 3 tokens in noise" in said and "0.60" in said
    nothing = prism_findings(distance=split(9.0, 3.0, 0.6, 0.3))
    assert "No head metric separates signal heads from noise heads" in sentences.what_stands_out(nothing, nothing)


@pytest.mark.parametrize(
    "name, signal, noise, p, copies, verdict",
    [
        ("distance", 9.0, 3.0, 0.01, (0.1, -0.1, 0.2, 0.0), "holds: learned"),
        ("distance", 9.0, 3.0, 0.01, (3.1, 2.9, 3.2, 2.8), "holds: 50% built in, rest learned"),
        ("distance", 9.0, 3.0, 0.01, (5.81, 5.8, 5.79, 5.8), "does not hold: built in"),
        ("distance", 9.0, 3.0, 0.01, (5.0, 7.0, 6.5, 4.0), "does not hold: within the spread of untrained copies"),
        ("distance", 9.0, 3.0, 0.01, (0.0,), "undecided: only one untrained copy"),
        ("distance", 36.3, 55.4, 0.01, (0.1, -0.1, 0.2, 0.0), "reversed: learned"),
        ("distance", 9.0, 3.0, 0.3, (0.1, -0.1, 0.2, 0.0), "not shown: p = 0.3"),
        ("distance", 9.0, 8.9, 1e-4, (0.1, -0.1, 0.2, 0.0), "not shown: too small"),
        ("centroid", 0.1, 0.2, 0.01, (0.001, -0.001, 0.002, 0.0), "holds: learned"),
        ("centroid", 0.2, 0.1, 0.01, (0.001, -0.001, 0.002, 0.0), "reversed: learned"),
        ("sink", 0.2, 0.1, 0.01, (0.001, -0.001, 0.002, 0.0), "differs: learned"),
    ],
)
def test_one_rule_gives_table_and_sentence_their_verdict(name, signal, noise, p, copies, verdict):
    found, control = prism_findings(**{name: split(signal, noise, 0.6, p)}), prism_findings()
    control["copies"] = [{name: torch.tensor([[gap, gap, 0.0, 0.0]])} for gap in copies]
    (row,) = figures_prism.bank_table(found, control)["rows"]
    assert row[-1] == verdict
    said = sentences.what_stands_out(found, control)
    assert f"{name} ({row[1]}) {verdict}" in said if row[1] else "Published" not in said
    assert ("differ in 1 of 1 metrics" in said) != verdict.startswith("not shown")


def test_headline_and_table_agree():
    """The headline names the largest effect among the rows that differ, not a larger effect that is too small."""
    found = prism_findings(self=split(0.3, 0.1, 0.62, 0.01), induction=split(0.01, 0.02, -0.68, 0.01))
    assert "differ in 1 of 2 metrics, most in attention to the token itself" in sentences.what_stands_out(found, found)
    assert figures_prism.bank_table(found, found)["rows"][1][-1] == "not shown: too small"


@pytest.mark.parametrize(
    "copies, verdict",
    [
        ((0.1, -0.1, 0.2, -0.2, 0.0), "training made it"),
        ((5.81, 5.8, 5.79, 5.8, 5.8), "it is built in, not learned"),
        ((3.1, 2.9, 3.2, 2.8, 3.0), "50% of it is built in, and training added the rest"),
        ((-3.1, -2.9, -3.2, -2.8, -3.0), "training reversed it"),
        ((9.1, 8.9, 9.2, 8.8, 9.0), "it is built in, and training reduced it"),
        ((5.0, 7.0, 6.5, 4.0, 7.5), "training changed it by no more than untrained copies vary"),
        # On one side of 0, and of one size with how far they vary.
        ((1.0, 3.0, 2.0, 0.5, 4.0), "training changed it by no more than untrained copies vary"),
        ((-0.9, -0.1, 0.1, -0.8, -0.3), "training made it"),
        ((0.0,), "a single copy cannot show what training did"),
    ],
)
def test_the_copies_decide_what_training_did(copies, verdict):
    found = prism_findings(distance=split(9.0, 3.0, 0.6, 0.01))
    control = prism_findings(bits=2.5)
    control["heads"] = {"distance": torch.zeros(3, 4)}
    control["copies"] = [{"distance": torch.tensor([[3.0 + gap, 3.0 + gap, 3.0, 3.0]])} for gap in copies]
    said = sentences.what_the_control_says(found, control)
    assert f"instead of 6: {verdict}" in said and "2.500 bits per byte" in said
    assert f"In {len(copies)} of them" in said
    # The copy that is measured in full is one alone.
    del control["copies"]
    assert "is 0 instead of 6: a single copy cannot" in sentences.what_the_control_says(found, control)


UNTRAINED = {
    "prism": lambda: PrismForCausalLM(PrismConfig(**SIZES, num_attention_heads=8, max_position_embeddings=64)),
    # Sharper attention, whose heads differ more, and whose bases alone set the banks apart.
    "sharp prism": lambda: PrismForCausalLM(
        PrismConfig(**SIZES, num_attention_heads=8, max_position_embeddings=64, initializer_range=0.1)
    ),
    "spherical": lambda: SphericalForCausalLM(
        SphericalConfig(**SIZES, num_attention_heads=4, max_position_embeddings=64)
    ),
    "llama": lambda: make_models()["llama"],
}


def openings(model, folder):
    """The opening of a report on a model, beside its untrained copies."""
    tokenizer = command.load_tokenizer(str(folder / "prism"), command.AnalysisArguments(out="", texts="x"))
    texts = command.read_texts(folder / "texts.txt", 4)
    options = {"max_length": 40, "progress": False}
    found = examine(model.eval(), tokenizer, texts, **options)
    return sentences.opening(found, examine_untrained(model, tokenizer, texts, **options))


@pytest.mark.experiment
@pytest.mark.parametrize("kind", UNTRAINED)
def test_nothing_is_credited_to_training_that_never_was(kind, folder):
    for seed in range(100, 105):
        torch.manual_seed(seed)
        _, stands_out, control = openings(UNTRAINED[kind](), folder)
        assert stands_out.startswith("No ") or "banks" in stands_out, stands_out
        if "difference between banks" in control:
            assert "no more than untrained copies vary" in control or "built in, not learned" in control, control


@pytest.mark.experiment
def test_banks_that_do_differ_are_credited_to_training(folder):
    """Noise heads whose scores are a hundred times as large: with queries equal to keys, they look at themselves."""
    torch.manual_seed(100)
    model = UNTRAINED["prism"]()
    with torch.no_grad():
        for layer in model.model.layers:
            dictionary = layer.self_attn.dictionary.weight
            dictionary[len(dictionary) * model.config.num_signal_heads // 8 :] *= 10
    _, stands_out, control = openings(model, folder)
    assert stands_out.startswith("Its banks differ in ")
    assert "In 5 of them the difference between banks" in control and "training made it" in control


def test_the_strongest_head_is_the_one_farthest_from_the_control():
    base = {"sink": torch.full((2, 2), 0.3), "previous token": torch.full((2, 2), 0.1), "distance": torch.ones(2, 2)}
    found = {"family": "llama", "heads": {name: values.clone() for name, values in base.items()}}
    found["heads"]["sink"][0, 0] = 0.7
    found["heads"]["previous token"][1, 0] = 0.65
    said = sentences.what_stands_out(found, {"heads": base})
    assert said.startswith("Head 0 of layer 1 gives 65% of its attention to the previous token") and "10%" in said
    # Nor does the largest of many small differences stand out.
    found = {"family": "llama", "heads": {name: 1.1 * values for name, values in base.items()}}
    assert sentences.what_stands_out(found, {"heads": base}).startswith("No head stands out")


def test_a_filter_that_is_another_is_said():
    momentum = {"largest deviation": 0.3, "shares": {"variance": torch.full((4, 1, 1), 0.25)}}
    assert "deviate from the formula" in sentences.what_stands_out({"family": "momentum", "momentum": momentum}, {})
    momentum["largest deviation"] = 1e-6
    said = sentences.what_stands_out({"family": "momentum", "momentum": momentum}, {})
    assert "The formula describes" in said and "75%" in said


def test_the_same_frequencies_are_looked_for_in_the_embedding():
    energies = {"logits": torch.tensor([0, 0.5, 0.4, 0.1]), "embedding": torch.tensor([0, 0.2, 0.1, 0.7])}
    found = {"task": "multiply mod 7", "top frequencies": [1, 2], "accuracy by k": {5: 0.98}, **energies}
    assert sentences.what_stands_out(found, {}) == (
        "The strongest frequencies of its logits (1, 2) hold 90.0% of their variance between inputs and 30.0% of the "
        "embedding's; 2 of 3 equal ones would hold 67%. With these frequencies alone it answers 98.0% correctly if no "
        "factor is 0."
    )


def test_a_vector_that_is_the_same_for_every_input_is_no_spectrum():
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 12}, num_attention_heads=4))
    plain = modeling_prism.analysis.examine_cyclic(model, 11)
    wave = 50 * torch.cos(2 * torch.pi * 4 * torch.arange(12) / 11)
    model.lm_head.register_forward_hook(lambda module, args, output: output + wave)
    shifted = modeling_prism.analysis.examine_cyclic(model, 11)
    assert torch.allclose(plain["logits"], shifted["logits"], atol=1e-4) and shifted["logits"][4] < 0.5
    # What the model answers, it answers with that vector.
    assert shifted["accuracy by k"][10] == 1 / 11 == shifted["accuracy"]


# In a notebook, and without the extra


@pytest.mark.experiment
def test_figures_in_a_notebook(folder):
    model = PrismForCausalLM.from_pretrained(folder / "prism")
    tokenizer = command.AutoTokenizer.from_pretrained(folder / "prism")
    found = examine(model, tokenizer, command.read_texts(folder / "texts.txt", 2), max_length=40, progress=False)
    for figure in (figures.plot_heads(found), figures_prism.plot_banks(found), figures.plot_residual(found)):
        axes = [ax for ax in figure.axes if ax.has_data() and ax.get_label() != "<colorbar>"]
        assert axes and all(ax.get_title() for ax in axes)
        assert all(ax.get_ylabel() for ax in axes)
    # What a figure shows is what was found.
    first = figures.plot_heads(found).axes[0]
    assert torch.allclose(torch.as_tensor(first.images[0].get_array()), found["heads"]["distance"])


def test_planes_are_whole_numbers(folder):
    momentum = measure_momentum(MomentumForCausalLM.from_pretrained(folder / "momentum"), [torch.arange(40)])
    found = {"momentum": momentum, "layers": 2}
    for plot in (figures_momentum.plot_dc_ac, figures_momentum.plot_planes):
        for ax in plot(found, "keys", 1).axes:
            low, high = ax.get_xlim()
            ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
            assert len(ticks) >= 2 and all(tick == round(tick) for tick in ticks)


def test_a_p_below_what_permutations_tell_is_a_bound():
    heads = {"sink": torch.rand(2, 4)}
    banks = {"sink": split(0.5, 0.4, 0.6, 0.0002)}
    figure = figures_prism.plot_banks({"heads": heads, "prism": {"banks": banks, "signal heads": 2}})
    assert "p < 0.001" in figure.axes[0].get_title()


def test_the_hatched_bar_is_named():
    found = [{"name": name, "parameters": 10, "loss": {"bits per byte": 1.0}} for name in ("one", "two")]
    (legend,) = figures.plot_comparison(found).legends
    assert [text.get_text() for text in legend.get_texts()] == ["the model of this report"]


def test_one_is_no_plural():
    found = {"name": "x", "family": "prism", "parameters": 9, "layers": 1, "texts": 1, "tokens": 1200}
    found |= {"heads per layer": 2, "prism": {"signal heads": 1, "lambda": 1.0}, "loss": {"bits per byte": 2.0}}
    assert "(1 layer of 1 signal and 1 noise head at lambda = 1). On 1 text of 1,200 tokens" in sentences.what_it_is(
        found
    )


def test_heads_that_span_everything_can_be_drawn(folder):
    """Two signal heads of width d: nothing lies outside of their subspaces."""
    model = PrismForCausalLM(PrismConfig(**SIZES, num_attention_heads=4))
    tokenizer = command.load_tokenizer(str(folder / "prism"), command.AnalysisArguments(out="", texts=""))
    found = examine(model, tokenizer, command.read_texts(folder / "texts.txt", 2), max_length=40, progress=False)
    assert found["prism"]["snr signal"].isinf().all()
    assert report.to_json(found["prism"]["snr signal"]) == [None, None]
    figures_prism.plot_bank_compression(found, found).draw_without_rendering()


def test_the_control_is_the_same_model_untrained(folder):
    model = PrismForCausalLM.from_pretrained(folder / "prism")
    state = torch.random.get_rng_state()
    one, two, other = untrained_copy(model), untrained_copy(model), untrained_copy(model, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (model, one, two, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert one.config.to_dict() == model.config.to_dict() and one.config is not model.config


def test_the_mechanism_is_off_and_on_again():
    models = make_models()
    ids = torch.randint(0, VOCAB, (1, 20), generator=torch.Generator().manual_seed(0))
    for name in ("prism", "momentum"):
        model = models[name].eval()
        before = model(ids).logits
        with steered(model, 0.0):
            assert not torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, before)


WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("matplotlib", "scipy") else find(name, *rest)
import modeling_prism
assert not {"matplotlib", "scipy"} & set(sys.modules), "the models must not need them"
import modeling_prism.analysis
"""


@pytest.mark.process
def test_without_the_extra_the_remedy_is_named():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert "ImportError" in done.stderr and "pip install modeling-prism[analysis]" in done.stderr, done.stderr
    assert "matplotlib, scipy" in done.stderr
