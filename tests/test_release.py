"""Released models: the command that makes them, and that those in `hub_cards/` still say and score what they did."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_prism import PrismConfig
from training import evaluate, release
from training.tasks.stories import Probe


ROOT = Path(__file__).parent.parent
RELEASED = sorted(file.parent for file in (ROOT / "hub_cards").glob("*/evaluation.json"))


@pytest.fixture(scope="module")
def released(tmp_path_factory, corpus):
    """Two released models of a few steps, one of stories and one of a lookup table, and what belongs to them."""
    root = tmp_path_factory.mktemp("release")
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    PrismConfig(**sizes, vocab_size=300, max_position_embeddings=256, hidden_dropout=0.1).save_pretrained(
        root / "model"
    )
    common = {"max_steps": 3, "per_device_train_batch_size": 4, "report_to": "none", "dataloader_pin_memory": False}
    recipes = {
        "stories": {**common, "tokenizer_vocab_size": 300, "block_size": 32, "sample_max_new_tokens": 20},
        "table": {**common, "dataset_name": "addition", "modulus": 11, "block_size": 3, "sample_max_new_tokens": 0},
    }
    releases = {}
    for name, recipe in recipes.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        releases[name] = {"recipe": str(root / f"{name}.yaml"), "model_config": str(root / "model")}
    (root / "releases.yaml").write_text(yaml.safe_dump(releases))
    (root / "cards").mkdir()
    (root / "cards" / "README.md").write_text("# Index\n\n<!-- releases -->\n<!-- /releases -->\n")
    options = [f"--releases={root / 'releases.yaml'}", f"--runs={root / 'runs'}", f"--folder={root / 'cards'}"]
    release.main(["stories", f"--dataset_name={corpus}", "--seeds", "0", "1", *options])
    release.main(["table", *options])
    return root


@pytest.mark.experiment
def test_a_released_folder_holds_the_model_of_its_run_in_bf16(released):
    folder, run_folder = released / "cards" / "stories", released / "runs" / "seed0" / "stories"
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = AutoModelForCausalLM.from_pretrained(run_folder)
    assert model.dtype == torch.bfloat16
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.bfloat16()), name
    assert {"modeling_prism.py", "tokenizer.json", "generation_config.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 256 == model.generation_config.max_length

    evaluation = json.loads((folder / "evaluation.json").read_text())
    results = [
        json.loads((released / "runs" / f"seed{seed}" / "stories" / "results.json").read_text()) for seed in (0, 1)
    ]
    assert evaluation["bits_per_byte_of_seeds"] == [result["bits_per_byte"] for result in results]
    bits = evaluation["measures"]["bits_per_byte"]
    assert bits["low"] < bits["value"] < bits["high"]
    assert bits["value"] == pytest.approx(results[0]["bits_per_byte"], rel=0.01)


@pytest.mark.experiment
def test_the_card_and_the_index_hold_the_same_table(released):
    card = ModelCard.load(released / "cards" / "stories" / "README.md")
    index = (released / "cards" / "README.md").read_text()
    row = next(line for line in index.splitlines() if line.startswith("| `stories`"))
    assert row in card.content and "2 seeds" in row
    assert "CDLA-Sharing-1.0" in card.content and card.content.count("\n> ") == 3 and str(released) not in card.content
    assert "<!-- releases -->" not in (released / "cards" / "table" / "README.md").read_text()


@pytest.mark.experiment
def test_a_changed_weight_changes_the_fingerprint(released):
    for name in ("stories", "table"):
        folder = released / "cards" / name
        check = json.loads((folder / "evaluation.json").read_text())["check"]
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert release.fingerprint(model, tokenizer) == check
        torch.manual_seed(0)
        model.get_input_embeddings().weight.data.normal_()
        assert release.fingerprint(model, tokenizer) != check


@pytest.mark.experiment
def test_a_refresh_writes_the_code_anew_and_nothing_else(released):
    folder = released / "cards" / "stories"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "modeling_prism.py").write_text("old")
    places = [f"--releases={released / 'releases.yaml'}", f"--folder={released / 'cards'}"]
    release.main(["stories", "--refresh", "true", *places])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.experiment
def test_a_push_sends_the_folder_and_a_card_that_loads_from_the_hub(released, monkeypatch):
    sent = {}
    monkeypatch.setattr(release.HfApi, "create_repo", lambda api, name, **kwargs: None)
    monkeypatch.setattr(release.HfApi, "upload_folder", lambda api, **kwargs: sent.update(kwargs))
    monkeypatch.setattr(release.ModelCard, "push_to_hub", lambda card, name: sent.update(card=card.content))
    places = [f"--releases={released / 'releases.yaml'}", f"--folder={released / 'cards'}"]
    release.main(["stories", "--push_to_hub", "me/stories", *places])
    assert sent["repo_id"] == "me/stories" and sent["folder_path"] == released / "cards" / "stories"
    assert 'pipeline("text-generation", "me/stories")' in sent["card"] and str(released) not in sent["card"]


def test_endings_are_the_last_sentences_of_stories():
    stories = [
        f"Tom had a {thing}. He lost it. He found the {thing} again." for thing in ("hat", "ball", "car", "box")
    ]
    probes = list(evaluate.endings(stories, seed=0))
    assert probes[0].prompt + probes[0].answer == stories[0] and probes[0].answer == " He found the hat again."
    assert sorted(probes[0].wrong_answers) == sorted(
        f" He found the {thing} again." for thing in ("ball", "car", "box")
    )


def test_shares_come_with_wilson_intervals():
    found = evaluate.share_of([True] * 8 + [False] * 2)
    # Newcombe (1998) gives the formula; these are its values at 8 of 10.
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


def test_agreement_asks_for_both_numbers_and_is_balanced():
    probes = list(evaluate.agreements())
    answers = [probe.answer for probe in probes if probe.kind.startswith("number")]
    assert answers.count(" was") == answers.count(" were") == 7 + 7 * 4
    assert Probe("pronoun", "Ben was very happy. Then", " he", (" she",)) in probes


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_a_released_model_says_and_scores_what_it_did(folder, capfd):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    check, found = json.loads((folder / "evaluation.json").read_text())["check"], release.fingerprint(model, tokenizer)
    assert found["greedy"] == check["greedy"]
    assert found["nats_per_token"] == pytest.approx(check["nats_per_token"], abs=1e-3)
    # After a change: `python -m training.release NAME --refresh true`.
    for file in folder.glob("*.py"):
        assert file.read_text() == (ROOT / "modeling_prism" / file.name).read_text(), file.name
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
