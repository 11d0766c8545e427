"""The training command, end to end on tiny models: what it writes, that it resumes exactly, what it refuses."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from modeling_prism import PrismConfig
from training import pretrain, tell
from training.callbacks import noise_schedule, scheduled_noise_coefficient, tell_story
from training.command import TrainingDiverged
from training.command import run as command_line
from training.loading import load_config, parse_overrides
from training.options import ModelArguments, parse_arguments
from training.resume import last_complete_checkpoint, remove_checkpoints


pytestmark = pytest.mark.experiment

ROOT = Path(__file__).parent.parent
GROKKING = "configuration/recipes/grokking.yaml"
SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}


def run(recipe, output_dir, *options):
    return pretrain.main([str(recipe), "--output_dir", str(output_dir), *map(str, options)])


def run_process(recipe, output_dir, *options, launcher=(), code=None):
    """Runs the command in its own process, after the Python `code`."""
    script = f"{code or ''}\nimport sys\nfrom training import pretrain\npretrain.main(sys.argv[1:])\n"
    file = Path(output_dir).parent / f"{Path(output_dir).name}.py"
    file.write_text(script)
    command = [*(launcher or [sys.executable]), str(file), str(recipe), "--output_dir", str(output_dir), *options]
    # With the same number of threads, because another number rounds sums differently.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(folder, other):
    first, second = weights(folder), weights(other)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def assert_same_run(folder, other):
    assert_same_weights(folder, other)
    for config in (AutoModelForCausalLM.from_pretrained(path).config for path in (folder, other)):
        assert config.noise_coefficient == pytest.approx(0.10)


def test_a_run_writes_a_model_that_loads_and_tells(finished):
    output_dir, result = finished
    assert result["tokens_seen"] == 6 * 4 * 32
    assert result["parameters"] == AutoModelForCausalLM.from_pretrained(output_dir).num_parameters()
    assert result == json.loads((output_dir / "results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    model = AutoModelForCausalLM.from_pretrained(output_dir)
    tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=5, min_new_tokens=5)
    assert tokenizer.decode(tokens[0]).startswith("Once upon a time")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_tokens_seen_counts_short_batches(recipe, tmp_path):
    # Every step is an epoch: the batch holds more than there is.
    few = ["--num_train_stories", 6, "--eval_strategy", "no", "--save_strategy", "no", "--sample_max_new_tokens", 0]
    large = run(recipe, tmp_path / "large", *few, "--per_device_train_batch_size", 4000, "--max_steps", 3)
    history = json.loads((tmp_path / "large" / "trainer_state.json").read_text())["log_history"]
    assert [log["epoch"] for log in history if "grad_norm" in log] == [1, 2, 3]
    # The last batch of an epoch is a smaller one.
    epochs = ["--per_device_train_batch_size", 25, "--max_steps", -1, "--num_train_epochs", 3]
    small = run(recipe, tmp_path / "small", *few, *epochs)
    assert large["tokens_seen"] == small["tokens_seen"] < 3 * 4000 * 32
    for name, result in (("large", large), ("small", small)):
        assert f" {result['tokens_seen']:,} tokens |" in (tmp_path / name / "README.md").read_text()
    seconds = [log["train_runtime"] for log in history if "train_runtime" in log][-1]
    assert large["tokens_seen"] / seconds <= large["tokens_per_second"] < 3 * 4000 * 32 / seconds


def test_an_evaluation_prints_one_line_and_a_story(recipe, tmp_path, capfd):
    options = ["--max_steps", 4, "--eval_on_start", True, "--eval_steps", 2, "--sample_max_new_tokens", 5]
    run(recipe, tmp_path / "run", *options)
    out = capfd.readouterr().out
    metrics = r"loss \d\.\d{3}, bits per byte \d\.\d{3}"
    assert re.findall(rf"Step (\d) of 4: {metrics}(?:, [\d,]+ tokens/s, [\d:]+ left)?\n    \S", out) == ["0", "2", "4"]
    assert out.count("tokens/s") == 2 and "{'" not in out


def test_the_model_is_evaluated_before_during_and_after(finished):
    output_dir, result = finished
    state = json.loads((output_dir / "trainer_state.json").read_text())
    evaluations = [log for log in state["log_history"] if "eval_bits_per_byte" in log]
    assert [log["step"] for log in evaluations] == [0, 3, 6]
    assert evaluations[-1]["eval_bits_per_byte"] == result["bits_per_byte"] < evaluations[0]["eval_bits_per_byte"]
    samples = [json.loads(line) for line in (output_dir / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 3, 6]
    assert all(sample["story"].startswith("Once upon a time") for sample in samples)


def test_lambda_follows_its_schedule(finished):
    assert scheduled_noise_coefficient(0, 6) == 0.01 and scheduled_noise_coefficient(3, 6) == pytest.approx(0.055)
    assert scheduled_noise_coefficient(6, 6) == scheduled_noise_coefficient(7, 6) == pytest.approx(0.10)
    history = json.loads((finished[0] / "trainer_state.json").read_text())["log_history"]
    logged = {log["step"]: log["noise_coefficient"] for log in history if "grad_norm" in log}
    assert logged == {step: scheduled_noise_coefficient(step, 6) for step in range(1, 7)}
    checkpoint = AutoModelForCausalLM.from_pretrained(finished[0] / "checkpoint-4")
    assert checkpoint.config.noise_coefficient == scheduled_noise_coefficient(4, 6)
    gain = checkpoint.model.layers[0].self_attn.head_gain
    assert gain.tolist() == pytest.approx([1.0, 1.0, *[-scheduled_noise_coefficient(4, 6)] * 2])


def test_lambda_is_the_default_schedule_the_config_s_own_or_what_is_given():
    default, own, plus = PrismConfig(), PrismConfig(noise_coefficient=0.05), PrismConfig(noise_coefficient=-1.0)
    assert noise_schedule(default, None, None, keep=False) == (0.01, 0.10)
    assert noise_schedule(default, None, None, keep=True) == (default.noise_coefficient,) * 2
    assert noise_schedule(own, None, None, keep=False) == (0.05, 0.05)
    assert noise_schedule(plus, None, None, keep=False) == (-1.0, -1.0)
    assert noise_schedule(own, 0.2, None, keep=False) == (0.2, 0.05)
    assert noise_schedule(LlamaConfig(), None, None, keep=False) is None
    with pytest.raises(ValueError, match="`noise_coefficient_end` is Prism's lambda, which a llama does not have"):
        noise_schedule(LlamaConfig(), None, 0.5, keep=False)


def test_a_run_with_another_lambda_is_another_run(finished, recipe):
    folder, _ = finished
    assert json.loads((folder / "run.json").read_text())["noise_coefficient_end"] == 0.10
    with pytest.raises(ValueError, match="holds another run .*noise_coefficient"):
        pretrain.main([str(recipe), "--output_dir", str(folder), "--config_overrides", "noise_coefficient=0.05"])


def test_every_saved_model_carries_its_card(finished, corpus):
    output_dir, result = finished
    for folder in (output_dir, output_dir / "checkpoint-4", output_dir / "checkpoint-6"):
        card = ModelCard.load(folder / "README.md")
        assert card.data.pipeline_tag == "text-generation" and "prism" in card.data.tags
        for part in ("PrismForCausalLM", "trust_remote_code=True", "global_batch_size: 4", "code revision"):
            assert part in card.text
        # Options of other data and defaults that nobody asks about are left out.
        for part in ("modulus", "train_fraction", "bf16", "id2label"):
            assert part not in card.text
        # Local paths are not published.
        assert str(corpus.parent) not in card.content and str(output_dir.parent) not in card.content
    metrics = {r.metric_type: r.metric_value for r in ModelCard.load(output_dir / "README.md").data.eval_results}
    assert metrics["bits_per_byte"] == pytest.approx(result["bits_per_byte"], abs=1e-4)


def test_a_finished_run_is_not_repeated(finished, recipe):
    output_dir, result = finished
    before = (output_dir / "model.safetensors").stat().st_mtime_ns
    assert run(recipe, output_dir) == result
    assert (output_dir / "model.safetensors").stat().st_mtime_ns == before


# Kills the process between the weights and the optimiser of the second checkpoint.
KILL_WHILE_SAVING = """
import os, signal
from transformers import Trainer
save = Trainer._save_optimizer_and_scheduler
def killed(self, output_dir):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, output_dir)
Trainer._save_optimizer_and_scheduler = killed
"""
# Kills the process between two checkpoints.
KILL_BETWEEN_SAVES = """
import os, signal
from training.callbacks import NoiseCoefficientCallback
def killed(self, args, state, control, **kwargs):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
NoiseCoefficientCallback.on_step_begin = killed
"""


# Kills the process before the final save.
KILL_AT_THE_END = """
import os, signal
from training.trainer import PretrainTrainer
save_model = PretrainTrainer.save_model
def killed(self, output_dir=None, **kwargs):
    if output_dir is None:
        os.kill(os.getpid(), signal.SIGKILL)
    save_model(self, output_dir, **kwargs)
