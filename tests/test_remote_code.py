"""
Folders written by the package load with `trust_remote_code=True` where the package is missing: in another process,
outside the checkout, with an import hook that refuses the package.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from families import DEFAULT_CASES, random_ids, tiny_tokenizer
from transformers import (
    AutoConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)


pytestmark = pytest.mark.process

WRITERS = {
    "base": "Model",
    "causal": "ForCausalLM",
    "checkpoint-2": "ForCausalLM",
    "classifier": "ForSequenceClassification",
    "tagger": "ForTokenClassification",
    "answerer": "ForQuestionAnswering",
}
AUTO_CLASSES = {
    f"AutoModel{head.removeprefix('Model')}": getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    for head in dict.fromkeys(WRITERS.values())
}
PROMPT = "Once upon a time"

CHILD = """
import json, os, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_prism", "families"):
            raise ImportError(name + " is refused here")

sys.meta_path.insert(0, Refuse())
try:
    import modeling_prism
    sys.exit("the package can be imported")
except ImportError:
    pass

import torch, transformers
from transformers import AutoConfig, AutoTokenizer, pipeline

root, writers, auto_names, prompt = json.loads(sys.argv[1])
ids = torch.load(os.path.join(root, "ids.pt"))
outputs, facts = {}, {}

def first_output(model):
    with torch.no_grad():
        return model.eval()(ids)[0]

for writer in writers:
    folder = os.path.join(root, writer)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    facts[writer] = {"AutoConfig": [type(config).__name__, type(config).__module__]}
    for auto_name in auto_names:
        auto_class = getattr(transformers, auto_name)
        model = auto_class.from_pretrained(folder, trust_remote_code=True)
        facts[writer][auto_name] = [type(model).__name__, type(model).__module__]
        outputs[writer, auto_name] = first_output(model)
        copy = folder + "_again_" + auto_name
        model.save_pretrained(copy)
        again = auto_class.from_pretrained(copy, trust_remote_code=True)
        outputs[writer, auto_name, "again"] = first_output(again)
    fresh = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    facts[writer]["from_config"] = [type(fresh).__name__, type(fresh).__module__]

folder = os.path.join(root, "checkpoint-2")
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=False)
    facts["without trust"] = "loaded"
except ValueError as error:
    facts["without trust"] = str(error)
