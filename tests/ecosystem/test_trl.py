import datasets
import pytest
import torch
from families import assert_near, random_ids, tiny_tokenizer
from transformers import AutoModelForCausalLM

from training.examples import finetune_with_lora, preference_tune


trl = pytest.importorskip("trl")
TEXTS = ["Lily had a red ball. ", "Tom went home to his mother. ", "The sun was warm. ", "Mia ran to the pond. "]
OPTIONS = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "per_device_train_batch_size": 2}


@pytest.mark.row("TRL", "the loss of SFT is the model's own, and training lowers it")
def test_sft(make, tmp_path):
    tokenizer = tiny_tokenizer()
    model = make(vocab_size=len(tokenizer))
    data = datasets.Dataset.from_dict({"text": 4 * TEXTS})
    arguments = trl.SFTConfig(str(tmp_path), max_steps=6, learning_rate=1e-2, max_length=32, **OPTIONS)
    trainer = trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    own = model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert_near(trainer.compute_loss(model, dict(batch)), own)
    trainer.train()
    assert trainer.compute_loss(model.eval(), dict(batch)) < own


@pytest.mark.row("TRL", "the loss of DPO is that of the model's own log-probabilities")
def test_dpo(make, tmp_path):
    tokenizer = tiny_tokenizer()
    model, reference = make(vocab_size=len(tokenizer)), make(vocab_size=len(tokenizer))
    data = datasets.Dataset.from_dict(
        {"prompt": TEXTS, "chosen": ["The end."] * 4, "rejected": ["Nobody knows why."] * 4}
    )
    arguments = trl.DPOConfig(str(tmp_path), max_steps=6, learning_rate=1e-3, beta=0.5, **OPTIONS)
    trainer = trl.DPOTrainer(model, reference, args=arguments, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()

    def answer_log_probabilities(scorer):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        log_probabilities = scorer.eval()(**inputs).logits[:, :-1].log_softmax(-1)
        of_tokens = log_probabilities.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (of_tokens * batch["completion_mask"][:, 1:]).sum(-1).chunk(2)

    with torch.no_grad():
        chosen, rejected = answer_log_probabilities(model)
        chosen_before, rejected_before = answer_log_probabilities(reference)
        margin = (chosen - chosen_before) - (rejected - rejected_before)
        expected = -torch.nn.functional.logsigmoid(0.5 * margin).mean()
        assert_near(trainer.compute_loss(model, dict(batch)), expected)
    assert expected < torch.log(torch.tensor(2.0)) and margin.abs().max() > 1e-2


@pytest.mark.row("TRL", "GRPO: training raises the reward")
def test_grpo(make, tmp_path):
    tokenizer = tiny_tokenizer()
    wanted = tokenizer("a")["input_ids"][0]
    model = make(vocab_size=len(tokenizer))
    rewards = []

    def share_of_the_wanted(completion_ids, **kwargs):
        rewards.append([sum(token == wanted for token in tokens) / len(tokens) for tokens in completion_ids])
        return rewards[-1]

    options = {**OPTIONS, "per_device_train_batch_size": 16, "num_generations": 16, "max_completion_length": 8}
    arguments = trl.GRPOConfig(str(tmp_path), max_steps=20, learning_rate=2e-2, **options)
    data = datasets.Dataset.from_dict({"prompt": 16 * TEXTS})
    trl.GRPOTrainer(model, share_of_the_wanted, arguments, data, processing_class=tokenizer).train()
    # By chance it is 0.06 +- 0.09.
    assert sum(rewards[0]) < 0.5 < sum(rewards[-1])


STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_length", "64"]


def assert_it_changed(before, after):
    ids = random_ids(1, 11)
    first, second = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (before, after))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.row("TRL, PEFT", "the script `training/examples/finetune_with_lora.py`")
def test_finetune_with_lora(folder, tmp_path):
    tuned = finetune_with_lora.main([folder, "--output_dir", str(tmp_path / "tuned"), *STEPS])
    assert_it_changed(folder, tuned)


@pytest.mark.row("TRL", "the script `training/examples/preference_tune.py`")
def test_preference_tune(folder, tmp_path):
    tuned = preference_tune.main([folder, "--output_dir", str(tmp_path / "tuned"), *STEPS])
    assert_it_changed(folder, tuned)