PretrainTrainer.save_model = killed
"""


@pytest.mark.parametrize(
    ("code", "checkpoint"),
    [(KILL_WHILE_SAVING, 2), (KILL_BETWEEN_SAVES, 2), (KILL_AT_THE_END, 6)],
    ids=["while saving", "between saves", "at the end"],
)
def test_a_killed_run_resumes_to_the_same_end(code, checkpoint, recipe, finished, tmp_path):
    output_dir = tmp_path / "killed"
    killed = run_process(recipe, output_dir, code=code)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output_dir / "results.json").exists()
    assert last_complete_checkpoint(output_dir) == str(output_dir / f"checkpoint-{checkpoint}")
    # A damaged tokenizer in the folder does not matter: the checkpoint has its own.
    (output_dir / "tokenizer.json").write_text("{")
    result = run(recipe, output_dir)
    assert_same_run(output_dir, finished[0])
    for name in ("nats_per_token", "tokens_seen"):
        assert result[name] == finished[1][name]


def test_a_run_that_does_not_resume_ends_elsewhere(recipe, finished, tmp_path):
    # Negative control of the test above: without the checkpoint's optimizer and random state, the weights differ.
    checkpoint = finished[0] / "checkpoint-4"
    run(recipe, tmp_path / "run", "--init_from", checkpoint, "--model_config", "", "--max_steps", 2)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", finished[0])


# Spherical: with uniform routing some parameters get no gradient.
@pytest.mark.parametrize("model", ["model", "spherical"])
def test_two_processes_give_the_losses_of_one(model, recipe, tmp_path):
    # Without dropout, whose draws differ between processes.
    overrides = ["--config_overrides", "hidden_dropout=0.0", "--sample_max_new_tokens", "0"]
    overrides += ["--model_config", str(recipe.parent / model)]
    run(recipe, tmp_path / "one", *overrides)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launcher += [str(ROOT / "configuration" / "accelerate" / "two_cpus.yaml")]
    two = run_process(recipe, tmp_path / "two", *overrides, "--per_device_train_batch_size", "2", launcher=launcher)
    assert two.returncode == 0, two.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["tokens_seen"] == two["tokens_seen"]
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]
    for name in ("loss", "grad_norm", "eval_nats_per_token", "eval_bits_per_byte"):
        one, two = ([log[name] for log in history if name in log] for history in logs)
        assert one == pytest.approx(two, abs=2e-5) and len(one) >= 3, name


def test_fine_tuning_starts_from_the_model_as_it_was_saved(recipe, finished, tmp_path):
    # The recipe names a `model_config`, which gives way.
    options = ["--init_from", finished[0] / "checkpoint-4", "--learning_rate", "0"]
    run(recipe, tmp_path / "tuned", *options, "--max_steps", "1")
    before, after = (
        AutoModelForCausalLM.from_pretrained(f) for f in (finished[0] / "checkpoint-4", tmp_path / "tuned")
    )
    assert before.config.noise_coefficient == after.config.noise_coefficient == scheduled_noise_coefficient(4, 6)
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]), name
    assert "fine-tuned from" in (tmp_path / "tuned" / "README.md").read_text()


def test_the_best_model_is_saved_with_its_own_lambda(recipe, tmp_path):
    options = ["--load_best_model_at_end", "true", "--metric_for_best_model", "bits_per_byte", "--eval_steps", "2"]
    # The highest loss counts as the best, so that the best step is not the last.
    run(recipe, tmp_path / "best", *options, "--greater_is_better", "true")
    best = json.loads((tmp_path / "best" / "trainer_state.json").read_text())["best_global_step"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    assert best < 6 and saved.config.noise_coefficient == scheduled_noise_coefficient(best, 6)


def test_baselines_go_through_the_same_command(recipe, tmp_path):
    result = run(recipe, tmp_path / "gpt2", "--model_config", recipe.parent / "gpt2", "--max_steps", "2")
    assert result["model"] == "gpt2"
    card = (tmp_path / "gpt2" / "README.md").read_text()
    assert "trust_remote_code" not in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("apart", ["true", "false"])
@pytest.mark.parametrize("routing", ["softmax", "uniform"])
def test_spherical_goes_through_the_same_command(routing, apart, recipe, tmp_path):
    options = ["--config_overrides", f"attention_routing={routing}", "--keep_documents_apart", apart]
    result = run(recipe, tmp_path / "run", "--model_config", recipe.parent / "spherical", *options)
    assert result["model"] == "spherical"
    assert "normalised after every addition" in (tmp_path / "run" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.attention_routing == routing
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [log["eval_loss"] for log in history if "eval_loss" in log]
    assert losses[-1] < losses[0]


def test_stories_kept_apart(recipe, tmp_path):
    result = run(recipe, tmp_path / "apart", "--keep_documents_apart", "true", "--max_steps", "2")
    assert result["tokens_seen"] == 2 * 4 * 32


def test_push_to_hub_keeps_our_card(recipe, tmp_path, monkeypatch):
    # Records the uploads instead of reaching the hub.
    uploads = []

    class Hub:
        def create_repo(self, name, **kwargs):
            return type("RepoUrl", (), {"repo_id": name})()

        def upload_folder(self, folder_path, **kwargs):
            files = [file for file in Path(folder_path).iterdir() if file.is_file()]
            uploads.append({file.name: file.read_text(errors="replace") for file in files})
            job = concurrent.futures.Future()
            job.set_result(None)
            return job

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    options = ["--push_to_hub", "true", "--hub_model_id", "somebody/storyteller", "--max_steps", "2"]
    options += ["--hub_strategy", "checkpoint", "--load_best_model_at_end", "true", "--eval_steps", "2"]
    run(recipe, tmp_path / "pushed", *options)
    # The weights, the checkpoint and the finished model.
    assert len(uploads) >= 3 and any({"optimizer.pt", "checksums.json"} <= files.keys() for files in uploads)
    for files in uploads:
        assert str(tmp_path) not in str(files) and str(recipe.parent) not in str(files)
        assert {"README.md", "config.json", "model.safetensors", "modeling_prism.py"} <= files.keys()
        assert '"somebody/storyteller", trust_remote_code=True' in files["README.md"]
        assert "signal-noise decomposition" in files["README.md"]


def test_a_failed_push_leaves_a_finished_run_and_says_how_to_push_it(recipe, tmp_path, monkeypatch, caplog):
    def fail(trainer):
        raise ConnectionError("no route")

    name = "somebody/storyteller"
    monkeypatch.setattr(
        pretrain.PretrainTrainer, "init_hf_repo", lambda trainer: setattr(trainer, "hub_model_id", name)
    )
    monkeypatch.setattr(pretrain.PretrainTrainer, "push_to_hub", fail)
    options = ["--push_to_hub", "true", "--hub_model_id", name, "--max_steps", 1]
    options += ["--hub_strategy", "end", "--save_strategy", "no"]
    with pytest.raises(ValueError, match=f"no route.*hf upload {name}"):
        run(recipe, tmp_path / "run", *options)
    assert (tmp_path / "run" / "results.json").is_file()
    # The same command finds the run finished, and says that it does not push.
    with caplog.at_level("WARNING"):
        run(recipe, tmp_path / "run", *options)
    assert f"To push it: `hf upload {name}" in caplog.text


def test_a_checkpoint_that_is_not_pushed_does_not_end_the_run(recipe, tmp_path, monkeypatch, caplog):
    def fail(trainer, checkpoint):
        raise ConnectionError("no route")

    named = lambda trainer: setattr(trainer, "hub_model_id", "a/b")  # noqa: E731
    monkeypatch.setattr(pretrain.PretrainTrainer, "init_hf_repo", named)
    monkeypatch.setattr(pretrain.PretrainTrainer, "push_to_hub", named)
    monkeypatch.setattr(transformers.Trainer, "_push_from_checkpoint", fail)
    run(recipe, tmp_path / "run", "--push_to_hub", "true", "--hub_model_id", "a/b", "--hub_strategy", "every_save")
    assert "checkpoint-4 was not pushed (no route). Training goes on." in caplog.text
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.fixture(scope="module")
def of_a_table(tmp_path_factory):
    """Two steps of the recipe for lookup tables."""
    output_dir = tmp_path_factory.mktemp("table") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return output_dir, run(GROKKING, output_dir, "--modulus", 23, "--max_steps", 2, "--sample_max_new_tokens", 5)


def test_a_model_of_a_table_has_its_tokens(of_a_table, in_checkout, caplog):
    output_dir, result = of_a_table
    config = AutoModelForCausalLM.from_pretrained(output_dir).config
    assert config.vocab_size == json.loads((output_dir / "run.json").read_text())["config"]["vocab_size"] == 24
    assert result["tokens_seen"] == 2 * 158 * 3
    # The same command finds it again; another vocabulary is another run.
    options = ["--modulus", 23, "--max_steps", 2]
    with caplog.at_level("INFO"):
        assert run(GROKKING, output_dir, *options) == result
    assert "Using `vocab_size`=24, as many tokens as the data have, not 114" in caplog.text
    with pytest.raises(ValueError, match="`modulus` was 23, now 113"):
        run(GROKKING, output_dir, *options[2:])


def snippets(output_dir):
    """The code of a card, with the folder's path restored."""
    code = re.findall(r"```python\n(.*?)```", (output_dir / "README.md").read_text(), flags=re.DOTALL)
    return [part.replace(f'"{output_dir.name}"', repr(str(output_dir))) for part in code]


