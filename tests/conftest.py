import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


# Before torch and transformers read them, and handed on to the processes that tests start. One thread, so that workers
# do not fight over cores and sums round alike everywhere; a cache of their own, so that workers do not share files.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = HF_HOME = tempfile.mkdtemp(prefix="modeling-prism-tests-")
# No test needs the hub; looking for what is not there would take half a minute each.
os.environ["HF_HUB_OFFLINE"] = "1"
# Compiled code too: a killed run leaves half a file in the common cache, which every later run would load.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(HF_HOME, "inductor")

import pytest
import torch
import yaml
from transformers import GPT2Config

from modeling_prism import PrismConfig, SphericalConfig
from training import pretrain
from training.experiments import __main__ as experiments
from training.experiments.common import jobs
from training.tasks.stories import stories


def pytest_unconfigure():
    shutil.rmtree(HF_HOME, ignore_errors=True)


SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def deterministic():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train.txt and valid.txt: real TinyStories if they lie beside the checkout, else built-in ones."""
    folder = tmp_path_factory.mktemp("corpus")
    real = Path(__file__).parent.parent.parent / "shared" / "data" / "tinystories"
    for file, split, num_stories in (("train.txt", "train", 60), ("valid.txt", "validation", 20)):
        if (real / file).is_file():
            texts = (real / file).read_text(encoding="utf-8").split("<|endoftext|>")[:num_stories]
        else:
            texts = [f"{text}\n" for text in stories(split, num_stories)["text"]]
        (folder / file).write_text("<|endoftext|>\n".join(text.lstrip("\n") for text in texts), encoding="utf-8")
    return folder


@pytest.fixture
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def toy_recipe(tmp_path, request):
    """(changes) -> file: the recipe `tinystories_2m` with short blocks and a small vocabulary."""

    def write(**changes):
        published = request.config.rootpath / "configuration/recipes/tinystories_2m.yaml"
        recipe = yaml.safe_load(published.read_text(encoding="utf-8"))
        changes = {"block_size": 32, "tokenizer_vocab_size": 300, **changes}
        assert changes.keys() <= recipe.keys()
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**recipe, **changes}), encoding="utf-8")
        return file

    return write


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs of experiments without the seconds that a fresh interpreter takes to import torch."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", lambda processes, **_: ThreadPoolExecutor(processes))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_experiment(tmp_path):
    """(name, **options) -> rows of results.jsonl: an experiment on the command line, in folders below `tmp_path`."""

    def run(name, **options):
        options = {"jobs": 1, "output_dir": tmp_path / "runs", "results_dir": tmp_path / "results", **options}
        lists = {option: value if isinstance(value, list) else [value] for option, value in options.items()}
        experiments.main([name, *(str(word) for option, words in lists.items() for word in (f"--{option}", *words))])
        return jobs.read_results(options["results_dir"])

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, corpus):
    """The file of a recipe for a run of a few seconds."""
    folder = tmp_path_factory.mktemp("recipe")
    PrismConfig(**SIZES, num_attention_heads=4, hidden_dropout=0.1, max_position_embeddings=32).save_pretrained(
        folder / "model"
    )
    sizes = {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 32, "attention_routing": "uniform"}
    SphericalConfig(**sizes).save_pretrained(folder / "spherical")
    GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=32).save_pretrained(folder / "gpt2")
    settings = {
        "model_config": str(folder / "model"),
        "dataset_name": str(corpus),
        "num_train_stories": 40,
        "num_validation_stories": 8,
        "tokenizer_vocab_size": 300,
        "block_size": 32,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 1,
        "sample_max_new_tokens": 8,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory):
    """An uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("run") / "finished"
    return output_dir, pretrain.main([str(recipe), "--output_dir", str(output_dir)])