generator = pipeline("text-generation", folder, trust_remote_code=True, device="cpu")
facts["text"] = generator(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"]
torch.save(outputs, os.path.join(root, "outputs.pt"))
with open(os.path.join(root, "facts.json"), "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture(scope="module", params=[case.values[0] for case in DEFAULT_CASES], ids=lambda case: case.family_name)
def exported(request, tmp_path_factory):
    """(case, folder, outputs, facts): what was written here, and what the other process saw of it."""
    case, root = request.param, tmp_path_factory.mktemp("exported")
    tokenizer = tiny_tokenizer()
    for name, head in WRITERS.items():
        case.model(head, vocab_size=len(tokenizer)).save_pretrained(root / name)
    model = case.model(vocab_size=len(tokenizer))
    documents = [{"input_ids": random_ids(11, seed=seed), "labels": random_ids(11, seed=seed)} for seed in range(8)]
    arguments = TrainingArguments(root, max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(model=model, args=arguments, train_dataset=documents, processing_class=tokenizer).train()
    torch.save(random_ids(2, 11), root / "ids.pt")

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "child.py").write_text(CHILD)
    environment = {
        **{
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "TRANSFORMERS"))
        },
        "HF_HOME": str(elsewhere / "home"),
        "HF_MODULES_CACHE": str(elsewhere / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    # -I: neither the working directory nor PYTHONPATH is on the path.
    child = subprocess.run(
        [sys.executable, "-I", "child.py", json.dumps([str(root), list(WRITERS), list(AUTO_CLASSES), PROMPT])],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-6000:]
    return case, root, torch.load(root / "outputs.pt"), json.loads((root / "facts.json").read_text())


@pytest.mark.parametrize("writer", WRITERS)
def test_the_folder_holds_the_flat_files_and_no_other_code(exported, writer):
    case, root, _, _ = exported
    folders = [root / writer, *(root / f"{writer}_again_{name}" for name in AUTO_CLASSES)]
    for folder in folders:
        assert sorted(path.name for path in folder.rglob("*.py")) == sorted(case.family.remote_files), folder
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        module, prefix = f"modeling_{case.family_name}", case.family.prefix
        assert auto_map == {
            "AutoConfig": f"configuration_{case.family_name}.{prefix}Config",
            "AutoModel": f"{module}.{prefix}Model",
            "AutoModelForCausalLM": f"{module}.{prefix}ForCausalLM",
            "AutoModelForSequenceClassification": f"{module}.{prefix}ForSequenceClassification",
            "AutoModelForTokenClassification": f"{module}.{prefix}ForTokenClassification",
            "AutoModelForQuestionAnswering": f"{module}.{prefix}ForQuestionAnswering",
        }, folder


@pytest.mark.parametrize("writer", WRITERS)
def test_classes_come_from_the_folder(exported, writer):
    case, _, _, facts = exported
    heads = {"AutoConfig": "Config", "AutoModel": "Model", "from_config": "ForCausalLM"}
    for auto_name, (class_name, module) in facts[writer].items():
        assert class_name == case.family.prefix + heads.get(auto_name, auto_name.removeprefix("AutoModel"))
        assert module.startswith("transformers_modules."), module
    assert set(facts[writer]) == {"AutoConfig", "from_config", *AUTO_CLASSES}


@pytest.mark.parametrize("again", [(), ("again",)], ids=["first", "saved_again"])
@pytest.mark.parametrize("writer", WRITERS)
def test_outputs_equal_those_of_the_package(exported, writer, again):
    case, root, outputs, _ = exported
    ids = random_ids(2, 11)
    for auto_name, auto_class in AUTO_CLASSES.items():
        actual = outputs[(writer, auto_name, *again)]
        head = auto_name.removeprefix("AutoModel")
        if head not in ("", "ForCausalLM", WRITERS[writer]):
            # The head is new there and drawn at random; saving keeps it.
            assert torch.equal(actual, outputs[writer, auto_name])
            continue
        model = auto_class.from_pretrained(root / writer).eval()
        assert type(model).__module__.startswith("modeling_prism.")
        with torch.no_grad():
            torch.testing.assert_close(actual, model(ids)[0], atol=1e-5, rtol=0)


def test_folders_hold_different_weights(exported):
    """So that the outputs above cannot agree by accident."""
    _, _, outputs, _ = exported
    first, second = (outputs[writer, "AutoModelForCausalLM"] for writer in ("causal", "checkpoint-2"))
    assert (first - second).abs().max() > 1e-3


def test_without_trust_nothing_is_loaded(exported):
    *_, facts = exported
    assert "trust_remote_code" in facts["without trust"]


def test_pipeline_gives_the_same_text_with_remote_code_and_with_the_package(exported):
    case, root, _, facts = exported
    generator = pipeline("text-generation", str(root / "checkpoint-2"), device="cpu")
    assert type(generator.model).__module__.startswith("modeling_prism.")
    text = generator(PROMPT, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert text == facts["text"]
    assert text.startswith(PROMPT) and len(text) > len(PROMPT)
    short = generator("a", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    batch = generator([PROMPT, "a"], max_new_tokens=8, do_sample=False, batch_size=2)
    assert [outputs[0]["generated_text"] for outputs in batch] == [text, short]


def test_config_of_the_package_reads_every_folder(exported):
    case, root, _, _ = exported
    for writer in WRITERS:
        config = AutoConfig.from_pretrained(root / writer)
        assert type(config) is case.family.get_class("Config")
        assert config.vocab_size == len(tiny_tokenizer())