def test_the_code_of_the_card_runs(finished, of_a_table, capsys):
    for (output_dir, _), beginning in ((finished, "Once upon a time"), (of_a_table, "3 4 = ")):
        with_package, without = snippets(output_dir)
        exec(with_package, {})
        said = capsys.readouterr().out
        assert said.startswith(beginning) and len(said.strip()) > len(beginning)
        exec(without, {})


def test_the_card_of_a_table(of_a_table):
    output_dir, result = of_a_table
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.pipeline_tag is None and "text-generation" not in card.data.tags
    metrics = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert metrics == {
        "accuracy": pytest.approx(result["accuracy"], abs=1e-5),
        "nats_per_answer": pytest.approx(result["nats_per_answer"], abs=1e-5),
    }
    for part in (
        "trained from scratch, on addition modulo 23: 2 steps, 948 tokens",
        "| test, after 2 steps | |",
        f"| accuracy | {result['accuracy']:.4f} |",
        "modulus: 23",
        "The lookup table has 529 pairs. The model was trained on 158 of them (`train_fraction` 0.3), drawn with "
        "`seed` 1, and tested on the other 371.",
        "`a b =`",
    ):
        assert part in card.text, part
    for part in ("Once upon", "bits per byte", "Bits per byte", "perplexity", "biases", "tokenizer_vocab_size"):
        assert part not in card.text, part
    history = (output_dir / "trainer_state.json").read_text()
    for part in ("bits_per_byte", "perplexity"):
        assert part not in result and part not in history


