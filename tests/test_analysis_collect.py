"""Collecting: sums over batches are the unreduced figures, memory stays bounded, and what cannot be had is named."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from modeling_prism.analysis import collect, heads, reducers, representations
from tests.families import CASES, random_ids
from training.data import train_tokenizer


LENGTHS = (20, 17, 30, 5, 24)
# What Linux tells of a process.
STATUS = Path("/proc/self/status")


@pytest.fixture
def windows():
    """Of various lengths; one is too short for figures of heads."""
    return [random_ids(length, seed=length) for length in LENGTHS]


def llama(**changes):
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.2, **changes)).eval()


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


ALL = [reducers.reduce_loss, reducers.head_reducer(max(LENGTHS)), reducers.reduce_residual]


def unreduced(model, windows):
    """Every figure from all the maps and states at once, one window at a time, by the functions on tensors."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = [
            model(window[None], output_attentions=True, output_hidden_states=True, use_cache=False)
            for window in windows
        ]
    long = [i for i, window in enumerate(windows) if len(window) >= collect.SHORTEST]
    queries = sum(len(windows[i]) for i in long)
    figures = {}
    for name, function in (
        ("distance", heads.attention_distance),
        ("entropy", heads.attention_entropy),
        ("sink", heads.sink_mass),
    ):
        by_query = [function(torch.stack(outputs[i].attentions)) for i in long]  # (L, 1, H, S)
        figures[name] = torch.cat(by_query, dim=-1)[:, 0].mean(-1)
    patterns = {"duplicate token": heads.duplicate_token_pattern, "induction": heads.prefix_matching_pattern}
    for name, pattern in (*patterns.items(), ("previous token", heads.previous_token_pattern)):
        parts = [heads.pattern_sums(torch.stack(outputs[i].attentions), pattern(windows[i][None])) for i in long]
        figures[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
    spectra = [
        heads.attention_spectrum(torch.stack(outputs[i].attentions), num_points=max(LENGTHS))[0] * len(windows[i])
        for i in long
    ]
    figures["spectrum"] = sum(spectra) / queries
    nats = [
        torch.nn.functional.cross_entropy(output.logits[0, :-1], window[1:], reduction="sum")
        for output, window in zip(outputs, windows)
    ]
    figures["nats"] = sum(nats)
    first = torch.cat([output.hidden_states[1][0] for output in outputs])
    figures["effective rank"] = representations.effective_rank(first)
    figures["norm"] = representations.mean_norm(first)
    return figures


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("make", [llama, gpt2, CASES[0].values[0].model], ids=["llama", "gpt2", "prism"])
def test_sums_over_batches_are_the_unreduced_figures(make, batch_size, windows):
    model = make()
    sums = collect.collect_windows(model, windows, ALL, batch_size=batch_size, progress=False)
    expected = unreduced(model, windows)
    figures = reducers.head_metrics(sums)
    for name in (*(name for name in reducers.HEAD_METRICS if name not in ("centroid", "self")), "spectrum"):
        assert torch.allclose(figures[name].float(), expected[name].float(), rtol=1e-4, atol=1e-5), name
    assert sums["nats"].item() == pytest.approx(expected["nats"].item(), rel=1e-5)
    assert sums["tokens"] == sum(LENGTHS) - len(LENGTHS)
    residual = reducers.residual_metrics(sums)
    for name in ("effective rank", "norm"):
        assert residual[name][1].item() == pytest.approx(expected[name].item(), rel=1e-5)
    assert figures["lags"].shape == (2, figures["sink"].shape[1], max(LENGTHS))


def test_a_model_is_left_as_it_was(windows):
    model = llama().train()
    model.set_attn_implementation("sdpa")
    config = model.config.to_dict()
    sums = collect.collect_windows(model, windows, ALL, progress=False)
    # sdpa was handled, not silently empty.
    assert reducers.head_metrics(sums)["sink"].min() > 0
    assert model.training and model.config._attn_implementation == "sdpa" and model.config.to_dict() == config
    output = model(windows[0][None], output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], model.model(windows[0][None]).last_hidden_state)


def test_the_last_state_is_the_one_before_the_last_norm(windows):
    model = llama()
    with collect.prepared(model, attentions=False):
        batch = collect.run_batch(model, windows, [0], attentions=False)
    assert torch.allclose(model.lm_head(model.model.norm(batch.hidden_states[-1])), batch.logits, atol=1e-5)


def test_a_model_without_attention_is_refused_with_the_remedy(windows):
    config = MambaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    with pytest.raises(ValueError, match="MambaForCausalLM gives no attention maps.*attentions=False"):
        collect.collect_windows(model, windows, ALL, progress=False)
    rest = [reducers.reduce_loss, reducers.reduce_residual]
    sums = collect.collect_windows(model, windows, rest, attentions=False, progress=False)
    assert sums["tokens"] > 0


def test_texts_too_short_for_maps():
    windows = [random_ids(5)]
    sums = collect.collect_windows(llama(), windows, ALL, progress=False)
    with pytest.raises(ValueError, match="at least 16 tokens"):
        reducers.head_metrics(sums)


