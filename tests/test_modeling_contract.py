"""What transformers and its users expect of any decoder-only model, for every family and variant."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from families import (
    CASES,
    DEFAULT_CASES,
    DOCUMENTS,
    PAD,
    PADDINGS,
    ROUTING_CASES,
    VISIBLE,
    VOCAB,
    assert_near,
    left_pad,
    positions_from_mask,
    random_ids,
)
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache, Trainer, TrainingArguments

import modeling_prism


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    # Uniform routing leaves queries and keys out.
    unused = ("q_proj", "k_proj") if getattr(model.config, "attention_routing", None) == "uniform" else ()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if not any(part in name for part in unused)
    }


# What a forward returns


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case):
    model, ids = case.model(), random_ids(2, 11)
    with torch.no_grad():
        assert_near(model(ids).logits, case.family.reference_logits(model, model.config, ids))


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_attentions(case):
    model, ids = case.model(attn_implementation="eager"), random_ids(2, 11)
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads

    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 11, 32)] * (layers + 1)
    assert_near(outputs.logits, model.lm_head(outputs.hidden_states[-1]))
    assert_near(model.model(ids).last_hidden_state, outputs.hidden_states[-1])
    for before, after in zip(outputs.hidden_states, outputs.hidden_states[1:]):
        assert (after - before).abs().max() > VISIBLE

    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, heads, 11, 11)] * layers
    for weights in outputs.attentions:
        assert_near(weights.sum(-1), torch.ones(2, heads, 11))
        assert weights.triu(1).eq(0).all()
    assert model(ids).hidden_states is None and model(ids).attentions is None


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_tuple_output(case):
    model, ids = case.model(), random_ids(2, 11)
    assert_near(model(ids, return_dict=False)[0], model(ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_eager_equals_sdpa_forward_and_backward(case):
    ids, results = random_ids(2, 11), []
    for attention in ("eager", "sdpa"):
        model = case.model(attn_implementation=attention)
        outputs = model(ids, labels=ids)
        results.append((outputs.logits.detach(), gradients(model, outputs.loss)))
    assert_near(*[logits for logits, _ in results])
    for name in results[0][1]:
        assert_near(*[grads[name] for _, grads in results], msg=name)


@pytest.mark.parametrize("case", CASES)
def test_loss_is_that_of_the_next_token(case):
    model, ids = case.model(), random_ids(2, 11)
    outputs = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    assert_near(outputs.loss, expected)
    ignored = ids.clone()
    ignored[:, 6:] = -100
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :5].reshape(-1, VOCAB), ids[:, 1:6].reshape(-1))
    assert_near(model(ids, labels=ignored).loss, expected)


@pytest.mark.parametrize("case", DEFAULT_CASES)
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_bf16_forward_is_finite_and_near_fp32(case, attn_implementation):
    ids, mask = left_pad([random_ids(11), random_ids(4)])
    model = case.model(attn_implementation=attn_implementation)
    expected = model(ids, attention_mask=mask).logits
    logits = model.bfloat16()(ids, attention_mask=mask).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    difference = (logits.float() - expected)[mask.bool()].abs()
    assert difference.mean() < 0.03 * expected.abs().mean() + 0.01


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_dropout_works_in_training_only(case):
    ids = random_ids(2, 11)
    config = case.config()
    names = [name for name in ("hidden_dropout", "attention_dropout") if hasattr(config, name)]
    assert names
    for name in names:
        model = case.model(attn_implementation="eager", **{name: 0.3})
        assert_near(model(ids).logits, case.model()(ids).logits)
        model.train()
        assert (model(ids).logits - model(ids).logits).abs().max() > VISIBLE, name


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_bf16_autocast_with_padding_and_a_cache(case):
    model = case.model()
    ids, mask = left_pad(DOCUMENTS)
    expected = model(ids, attention_mask=mask).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = DynamicCache(config=model.config)
        first = model(ids[:, :9], attention_mask=mask[:, :9], past_key_values=cache).logits
        rest = model(ids[:, 9:], attention_mask=mask, past_key_values=cache).logits
    difference = (torch.cat((first, rest), dim=1).float() - expected)[mask.bool()].abs()
    assert difference.mean() < 0.03 * expected.abs().mean() + 0.01


# Gradient checkpointing


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_gives_the_same_gradients(case, use_reentrant, monkeypatch):
    ids, model = random_ids(2, 11), case.model().train()
    expected = gradients(model, model(ids, labels=ids).loss)

    calls = []
    attention = type(model.model.layers[0].self_attn)
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda self, *a, **k: calls.append(self) or forward(self, *a, **k))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    actual = gradients(model, model(ids, labels=ids).loss)
    assert len(calls) == 2 * model.config.num_hidden_layers, "nothing was computed again"
    for name in expected:
        assert_near(actual[name], expected[name], msg=name)


# Arguments


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_left_padding_equals_unpadded(case, attn_implementation):
    documents = [random_ids(length, seed=length) for length in (11, 3, 7)]
    ids, mask = left_pad(documents)
    model = case.model(attn_implementation=attn_implementation)
    positions = positions_from_mask(mask)
    padded = model(ids, attention_mask=mask, position_ids=positions).logits
    unmasked = model(ids, position_ids=positions, attention_mask=torch.ones_like(mask)).logits
    for row, document in enumerate(documents):
        plain = model(document[None]).logits[0]
        assert_near(padded[row, -len(document) :], plain)
        if len(document) < 11:
            assert (unmasked[row, -len(document) :] - plain).abs().max() > VISIBLE


@pytest.mark.parametrize("case", CASES)
def test_right_padding_equals_unpadded(case):
    model, document = case.model(), random_ids(7)
    ids = torch.cat((document, torch.full((4,), PAD)))[None]
    logits = model(ids, attention_mask=(ids != PAD).long()).logits
    assert_near(logits[0, :7], model(document[None]).logits[0])


@pytest.mark.parametrize("case", CASES)
def test_inputs_embeds(case):
    model, ids = case.model(), random_ids(2, 11)
    embeds = model.get_input_embeddings()(ids)
    assert_near(model(inputs_embeds=embeds).logits, model(ids).logits)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model()


@pytest.mark.parametrize("case", CASES)
def test_logits_to_keep(case):
    model, ids = case.model(), random_ids(2, 11)
    logits = model(ids).logits
    assert_near(model(ids, logits_to_keep=1).logits, logits[:, -1:])
    assert_near(model(ids, logits_to_keep=4).logits, logits[:, -4:])
    assert_near(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


@pytest.mark.parametrize("case", CASES)
def test_position_ids(case):
    model, ids = case.model(), random_ids(2, 11)
    expected = model(ids).logits
    positions = torch.arange(11)[None]
    assert_near(model(ids, position_ids=positions).logits, expected)
    assert_near(model(ids, position_ids=positions.expand(2, -1)).logits, expected)
    uneven = torch.arange(0, 44, 4)[None].expand(2, -1)
    mask = torch.ones_like(ids)
    logits = model(ids, position_ids=uneven, attention_mask=mask).logits
    assert (logits - expected).abs().max() > VISIBLE
    with torch.no_grad():
        assert_near(logits, case.family.reference_logits(model, model.config, ids, uneven))


# Prism leaves its masks to transformers.
@pytest.mark.parametrize("case", [case for case in ROUTING_CASES if case.id != "prism"])
def test_a_mask_that_does_not_cover_the_cache_is_refused(case):
    model = case.model()
    cache = model(random_ids(2, 5)).past_key_values
    with pytest.raises(ValueError, match="`attention_mask` has 2 columns for 5 cached and 2 new"):
        model(random_ids(2, 2), attention_mask=torch.tensor([[0, 1], [1, 1]]), past_key_values=cache)


# Packed documents


def packed_batch():
    documents = [[random_ids(length, seed=length) for length in lengths] for lengths in ((4, 1, 6), (2, 9))]
    ids = torch.stack([torch.cat(row) for row in documents])
    positions = torch.stack([torch.cat([torch.arange(len(document)) for document in row]) for row in documents])
    return documents, ids, positions


def separate_logits(model, documents):
    return torch.stack([torch.cat([model(document[None]).logits[0] for document in row]) for row in documents])


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_packed_documents_equal_the_separate_ones(case, attn_implementation, train):
    documents, ids, positions = packed_batch()
    model = case.model(attn_implementation=attn_implementation).train(train)
    expected = separate_logits(model, documents)
    assert_near(model(ids, position_ids=positions).logits, expected)
    # Where the documents are not told apart, the test sees it.
    unpacked = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    assert (unpacked - expected).abs().max() > VISIBLE


@pytest.mark.compile
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_packed_documents_under_compile(case, attn_implementation, train):
    documents, ids, positions = packed_batch()
    model = case.model(attn_implementation=attn_implementation).train(train)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(compiled(ids, position_ids=positions).logits, separate_logits(model, documents))


# Compiling


@pytest.mark.compile
@pytest.mark.parametrize("case", CASES)
def test_compile_fullgraph_equals_eager(case):
    ids, model = random_ids(2, 11), case.model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(compiled(ids).logits, model(ids).logits)


@pytest.mark.compile
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_compile_fullgraph_with_inductor_equals_eager_forward_and_backward(case):
    ids, model = random_ids(2, 11), case.model(num_hidden_layers=1).train()
    expected = model(ids, labels=ids)
    expected_gradients = gradients(model, expected.loss)
    actual = torch.compile(model, fullgraph=True)(ids, labels=ids)
    assert_near(actual.logits, expected.logits)
    for name, gradient in gradients(model, actual.loss).items():
        assert_near(gradient, expected_gradients[name], msg=name)


@pytest.mark.compile
@pytest.mark.parametrize("case", ROUTING_CASES)
@pytest.mark.parametrize("pad", PADDINGS)
def test_padding_under_compile(case, pad):
    model = case.model()
    ids, mask = pad(DOCUMENTS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(ids, attention_mask=mask, position_ids=positions_from_mask(mask)).logits
    for row, document in enumerate(DOCUMENTS):
        assert_near(logits[row, mask[row].bool()], model(document[None]).logits[0])


# Caches


@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("case", CASES)
def test_cache(case, make_cache):
    model, ids = case.model(), random_ids(2, 11)
    expected = model(ids, use_cache=False)
    assert expected.past_key_values is None
    size = {"max_cache_len": 16} if make_cache is StaticCache else {}
    cache = make_cache(config=model.config, **size)
    with torch.no_grad():
        first = model(ids[:, :6], past_key_values=cache)
        assert first.past_key_values is cache and cache.get_seq_length() == 6
        rest = model(ids[:, 6:], past_key_values=cache)
    assert_near(torch.cat((first.logits, rest.logits), dim=1), expected.logits)
    assert cache.get_seq_length() == 11


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_use_cache_default_makes_a_cache_in_eval(case):
    model, ids = case.model(), random_ids(2, 11)
    assert isinstance(model(ids).past_key_values, DynamicCache)
    assert case.model(use_cache=False)(ids).past_key_values is None


# Weights


@pytest.mark.parametrize("case", CASES)
def test_tied_weights_are_one_storage_saved_once(case, tmp_path):
    model, ids = case.model(), random_ids(2, 11)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" not in saved
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_untied_weights(case, tmp_path):
    model, ids = case.model(tie_word_embeddings=False), random_ids(2, 11)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert (model.lm_head.weight - model.model.embed_tokens.weight).abs().max() > VISIBLE
    with torch.no_grad():
        assert_near(model(ids).logits, case.family.reference_logits(model, model.config, ids))
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_every_head_loads_the_weights_of_the_others(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    for head in ("Model", "ForSequenceClassification"):
        loaded, info = case.family.get_class(head).from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == ({"score.weight"} if head != "Model" else set())
        weights = getattr(loaded, "model", loaded).state_dict()
        for name, weight in model.model.state_dict().items():
            assert torch.equal(weights[name], weight), name
    base, ids = case.model("Model"), random_ids(2, 11)
    base.save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(loaded.lm_head.weight, base.embed_tokens.weight)
    assert_near(loaded(ids).logits, loaded.lm_head(base(ids).last_hidden_state))


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_auto_classes_know_the_family(case):
    model = case.model()
    assert type(AutoModelForCausalLM.from_config(model.config)) is type(model)
    assert type(model.config).model_type == model.config.model_type == case.family_name


@pytest.mark.parametrize("new_size", [120, 80])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_resize_token_embeddings(case, new_size):
    model, ids = case.model(), random_ids(2, 11).clamp(max=70)
    expected = model(ids).logits
    model.resize_token_embeddings(new_size)
    assert model.config.vocab_size == model.vocab_size == new_size
    assert model.lm_head.weight is model.model.embed_tokens.weight
    logits = model(ids, labels=ids).logits
    assert logits.shape == (2, 11, new_size)
    kept = min(new_size, VOCAB)
    assert_near(logits[..., :kept], expected[..., :kept])


@pytest.mark.parametrize("case", CASES)
def test_initial_weights_are_the_same_from_the_same_seed_and_finite(case):
    first, second, other = (dict(case.model(head="Model", seed=seed).named_parameters()) for seed in (0, 0, 1))
    for name, weight in first.items():
        assert weight.isfinite().all()
        assert torch.equal(weight, second[name])
        assert not torch.equal(weight, other[name]), name


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_no_split_modules_and_plans_name_what_exists(case):
    model = case.model()
    classes = {type(module).__name__ for module in model.modules()}
    assert model._no_split_modules and set(model._no_split_modules) <= classes
    assert type(model.model.layers[0]).__name__ in model._no_split_modules
    assert case.family.attention_class in classes
    names = {name for name, _ in model.model.named_modules()}
    plan = type(model.config).base_model_tp_plan
    assert plan
    for pattern in plan:
        assert pattern.replace("*", "0") in names, pattern
    children = {name for name, _ in model.model.named_children()}
    assert set(type(model.config).base_model_pp_plan) <= children


@pytest.mark.parametrize("case", CASES)
def test_load_with_a_device_map(case, tmp_path):
    model, ids = case.model(), random_ids(2, 11)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = type(model).from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(ids).logits, model(ids).logits)


# Sequence classification


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_sequence_classification_reads_the_last_token(case):
    model = case.model("ForSequenceClassification", num_labels=3)
    documents = [random_ids(length, seed=length) for length in (11, 4, 7)]
    expected = torch.cat([model(document[None]).logits for document in documents])
    assert expected.shape == (3, 3)
    last = model.model(documents[1][None]).last_hidden_state[0, -1] @ model.score.weight.T
    assert_near(expected[1], last)

    ids, mask = left_pad(documents)
    left = model(ids, attention_mask=mask, position_ids=positions_from_mask(mask)).logits
    assert_near(left, expected)
    ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=PAD)
    assert_near(model(ids, attention_mask=(ids != PAD).long()).logits, expected)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_sequence_classification_loss(case):
    model, ids = case.model("ForSequenceClassification", num_labels=3), random_ids(4, 11)
    labels = torch.tensor([0, 2, 1, 2])
    outputs = model(ids, labels=labels)
    assert_near(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, outputs.loss).values())


# Training


class RandomDocuments(Dataset):
    def __init__(self, labels_are_tokens: bool):
        self.labels_are_tokens = labels_are_tokens

    def __len__(self):
        return 12

    def __getitem__(self, index):
        ids = random_ids(11, seed=index)
        return {"input_ids": ids, "labels": ids if self.labels_are_tokens else index % 2}


@pytest.mark.experiment
@pytest.mark.parametrize("head", ["ForCausalLM", "ForSequenceClassification"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_plain_trainer_fine_tunes(case, head, tmp_path):
    model = case.model(head)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    arguments = TrainingArguments(
        tmp_path,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    dataset = RandomDocuments(head == "ForCausalLM")
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset)
    before_loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.evaluate()["eval_loss"] < before_loss
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, before[name]), name
    # A checkpoint of step 2 goes on to the same weights.
    resumed = Trainer(model=case.model(head, seed=9), args=arguments, train_dataset=dataset)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, weight), other in zip(model.named_parameters(), resumed.model.parameters()):
        assert_near(other, weight, msg=name)


# Configuration


@pytest.mark.parametrize("case", DEFAULT_CASES)
@pytest.mark.parametrize("name, value", [("num_hidden_layers", 0), ("attention_dropout", -0.1), ("hidden_act", "rlu")])
def test_a_field_is_checked_when_it_is_assigned(case, name, value):
    config = case.config()
    before = getattr(config, name)
    with pytest.raises(ValueError, match=f"`{name}`.*got {value!r}"):
        setattr(config, name, value)
    assert getattr(config, name) == before


# Files


def imported_modules(path):
    """Top-level names of absolute imports, and relative imports with their dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + node.module if node.level else node.module.partition(".")[0]


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_files_that_travel_import_what_every_user_has(case):
    package = Path(modeling_prism.__file__).parent
    siblings = {"." + name.removesuffix(".py") for name in case.family.remote_files}
    for name in case.family.remote_files:
        imported = set(imported_modules(package / name))
        assert imported - set(sys.stdlib_module_names) <= {"torch", "transformers", "huggingface_hub"} | siblings
    assert set(imported_modules(package / "reference.py")) == {"torch"}