def test_a_model_of_a_table_is_asked_and_tells_no_stories(of_a_table):
    output_dir, _ = of_a_table
    assert not (output_dir / "samples.jsonl").exists()
    tokenizer, model = AutoTokenizer.from_pretrained(output_dir), AutoModelForCausalLM.from_pretrained(output_dir)
    answer = model(**tokenizer("3 4 =", return_tensors="pt")).logits[0, -1].argmax().item()
    assert tell.main([str(output_dir), "--prompt", "3 4 ="]) == f"3 4 = {tokenizer.decode([answer])}"


def test_overrides_decide_the_tokens_of_a_table():
    def size(vocab_size, **arguments):
        preset = str(ROOT / "configuration" / "models" / "spherical-grok")
        arguments = ModelArguments(**{"model_config": preset, **arguments})
        return load_config(arguments, vocab_size).vocab_size

    assert size(114) == size(None) == 114
    assert (size(24), size(121), size(24, config_overrides="logit_scale=5")) == (24, 121, 24)
    assert size(24, config_overrides="logit_scale=5,vocab_size=30") == 30


def test_overrides_may_hold_lists():
    values = parse_overrides("momentum_gamma=[0.1, 2e-1],hidden_act=silu,,num_hidden_layers=2")
    assert values == {"momentum_gamma": [0.1, 0.2], "hidden_act": "silu", "num_hidden_layers": 2}


