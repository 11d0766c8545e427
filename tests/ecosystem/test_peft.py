import pytest
import torch
from families import TOLERANCE, VISIBLE, assert_near

import modeling_prism


peft = pytest.importorskip("peft")


def train_save_reload_merge(make, ids, folder, **targets):
    """An adapter that is trained changes the model, and does the same after it was saved and after it was merged."""
    model = peft.get_peft_model(make(), peft.LoraConfig(r=4, lora_alpha=16, **targets)).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-2)
    losses = []
    for _ in range(8):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - VISIBLE
    logits = model.eval()(ids).logits.detach()
    assert (logits - make()(ids).logits).abs().max() > VISIBLE
    model.save_pretrained(folder)
    assert_near(peft.PeftModel.from_pretrained(make(), folder).eval()(ids).logits, logits)
    merged = model.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, logits, atol=10 * TOLERANCE, rtol=1e-4)


@pytest.mark.row("PEFT", 'LoRA on `target_modules="all-linear"`: train, save, reload, merge')
def test_all_linear(make, ids, tmp_path):
    train_save_reload_merge(make, ids, tmp_path, target_modules="all-linear")


@pytest.mark.row("PEFT", "LoRA on `lora_targets(model)`: train, save, reload, merge")
def test_lora_targets(make, ids, tmp_path):
    train_save_reload_merge(make, ids, tmp_path, **modeling_prism.lora_targets(make()))


BOUNDED = dict.fromkeys(("spherical", "spherical-uniform"), "SphericalUnembedding.* is not supported")


@pytest.mark.row("PEFT", "LoRA on the head: train, save, reload, merge", refused=BOUNDED)
def test_head(make, ids, tmp_path):
    train_save_reload_merge(make, ids, tmp_path, target_modules=["lm_head"])


@pytest.mark.row("PEFT", "LoRA on the embeddings: train, save, reload, merge")
def test_embeddings(make, ids, tmp_path):
    train_save_reload_merge(make, ids, tmp_path, target_modules=["embed_tokens"])


STATES = {
    "momentum": "has no place for the state of the previous token",
    "spherical-uniform": "cannot keep the running means",
}


@pytest.mark.row("PEFT", "prefix tuning: train, generate", refused=STATES)
def test_prefix_tuning(make, ids):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make(), config)
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters() if weight.requires_grad)
    tokens = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    expected = model(tokens[:, :-1]).logits[:, -4:].argmax(-1)
    assert torch.equal(tokens[:, -4:], expected)


@pytest.mark.row("PEFT", "prompt tuning: train, generate")
def test_prompt_tuning(make, ids):
    model = peft.get_peft_model(make(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters() if weight.requires_grad)
    tokens = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    expected = model(tokens[:, :-1]).logits[:, -4:].argmax(-1)
    assert torch.equal(tokens[:, -4:], expected)
