import copy

import pytest
import torch
from families import DOCUMENTS, assert_near, random_ids, right_pad


def loss_and_gradients(model, ids):
    model.train()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert_near(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_near(found[1][name], gradient)


@pytest.mark.row("transformers", "gradient checkpointing: the same gradients")
def test_gradient_checkpointing(make, ids):
    expected, model = loss_and_gradients(make(), ids), make()
    model.gradient_checkpointing_enable()
    assert_same_gradients(loss_and_gradients(model, ids), expected)


@pytest.mark.row("transformers", "NEFTune (`neftune_noise_alpha`): noise in training alone, and the loss falls")
def test_neftune(make, tmp_path):
    from transformers import Trainer, TrainingArguments

    model, rows = make(), [{"input_ids": ids, "labels": ids} for ids in random_ids(4, 11)]
    clean = model(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).loss.item()
    options = {"neftune_noise_alpha": 1.0, "max_steps": 20, "learning_rate": 1e-2, "logging_steps": 1}
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", **options)
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] and losses[0] != pytest.approx(clean, abs=1e-6)
    first, second = (model.eval()(rows[0]["input_ids"][None]).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.row("torch", "FSDP2 (`fully_shard`), one process: the same gradients")
def test_fsdp2(make, ids, tmp_path):
    from torch.distributed.fsdp import fully_shard

    expected, model = loss_and_gradients(make(), ids), make()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        loss, gradients = loss_and_gradients(model, ids)
        whole = {name: gradient.full_tensor() for name, gradient in gradients.items()}
        assert_same_gradients((loss, whole), expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.row("torch", "activations in bf16 (`torch.autocast`): the loss of fp32, to 1 %")
def test_autocast(make, ids):
    expected, model = loss_and_gradients(make(), ids), make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = loss_and_gradients(model, ids)
    assert loss.item() == pytest.approx(expected[0].item(), rel=0.01)


@pytest.mark.row("torch", "a copy trains alone (`copy.deepcopy`)")
def test_deepcopy(make, ids):
    model = make()
    before, copied = model(ids).logits, copy.deepcopy(model)
    _, gradients = loss_and_gradients(copied, ids)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            weight -= 0.1 * gradients.get(name, 0)
    assert torch.equal(model(ids).logits, before) and not torch.equal(copied.eval()(ids).logits, before)


@pytest.mark.row("transformers", "label smoothing in `Trainer`: the loss of its formula")
def test_label_smoothing(make, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = make()
    ids, mask = right_pad(DOCUMENTS)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, label_smoothing_factor=0.1)
    found = Trainer(model, arguments).compute_loss(model, dict(batch))
    log_probabilities = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)[mask[:, 1:] == 1]
    labels = ids[:, 1:][mask[:, 1:] == 1]
    nats = -log_probabilities.gather(1, labels[:, None])
    assert_near(found, 0.9 * nats.mean() - 0.1 * log_probabilities.mean())