def test_weights_beside_a_model_config_are_not_read_without_a_word(finished, caplog):
    load_config(ModelArguments(model_config=str(finished[0])))
    assert "the weights there are not read. `--init_from` starts from them" in caplog.text


def test_unused_rows_are_reported(recipe, tmp_path, caplog):
    run(recipe, tmp_path / "run", "--config_overrides", "vocab_size=307", "--max_steps", 1)
    assert "`vocab_size`=307, but the tokenizer has 300 tokens: 7 rows are never used" in caplog.text


def test_numbers_as_people_write_them_are_read(recipe, tmp_path):
    settings = json.loads(recipe.read_text())
    # YAML reads 1e-3, without a point, as text, and a learning rate of 1 as an integer.
    for value, expected in (("1e-3", 1e-3), (1, 1.0)):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**settings, "learning_rate": value}))
        assert parse_arguments([str(tmp_path / "recipe.yaml")])[2].learning_rate == expected


def test_overrides_are_numbers_as_people_write_them():
    overrides = parse_overrides("a=1,b=1e-2,c=true,d=gelu,e=null")
    assert overrides == {"a": 1, "b": 0.01, "c": True, "d": "gelu", "e": None}


def test_a_finished_run_is_read_back_from_a_moved_checkout(recipe, finished, tmp_path):
    shutil.copytree(recipe.parent / "model", tmp_path / "moved")
    assert run(recipe, finished[0], "--model_config", tmp_path / "moved") == finished[1]


