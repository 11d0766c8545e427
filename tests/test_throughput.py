import ctypes
import functools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from modeling_prism import PrismConfig, SphericalConfig
from training.benchmarks.throughput import (
    PeakMemory,
    ThroughputArguments,
    format_report,
    load_arm,
    main,
    run_benchmark,
    summarize,
)
from training.flops import forward_flops_per_token, training_flops_per_token


pytestmark = pytest.mark.experiment

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
SMALL = {"batch_size": 2, "sequence_length": 12, "decode_tokens": 3, "rounds": 2, "steps": 1, "warmup": 0}
SMALL["device"] = "cpu"
PHASES = ("training", "prefill", "decoding")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Config-only folders, one per family."""
    root = tmp_path_factory.mktemp("models")
    configs = {
        "prism": PrismConfig(**SIZES, hidden_dropout=0.1),
        "gpt2": GPT2Config(
            vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=1, eos_token_id=2
        ),
        "llama": LlamaConfig(**SIZES),
        "gpt_neox": GPTNeoXConfig(**SIZES, bos_token_id=1, eos_token_id=2),
    }
    for name, config in configs.items():
        config.save_pretrained(root / name)
    return {name: str(root / name) for name in configs}


def test_measures_every_phase_of_every_model(folders, tmp_path):
    output = tmp_path / "results" / "throughput.json"
    arguments = ThroughputArguments(
        models=list(folders.values()), reference=folders["gpt2"], output=str(output), **SMALL
    )
    result = run_benchmark(arguments)
    assert json.loads(output.read_text()) == result

    assert {"date", "hardware", "torch", "transformers", "python", "revision"} == result["header"].keys()
    assert result["reference"] == "gpt2"
    assert result["arguments"]["batch_size"] == 2
    assert tuple(result["phases"]) == PHASES
    for phase, by_model in result["phases"].items():
        assert list(by_model) == list(folders)
        assert set(by_model["gpt2"]["tokens_ratio"].values()) == {1}
        for entry in by_model.values():
            assert 0 < entry["seconds"]["min"] <= entry["seconds"]["median"] <= entry["seconds"]["max"]
            tokens = 2 * (3 if phase == "decoding" else 12)
            assert entry["tokens_per_second"]["max"] == tokens / entry["seconds"]["min"]
            assert (entry["peak_bytes"] is not None) == PeakMemory(torch.device("cpu")).measurable
            assert entry["peak_bytes"] is None or entry["peak_bytes"]["min"] > 0
            assert ("flops_per_token" in entry) == (phase != "decoding")

    model = AutoModelForCausalLM.from_config(PrismConfig(**SIZES))
    prism = {phase: by_model["prism"] for phase, by_model in result["phases"].items()}
    assert prism["training"]["flops_per_token"] == training_flops_per_token(model, 12)
    assert prism["prefill"]["flops_per_token"] == forward_flops_per_token(model, 12, logits_to_keep=1)
    assert result["models"]["prism"]["parameters"] == model.num_parameters()

    report = format_report(result)
    assert all(f"### {phase.capitalize()}" in report for phase in PHASES)
    assert report.count("| gpt_neox (sdpa) |") == len(PHASES)


def test_ratios_are_taken_round_by_round():
    measured = {
        "a": {"seconds": [1.0, 2.0, 4.0], "peak_bytes": []},
        "b": {"seconds": [0.5, 2.0, 1.0], "peak_bytes": [5, 9, 7]},
    }
    results = summarize(measured, "a", tokens=8, flops={"a": {"flops": 10}, "b": {"flops": 5}})
    assert results["b"]["tokens_per_second"] == {"median": 8, "min": 4, "max": 16}
    assert results["b"]["tokens_ratio"] == {"median": 2, "min": 1, "max": 4}
    assert results["b"]["flops_ratio"] == {"median": 1, "min": 0.5, "max": 2}
    assert results["b"]["flops_per_second"] == {"median": 40, "min": 20, "max": 80}
    assert results["b"]["peak_bytes"]["max"] == 9 and results["a"]["peak_bytes"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_command_line(folders, capsys, dtype):
    options = [item for key, value in SMALL.items() for item in (f"--{key}", str(value))]
    main([folders["prism"], folders["llama"], *options, "--dtype", dtype, "--attn_implementation", "eager"])
    assert "| llama (eager) |" in capsys.readouterr().out


def test_trained_weights_are_loaded_and_dropout_is_off(folders, tmp_path):
    arguments = ThroughputArguments(models=list(folders.values()), **SMALL)
    torch.manual_seed(7)
    trained = AutoModelForCausalLM.from_config(PrismConfig(**SIZES, hidden_dropout=0.1))
    trained.save_pretrained(tmp_path)
    arm = load_arm(str(tmp_path), "trained", arguments)
    torch.testing.assert_close(arm.model.state_dict(), trained.state_dict())
    for name, folder in folders.items():
        model = load_arm(folder, name, arguments).model
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} <= {0.0}


def test_two_configs_of_one_folder(tmp_path):
    """Softmax against uniform routing, in the same shape."""
    folder = str(tmp_path / "spherical")
    SphericalConfig(**{**SIZES, "max_position_embeddings": 4}).save_pretrained(folder)
    arms = [f"{folder}:max_position_embeddings=12", f"{folder}:max_position_embeddings=12,attention_routing=uniform"]
    result = run_benchmark(ThroughputArguments(models=arms, **SMALL))
    softmax, uniform = (f"spherical{arm.removeprefix(folder)}" for arm in arms)
    assert list(result["models"]) == [softmax, uniform] and result["reference"] == softmax
    assert result["models"][softmax]["parameters"] == result["models"][uniform]["parameters"]
    training = result["phases"]["training"]
    assert training[uniform]["flops_per_token"] < training[softmax]["flops_per_token"]


@pytest.mark.skipif(
    not PeakMemory(torch.device("cpu")).measurable, reason="no peak of the resident set on this system"
)
@pytest.mark.parametrize("from_heap", [False, True])
def test_peak_memory_is_that_of_what_was_allocated_in_between(from_heap, request):
    if from_heap:
        # As in a long-running process: the C library serves large blocks from its heap, and keeps them.
        m_trim_threshold, m_mmap_max, c_library = -1, -4, ctypes.CDLL(None)
        for option, value, default in ((m_mmap_max, 0, 65536), (m_trim_threshold, 2**30, 2**17)):
            assert c_library.mallopt(option, value)
            request.addfinalizer(functools.partial(c_library.mallopt, option, default))
    memory = PeakMemory(torch.device("cpu"))
    before = memory.now()
    memory.reset()
    held = torch.ones(2**24)  # 64 MiB
    del held
    assert memory.peak() - before == pytest.approx(2**26, rel=0.1)
    memory.reset()
    assert memory.peak() - before < 2**23