class Recording:
    """Notes the shape of every batch."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(tuple(batch.input_ids.shape))
        return {"rows": torch.bincount(batch.rows, minlength=8)}


def of_capacity(num_tokens, device="cpu"):
    """A model that asks the allocator for 4 PB, more than a process can address, when it is given more tokens."""

    def ask(module, args, kwargs):
        if kwargs["input_ids"].numel() > num_tokens:
            torch.empty(10**15, device=device)

    model = llama().to(device)
    model.register_forward_pre_hook(ask, with_kwargs=True)
    return model


def test_the_budget_sets_the_batch():
    model, windows = llama(), [random_ids(32)] * 8
    for fitting in (1, 3, 8):
        recording = Recording()
        budget = fitting * collect.bytes_per_window(model, 32)
        collect.collect_windows(model, windows, [recording], memory_budget=budget, progress=False)
        assert max(shape[0] for shape in recording.shapes) == fitting


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_too_little_memory_halves_the_batch_and_says_so(device):
    recording, windows = Recording(), [random_ids(32)] * 8
    with pytest.warns(UserWarning, match="Out of memory with . windows per batch") as warned:
        sums = collect.collect_windows(of_capacity(3 * 32, device), windows, [recording], progress=False)
    assert [str(warning.message).split()[-1] for warning in warned] == ["4.", "2."]
    # Every window counts once, those of the failed batches too.
    assert torch.equal(sums["rows"], torch.ones(8).double())
    assert recording.shapes == [(2, 32)] * 4
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="does not fit into memory.*max_length"):
        collect.collect_windows(of_capacity(31, device), windows, [recording], progress=False)


def test_other_errors_are_not_taken_for_too_little_memory():
    def fail(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        collect.collect_windows(llama(), [random_ids(32)] * 2, [fail], progress=False)
    # torch's texts, as the platforms that these tests do not run on have them.
    for text in (
        "not enough memory: you tried to allocate 8 bytes.",
        "can't allocate memory: you tried to allocate 8",
    ):
        assert collect.is_out_of_memory(RuntimeError(f"[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: {text}"))


def test_too_small_a_budget_cuts_the_texts_shorter_and_says_so():
    model = llama()
    budget = collect.bytes_per_window(model, 100)
    with pytest.warns(UserWarning, match="tokens, not 400"):
        length = collect.plan_length(model, 400, budget)
    assert 50 < length <= 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collect.plan_length(model, 100, budget) == 100
    with pytest.raises(ValueError, match="raise the budget"):
        collect.plan_length(model, 400, 1000)


MEMORY = """
import re, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from modeling_prism.analysis import collect, reducers

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])


kind = sys.argv[1]
sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4}
lengths, reduce = [128] * 100, reducers.reduce_residual
if kind == "maps":
    reduce = reducers.head_reducer(128)
elif kind == "spectra":
    lengths, reduce = [256] + [16] * 1000, reducers.head_reducer(256)
elif kind == "states":
    sizes |= {"hidden_size": 128, "num_hidden_layers": 8}
elif kind == "logits":
    sizes["vocab_size"], reduce = 4000, reducers.reduce_loss
model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=37, num_attention_heads=8))
windows = [torch.randint(0, 99, (length,)) for length in lengths]
options = {"attentions": kind in ("maps", "spectra"), "progress": False}
# Loads what torch loads at the first call, and takes little.
collect.collect_windows(model, [windows[0][:16]], [reduce], **options)
before = peak()
collect.collect_windows(model, windows, [reduce], memory_budget=2**25, **options)
print((peak() - before) / 1024)
"""


@pytest.mark.process
@pytest.mark.skipif(
    not STATUS.is_file() or "VmHWM" not in STATUS.read_text(), reason="Linux tells the peak of one program"
)
@pytest.mark.parametrize("kind", ["maps", "spectra", "states", "logits"])
def test_memory_stays_within_the_budget(kind):
    """What is reduced comes to more than the budget of 32 MiB, which is kept, and made use of."""
    # ru_maxrss would be that of the tests to begin with: a program inherits it.
    # Freed blocks go back at once: otherwise glibc keeps some, and the peak is that of its habits.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # 2 MiB for blocks smaller than that, pages of code that is first run, and the sums, which are no activations.
    assert 8 < float(done.stdout) < 32 + 2


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Dataset.from_dict({"text": ["Lily had a red ball. Tom wanted it."] * 5}), 300)


@pytest.mark.parametrize("with_bos", [True, False])
def test_every_token_is_predicted_once(tokenizer, with_bos):
    texts = ["Lily had a réd ball. " * 4, "Tom ran.", ""]
    bos = tokenizer.bos_token
    try:
        if not with_bos:
            tokenizer.bos_token = None
        windows, num_bytes = collect.cut_texts(tokenizer, texts, max_length=7)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    finally:
        tokenizer.bos_token = bos
    predicted = torch.cat([window[1:] for window in windows]).tolist()
    skipped = 0 if with_bos else 1
    assert predicted == [*ids[0][skipped:], *ids[1][skipped:]]
    assert max(map(len, windows)) == 7 and min(map(len, windows)) >= 2
    assert num_bytes == sum(len(tokenizer.decode(row[skipped:]).encode()) for row in ids)
    with pytest.raises(ValueError, match="two tokens"):
        collect.cut_texts(tokenizer, [""], 7)


def test_bits_per_byte_of_a_guess_is_that_of_its_vocabulary(tokenizer):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    windows, _ = collect.cut_texts(tokenizer, ["Lily had a ball."], 16)
    windows = [window % 99 for window in windows]
    sums = collect.collect_windows(model, windows, [reducers.reduce_loss], attentions=False, progress=False)
    figures = reducers.loss_metrics(sums, num_bytes=int(sums["tokens"]))
    assert figures["bits per byte"] == pytest.approx(torch.tensor(99.0).log2().item())
    assert figures["perplexity"] == pytest.approx(99)


def test_angles():
    x = torch.tensor([[1.0, 0.0]]).expand(4, -1)
    y = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1e-6]])
    assert reducers.angle_between(x, y).tolist() == pytest.approx([0, 90, 180, 5.7296e-5], rel=1e-4)