def unfinished(finished, folder, *checkpoints):
    """A copy of the finished run, as it was when it had saved `checkpoints` alone."""
    shutil.copytree(finished, folder)
    for file in folder.iterdir():
        if file.name not in ("run.json", "samples.jsonl", *checkpoints):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return folder


def damage(file, size=None):
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:size] if size is not None else content[:middle] + bytes(64) + content[middle + 64 :])


DAMAGES = {
    "weights with zeros inside": (lambda folder: damage(folder / "model.safetensors"), "model.safetensors is not as"),
    "truncated weights": (lambda folder: damage(folder / "model.safetensors", 500), "model.safetensors is not as"),
    "an empty optimizer": (lambda folder: damage(folder / "optimizer.pt", 0), "optimizer.pt is not as"),
    "no random state": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "an empty state": (lambda folder: (folder / "trainer_state.json").write_text("{}"), "trainer_state.json is not"),
    "no checksums": (lambda folder: (folder / "checksums.json").unlink(), "stopped while saving"),
    "damaged checksums": (lambda folder: (folder / "checksums.json").write_text("{"), "checksums.json is damaged"),
}


@pytest.mark.parametrize(("spoil", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(spoil, message, finished, tmp_path, caplog):
    folder = unfinished(finished[0], tmp_path / "run", "checkpoint-4", "checkpoint-6")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-6")
    spoil(folder / "checkpoint-6")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")
    assert f"Skipping {folder / 'checkpoint-6'}: " in caplog.text and message in caplog.text
    spoil(folder / "checkpoint-4")
    assert last_complete_checkpoint(folder) is None and "starts from the beginning" in caplog.text


def test_old_checkpoints_are_removed_and_nothing_else(tmp_path):
    def left(limit, keep, *names):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for name in (*names, "checkpoint-1-copy", "my-checkpoint-1", "checkpoint-best"):
            (tmp_path / "run" / name).mkdir(parents=True)
        remove_checkpoints(tmp_path / "run", limit, keep)
        others = {"checkpoint-1-copy", "my-checkpoint-1", "checkpoint-best"}
        found = {folder.name for folder in (tmp_path / "run").iterdir()}
        assert others <= found
        return sorted(int(name.partition("-")[2]) for name in found - others)

    three = ("checkpoint-9", "checkpoint-10", "checkpoint-11")
    assert left(None, {11}, *three) == left(0, {11}, *three) == left(3, {11}, *three) == [9, 10, 11]
    assert left(2, {11, None}, *three) == [10, 11]
    # The best is kept, and the last, from which the run resumes.
    assert left(2, {11, 9}, *three) == left(1, {11, 9}, *three) == [9, 11]
    # After a resume that passed over damaged checkpoints.
    assert left(1, {9}, *three) == [9] and left(2, {9}, *three) == [9, 11]


def without_times(history):
    timed = ("runtime", "per_second", "flos")
    return [{name: value for name, value in log.items() if not any(t in name for t in timed)} for log in history]


@pytest.fixture(scope="module")
def sparsely_logged(recipe, tmp_path_factory):
    """An uninterrupted run that logs between its checkpoints, and best at another step than the last."""
    options = ["--logging_steps", 5, "--save_total_limit", 9, "--load_best_model_at_end", "true", "--eval_steps", 2]
    options += ["--metric_for_best_model", "bits_per_byte", "--greater_is_better", "true"]
    output_dir = tmp_path_factory.mktemp("sparse") / "run"
    run(recipe, output_dir, *options)
    return output_dir, options


def test_a_best_checkpoint_is_found_in_a_moved_run_and_passed_over_if_damaged(
    sparsely_logged, recipe, tmp_path, caplog
):
    whole, options = sparsely_logged
    folder = unfinished(whole, tmp_path / "run", "checkpoint-2", "checkpoint-4", "checkpoint-6")
    best = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["best_global_step"]
    damage(folder / f"checkpoint-{best}" / "model.safetensors")
    run(recipe, folder, *options)
    assert f"Skipping {folder / f'checkpoint-{best}'}, the best so far: model.safetensors is not" in caplog.text
    assert_same_weights(folder, folder / "checkpoint-6")
    noise = AutoModelForCausalLM.from_pretrained(folder).config.noise_coefficient
    assert best < 6 and noise == scheduled_noise_coefficient(6, 6)


@pytest.mark.parametrize("checkpoints", [(2,), (2, 4), (2, 4, 6)], ids=str)
def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(
    checkpoints, sparsely_logged, recipe, tmp_path, caplog
):
    whole, options = sparsely_logged
    folder = unfinished(whole, tmp_path / "run", *(f"checkpoint-{step}" for step in checkpoints))
    damage(folder / f"checkpoint-{checkpoints[-1]}" / "optimizer.pt") if len(checkpoints) == 2 else None
    with (folder / "samples.jsonl").open("a") as stream:
        stream.write('{"step": 2, "story": "damaged \u2028\n')
    with caplog.at_level("INFO"):
        result = run(recipe, folder, *options)
    assert f"continuing from checkpoint-{2 if len(checkpoints) == 2 else checkpoints[-1]}" in caplog.text
    assert "missing keys" not in caplog.text
    assert_same_weights(folder, whole)
    files = [sorted(str(file.relative_to(run)) for file in run.rglob("*")) for run in (folder, whole)]
    assert files[0] == files[1]
    assert (folder / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    states = [json.loads((run / "trainer_state.json").read_text()) for run in (folder, whole)]
    assert without_times(states[0]["log_history"]) == without_times(states[1]["log_history"])
    assert result["tokens_per_second"] > 0


def test_a_resumed_run_uses_as_many_threads_as_before(finished, recipe, tmp_path, caplog):
    folder = unfinished(finished[0], tmp_path / "run", "checkpoint-4")
    torch.set_num_threads(2)
    try:
        with caplog.at_level("INFO"):
            run(recipe, folder)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert "Using 1 CPU threads, as before, and not 2" in caplog.text
    assert_same_run(folder, finished[0])


def test_a_run_that_saved_nothing_gives_way_to_another(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    others = tmp_path / "run.unfinished"
    others.mkdir()
    (others / "thesis.txt").write_text("mine")

    def broken(*args, **kwargs):
        raise RuntimeError("the first step fails")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the first step fails"):
        patch.setattr("transformers.Trainer.training_step", broken)
        run(recipe, folder)
    (folder / "notes.txt").write_text("kept")
    result = run(recipe, folder, "--learning_rate", "2e-2", "--max_steps", 2)
    assert json.loads((folder / "run.json").read_text())["learning_rate"] == 0.02
    assert result == json.loads((folder / "results.json").read_text())
    assert [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()] == [0, 2]
    assert (folder / "notes.txt").read_text() == "kept" and (others / "thesis.txt").read_text() == "mine"


def test_unusual_output_folders(recipe, tmp_path, monkeypatch):
    # A link to a folder, which is a mount point.
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    run(recipe, tmp_path / "link", "--max_steps", 1)
    assert (tmp_path / "disk" / "results.json").is_file() and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(recipe, ".", "--max_steps", 1)
    assert (tmp_path / "here" / "results.json").is_file()


def test_a_corpus_is_known_by_its_contents(recipe, finished, corpus, tmp_path):
    same, other = tmp_path / "same" / corpus.name, tmp_path / "other" / corpus.name
    for folder in (same, other):
        shutil.copytree(corpus, folder)
    assert run(recipe, finished[0], "--dataset_name", same) == finished[1]
    text = (other / "train.txt").read_text()
    (other / "train.txt").write_text(text[:-100] + text[-100:].swapcase())
    assert (other / "train.txt").stat().st_size == (corpus / "train.txt").stat().st_size
    with pytest.raises(ValueError, match="`corpus_sha256` was"):
        run(recipe, finished[0], "--dataset_name", other)
    shutil.copy(other / "train.txt", other / "valid.txt")
    with pytest.raises(ValueError, match="are identical"):
        run(recipe, tmp_path / "run", "--dataset_name", other)


def test_a_run_knows_the_blocks_and_the_weights_that_it_read(recipe, finished, tmp_path):
    # On the hub, a name does not say which version is read.
    tuned, options = tmp_path / "tuned", ["--model_config", "", "--init_from", finished[0], "--max_steps", 1]
    run(recipe, tuned, *options)
    assert json.loads((tuned / "run.json").read_text())["init_from"] == "finished"
    for name in ("blocks_sha256", "weights_sha256"):
        folder = unfinished(tuned, tmp_path / name, "checkpoint-1")
        found = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**found, name: "0"}))
        with pytest.raises(ValueError, match=f"`{name}` was '0', now '{found[name]}'"):
            run(recipe, folder, *options)
    # As an earlier version wrote it.
    (folder / "run.json").write_text(json.dumps({key: value for key, value in found.items() if key != name}))
    run(recipe, folder, *options)


def test_a_diverging_run_stops_and_saves_nothing_that_is_not_finite(recipe, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"at step 2: .*`learning_rate`=1e\+30 .*Kept: .*checkpoint-1"):
        run(recipe, tmp_path / "run", "--learning_rate", 1e30, "--save_steps", 1)
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-1")
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "model.safetensors").exists()
    # Weights that the last step made infinite are found before they are saved.
    with pytest.raises(TrainingDiverged, match="at step 1: .*No checkpoint was saved"):
        run(recipe, tmp_path / "last", "--learning_rate", 1e39, "--max_steps", 1)
    assert not any((tmp_path / "last").glob("checkpoint-*")) and not any((tmp_path / "last").glob("*.safetensors"))


@pytest.mark.process
def test_ctrl_c_says_in_two_lines_what_was_kept(recipe, tmp_path):
    interrupt = KILL_BETWEEN_SAVES.replace("SIGKILL", "SIGINT") + "from training import command, pretrain\n"
    # A shell that runs the tests in the background has the signal ignored.
    interrupt += "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    interrupt += "main = pretrain.main\npretrain.main = lambda argv: command.run(lambda _: main(argv))\n"
    done = run_process(recipe, tmp_path / "run", code=interrupt)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"Interrupted. Kept: {tmp_path / 'run' / 'checkpoint-2'}.",
        "The same command continues the run from there.",
    ]


def test_ctrl_c_before_the_first_step_says_it_too(recipe, finished, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "load_data", interrupted)
    for folder, says in (
        (unfinished(finished[0], tmp_path / "run", "checkpoint-4"), "Kept: .*checkpoint-4.\nThe same .* continues"),
        (tmp_path / "new", "Nothing was kept.*\nThe same command starts the run again"),
    ):
        with pytest.raises(KeyboardInterrupt, match=says):
            run(recipe, folder)


@pytest.mark.process
def test_a_mistake_ends_in_one_sentence(monkeypatch):
    command = [sys.executable, "-m", "training.pretrain", "missing.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: There is no recipe 'missing.yaml'")
    monkeypatch.setattr(sys, "argv", ["pretrain", "missing.yaml", "--debug"])
    with pytest.raises(ValueError, match="There is no recipe 'missing.yaml'"):
        command_line(pretrain.main)


def test_no_saved_file_holds_a_local_path(finished, recipe, tmp_path):
    tuned = tmp_path / "tuned"
    options = ["--model_config", "", f"--init_from={finished[0]}", "--max_steps", 1]
    run(recipe, tuned, *options)
    for file in (file for folder in (finished[0], tuned) for file in folder.rglob("*") if file.is_file()):
        for path in (finished[0].parent, recipe.parent, tmp_path):
            assert str(path).encode() not in file.read_bytes(), file
    assert "--init_from=finished" in (tuned / "README.md").read_text()


def test_lengths_fit_the_model(finished, of_a_table, capsys):
    tokenizer, model = AutoTokenizer.from_pretrained(finished[0]), AutoModelForCausalLM.from_pretrained(finished[0])
    assert tokenizer.model_max_length == model.generation_config.max_length == 32
    assert AutoTokenizer.from_pretrained(of_a_table[0]).model_max_length == 3
    assert AutoModelForCausalLM.from_pretrained(of_a_table[0]).generation_config.max_new_tokens == 1
    # Stories end with the context.
    for prompt in ("Lily had", "Lily had a red ball and Tom had a blue one, " * 5):
        told = tell.main([str(finished[0]), "--prompt", prompt, "--max_new_tokens", "99"])
        assert told.startswith(prompt)
        assert tell_story(model, tokenizer, prompt, 99).startswith(prompt)


# transformers imports scipy if it finds it, so that the test hides it.
WITHOUT_ANALYSIS = """
import sys
sys.modules.update({"matplotlib": None, "scipy": None})
import atexit
atexit.register(lambda: print("imported", [name for name in sys.modules if name.startswith("modeling_prism.ana")]))
"""


def test_training_on_stories_does_not_need_the_analysis(recipe, tmp_path):
    done = run_process(recipe, tmp_path / "run", "--dataset_name", "stories", code=WITHOUT_ANALYSIS)
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout and (tmp_path / "run" / "results.json").is_file()
