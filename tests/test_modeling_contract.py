"""What transformers and its users expect of any decoder-only model, for every family and variant."""

import ast
import copy
import itertools
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from families import (
    CASES,
    COMMON,
    DEFAULT_CASES,
    DOCUMENTS,
    FAMILIES,
    PAD,
    PADDINGS,
    ROUTING_CASES,
    STATE_CASES,
    TOLERANCE,
    VISIBLE,
    VOCAB,
    Case,
    assert_near,
    head_parameter,
    leaves,
    left_pad,
    logits_error,
    loss_of,
    positions_from_mask,
    random_ids,
    right_pad,
)
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
    Trainer,
    TrainingArguments,
)

import modeling_prism


transformers_logger = logging.getLogger("transformers")


OPTIONS = {
    "momentum": {"momentum_streams": ("qk", "k", "q"), "momentum_placement": ("post_rope", "pre_rope")},
    "spherical": {
        "residual_norm": ("sphere", "layer_norm", "rms_norm"),
        "bounded_unembedding": (True, False),
        "attention_routing": ("softmax", "uniform"),
    },
}


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


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_reference(case, tied, attn_implementation):
    model = case.model(attn_implementation=attn_implementation, tie_word_embeddings=tied)
    weights, ids = leaves(model), random_ids(2, 11)
    expected = case.family.reference_logits(weights, model.config, ids)
    logits = model(ids).logits
    for output in (expected, logits):
        # Gradients of about 1, where 1e-5 is ten roundings of fp32.
        (loss_of(output) / 8).backward()
    assert_near(logits, expected)
    for name, parameter in model.named_parameters():
        if "uniform" in case.variant and ("q_proj" in name or "k_proj" in name):
            assert parameter.grad is None and weights[name].grad is None, name
            continue
        assert weights[name].grad.abs().max() > 10 * TOLERANCE, f"the test cannot see an error in {name}"
        assert_near(parameter.grad, weights[name].grad, msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_different_functions(name):
    ids, outputs = random_ids(2, 11), []
    for values in itertools.product(*OPTIONS[name].values()):
        model = Case(name, "default").model(**dict(zip(OPTIONS[name], values)))
        outputs.append(model(ids).logits)
    for logits, other in itertools.combinations(outputs, 2):
        assert (logits - other).abs().max() > VISIBLE


@pytest.mark.compile
@pytest.mark.parametrize("case", [*ROUTING_CASES, STATE_CASES[1]])
def test_flex_attention_equals_the_reference(case):
    assert logits_error(case.model(attn_implementation="flex_attention")) < TOLERANCE


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


def counts_by_the_mask(case, pad):
    """Whether padding is harmless without position ids: distances of RoPE are relative, learned positions absolute."""
    if case.family_name == "spherical" or pad is right_pad:
        return True
    return pad is left_pad and case.variant != "learned_positions"


@pytest.mark.parametrize("positions", [True, False], ids=["positions", "mask_alone"])
@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_padding_has_no_influence(case, attn_implementation, pad, positions):
    if not positions and not counts_by_the_mask(case, pad):
        pytest.skip("without position ids, padding counts: there is nothing to compare with")
    model = case.model(attn_implementation=attn_implementation)
    ids, mask = pad(DOCUMENTS)
    real = mask.bool()
    arguments = {"attention_mask": mask, "position_ids": positions_from_mask(mask) if positions else None}
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, **arguments).logits
    unmasked = model(ids, **{**arguments, "attention_mask": torch.ones_like(mask)}).logits
    for row, document in enumerate(DOCUMENTS):
        plain = model(document[None]).logits[0]
        assert_near(logits[row, real[row]], plain)
        if pad is not right_pad and len(document) < 11:
            assert (unmasked[row, real[row]] - plain).abs().max() > VISIBLE

    (gradient,) = torch.autograd.grad(loss_of(logits[real]), embeds)
    assert gradient.isfinite().all() and gradient[~real].eq(0).all()
    for value in (1.0, -1e9):
        other = torch.where(real[..., None], embeds.detach(), torch.full_like(embeds, value))
        assert torch.equal(model(inputs_embeds=other, **arguments).logits[real], logits[real])


@pytest.mark.parametrize("case", CASES)
def test_inputs_embeds(case):
    model, ids = case.model(), random_ids(2, 11)
    embeds = model.get_input_embeddings()(ids)
    assert_near(model(inputs_embeds=embeds).logits, model(ids).logits)


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


@pytest.mark.parametrize("case", ROUTING_CASES)
@torch.no_grad()
def test_a_mask_is_read_as_llama_reads_it(case):
    model = case.model()
    llama = LlamaForCausalLM(LlamaConfig(**COMMON, num_attention_heads=4, initializer_range=0.2)).eval()
    ids, mask = left_pad(DOCUMENTS)
    doubtful = [2 * mask, -mask, mask.float(), mask * 0.3, mask.bool(), torch.cat((mask, 0 * mask), dim=1)]
    doubtful.append(torch.cat((mask, mask), dim=1))
    for reader in (llama, model):
        expected = reader(ids, attention_mask=mask).logits[mask.bool()]
        for other in doubtful:
            assert_near(reader(ids, attention_mask=other).logits[mask.bool()], expected)


@pytest.mark.parametrize("case", CASES)
def test_a_forward_pass_on_the_meta_device(case):
    """Tools that estimate memory do this. (Position ids of one's own fail, in Llama too.)"""
    logits = case.model().to("meta")(random_ids(2, 11).to("meta")).logits
    assert logits.is_meta and logits.shape == (2, 11, VOCAB)


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


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_other_documents_have_no_influence(case, attn_implementation):
    model, lengths = case.model(attn_implementation=attn_implementation), [4, 1, 6]
    ids, positions = random_ids(2, 11), torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    parts = model(inputs_embeds=embeds, position_ids=positions).logits.split(lengths, dim=1)
    for index, part in enumerate(parts):
        others = torch.cat([torch.full((length,), index != other) for other, length in enumerate(lengths)])
        (gradient,) = torch.autograd.grad(loss_of(part), embeds, retain_graph=True)
        assert gradient[:, others].abs().max() < 1e-9 < VISIBLE < gradient[:, ~others].abs().max()
        changed = torch.where(others[:, None], torch.full_like(embeds, 1e9), embeds)
        logits = model(inputs_embeds=changed, position_ids=positions).logits
        assert_near(logits.split(lengths, dim=1)[index], part)


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
@pytest.mark.parametrize("pad", [None, *PADDINGS])
@pytest.mark.parametrize("case", ROUTING_CASES)
def test_an_exported_graph_takes_every_length(case, pad):
    model, length = case.model(use_cache=False), torch.export.Dim("length", min=2, max=60)
    example, other = {"input_ids": random_ids(2, 5)}, {"input_ids": random_ids(3, 11)}
    if pad is not None:
        example["attention_mask"] = torch.ones(2, 5, dtype=torch.long)
        other["input_ids"], other["attention_mask"] = pad(DOCUMENTS)
    shapes = {name: {0: torch.export.Dim.AUTO, 1: length} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    assert not [node for node in program.graph.nodes if "cummax" in str(node.target)], "ONNX has no cummax"
    real = other.get("attention_mask", torch.ones_like(other["input_ids"])).bool()
    assert_near(program.module()(**other).logits[real], model(**other).logits[real])


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


def selected(cache):
    cache.batch_select_indices(torch.tensor([2, 0, 2]))
    return [2, 0, 2]


def selected_fewer(cache):
    cache.batch_select_indices(torch.tensor([1]))
    return [1]


def repeated(cache):
    cache.batch_repeat_interleave(2)
    return [0, 0, 1, 1, 2, 2]


def reordered(cache):
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    return [1, 1, 0]


@pytest.mark.parametrize("change", [selected, selected_fewer, repeated, reordered])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rows_of_a_cache_move_with_all_that_belongs_to_them(case, change):
    model, ids = case.model(), random_ids(3, 11)
    cache = model(ids[:, :6]).past_key_values
    rows = change(cache)
    assert_near(model(ids[rows, 6:], past_key_values=cache).logits, model(ids).logits[rows, 6:])


def shallow(cache):
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, shallow])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_copy_of_a_cache_is_not_touched_by_the_original(case, copied):
    model, ids, others = case.model(), random_ids(2, 11), random_ids(2, 5, seed=3)
    cache = model(ids[:, :6]).past_key_values
    prefix = copied(cache)
    # Token by token too, where states are replaced rather than extended.
    for step in range(5):
        model(others[:, step : step + 1], past_key_values=cache)
    cache.reset()
    assert_near(model(ids[:, 6:], past_key_values=prefix).logits, model(ids).logits[:, 6:])


@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_cache_that_is_reset_starts_again(case, make_cache):
    model, ids = case.model(), random_ids(3, 11)
    size = {"max_cache_len": 16} if make_cache is StaticCache else {}
    cache = make_cache(config=model.config, **size)
    # A static cache keeps the size of its batch.
    model(random_ids(3 if size else 1, 7, seed=5), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    logits = [model(ids[:, start:end], past_key_values=cache).logits for start, end in ((0, 6), (6, 11))]
    assert_near(torch.cat(logits, dim=1), model(ids).logits)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_use_cache_default_makes_a_cache_in_eval(case):
    model, ids = case.model(), random_ids(2, 11)
    cache = model(ids).past_key_values
    assert isinstance(cache, DynamicCache) and cache.get_seq_length() == 11
    assert model(ids, past_key_values=cache).past_key_values is cache and cache.get_seq_length() == 22
    assert model(ids, use_cache=False).past_key_values is None
    assert case.model(use_cache=False)(ids).past_key_values is None


# Weights


@pytest.mark.parametrize("case", CASES)
def test_tied_weights_are_one_storage_saved_once(case, tmp_path):
    model, ids = case.model(), random_ids(2, 11)
    assert head_parameter(model) is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("lm_head") for name in saved)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert head_parameter(loaded) is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_untied_weights(case, tmp_path):
    model, ids = case.model(tie_word_embeddings=False), random_ids(2, 11)
    assert head_parameter(model) is not model.model.embed_tokens.weight
    assert (model.lm_head.weight - model.model.embed_tokens.weight).abs().max() > VISIBLE
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_every_parameter_is_the_attribute_of_its_name():
    """FSDP2 shards what it finds under the name of a parameter."""
    for case in (*(case.values[0] for case in CASES), Case("spherical", "unbounded")):
        model = case.model(tie_word_embeddings=False)
        for name, parameter in model.named_parameters():
            place, _, attribute = name.rpartition(".")
            assert getattr(model.get_submodule(place), attribute) is parameter, name


NEW_WEIGHTS = {
    "Model": set(),
    "ForSequenceClassification": {"score.weight"},
    "ForTokenClassification": {"score.weight", "score.bias"},
    "ForQuestionAnswering": {"qa_outputs.weight", "qa_outputs.bias"},
}


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_every_head_loads_the_weights_of_the_others(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    for head, new in NEW_WEIGHTS.items():
        loaded, info = case.family.get_class(head).from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == new and not info["unexpected_keys"]
        weights = getattr(loaded, "model", loaded).state_dict()
        for name, weight in model.model.state_dict().items():
            assert torch.equal(weights[name], weight), name
        loaded.save_pretrained(tmp_path / head)
        _, info = type(model).from_pretrained(tmp_path / head, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    base, ids = case.model("Model"), random_ids(2, 11)
    base.save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(head_parameter(loaded), base.embed_tokens.weight)
    assert_near(loaded(ids).logits, loaded.lm_head(base(ids).last_hidden_state))


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_loading_says_nothing(case, tmp_path, caplog, monkeypatch):
    """No report of a head that a base model lacks, none of a tied head when Trainer resumes."""
    monkeypatch.setattr(transformers_logger, "propagate", True)
    case.model(tie_word_embeddings=False).save_pretrained(tmp_path / "untied")
    AutoModel.from_pretrained(tmp_path / "untied")
    tied = case.model(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    saved = load_file(tmp_path / "tied" / "model.safetensors")
    result = case.model(seed=1).load_state_dict(saved, strict=False)
    assert not result.missing_keys and not result.unexpected_keys
    assert not caplog.records


def test_weights_of_another_family_are_refused(tmp_path):
    models = {name: Case(name, "default").model() for name in FAMILIES}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    for name, model in models.items():
        for other in models.keys() - {name}:
            with pytest.raises(ValueError, match=f"holds a model of type `{other}`"):
                type(model).from_pretrained(tmp_path / other)
            with pytest.raises(ValueError, match=f"do not fit {type(model).__name__}: it lacks model"):
                type(model).from_pretrained(tmp_path / other, config=model.config)


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
    assert head_parameter(model) is model.model.embed_tokens.weight
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
def test_lora_targets_are_the_matrices_of_the_layers_that_a_loss_reaches(case):
    model, ids = case.model(), random_ids(2, 11)
    model(ids, labels=ids).loss.backward()
    weights = model.model.layers.named_parameters()
    reached = {name for name, weight in weights if weight.dim() == 2 and weight.grad is not None}
    targets = modeling_prism.lora_targets(model)
    assert targets == modeling_prism.lora_targets(model.model)
    parts = [f".{part}.weight" for part in targets["target_modules"]] + (targets["target_parameters"] or [])
    for part in parts:
        found = {name for name in reached if name.endswith(part)}
        assert len(found) == model.config.num_hidden_layers, part
        reached -= found
    assert not reached


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


# The other heads


@pytest.mark.parametrize("case", ROUTING_CASES)
def test_heads_that_read_every_token(case):
    """A linear layer on the last states, and the loss of its labels."""
    ids, labels = random_ids(2, 11), torch.randint(3, (2, 11))
    model = case.model("ForTokenClassification", num_labels=3)
    outputs = model(ids, labels=labels)
    assert_near(outputs.logits, model.model(ids).last_hidden_state @ model.score.weight.T + model.score.bias)
    assert_near(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()))

    model, starts, ends = case.model("ForQuestionAnswering"), torch.tensor([2, 0]), torch.tensor([7, 3])
    outputs = model(ids, start_positions=starts, end_positions=ends)
    expected = model.model(ids).last_hidden_state @ model.qa_outputs.weight.T + model.qa_outputs.bias
    assert_near(torch.stack((outputs.start_logits, outputs.end_logits), dim=-1), expected)
    losses = [torch.nn.functional.cross_entropy(expected[..., index], at) for index, at in enumerate((starts, ends))]
    assert_near(outputs.loss, sum(losses) / 2)


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


def test_a_saved_config_may_hold_what_other_tools_wrote(tmp_path):
    config = DEFAULT_CASES[0].values[0].config()
    config.written_by = "a tool"
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).written_by == "a tool"


@pytest.mark.parametrize("family_name", FAMILIES)
def test_a_config_of_another_architecture_of_the_same_name_is_refused(family_name, tmp_path):
    theirs = {"model_type": family_name, "hidden_size": 32, "num_hidden_layers": 2, "perceiver_config": {"depth": 3}}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    for read in (AutoConfig.from_pretrained, FAMILIES[family_name].get_class("Config").from_pretrained):
        with pytest.raises(ValueError, match=f"type `{family_name}` that has `perceiver_config`, but not"):
            read(tmp_path)
    # A folder of Llama's may hold more, as ours may.
    if family_name == "momentum":
        llama = {**theirs, "model_type": "llama", "num_attention_heads": 2, "transformers_version": "5.23.0"}
        (tmp_path / "config.json").write_text(json.dumps(llama))
        assert modeling_prism.MomentumConfig.from_pretrained(tmp_path).perceiver_config == {"depth": 3}


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_a_config_that_is_saved_alone_names_no_file_that_is_missing(case, tmp_path):
    case.model().save_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.save_pretrained(tmp_path / "alone")
    for folder, known in (("model", 6), ("alone", 1)):
        auto_map = json.loads((tmp_path / folder / "config.json").read_text())["auto_map"]
        files = {place.partition(".")[0] + ".py" for place in auto_map.values()}
        assert len(auto_map) == known and files <= {path.name for path in (tmp_path / folder).iterdir()}
    assert len(config.auto_map) == 6, "what is in memory stays"


def test_prefix_tuning_reads_the_shape_of_keys_in_a_config(tmp_path):
    """PEFT reads `head_dim` only where there is `num_key_value_heads`."""
    config = Case("prism", "uneven").config()
    config.save_pretrained(tmp_path)
    for read in (config, type(config).from_pretrained(tmp_path), type(config).from_dict(config.to_dict())):
        found = read.to_dict()
        assert (found["num_key_value_heads"], found["head_dim"]) == (6, 16)


BUILT = [("prism", "num_signal_heads", 2), ("momentum", "momentum_streams", "q"), ("spherical", "hidden_act", "gelu")]


@pytest.mark.parametrize("family_name, name, value", BUILT)
def test_a_field_that_a_model_was_built_from_does_not_change(family_name, name, value):
    """The model would compute with the old value and be saved with the new one."""
    model = Case(family_name, "default").model()
    before = getattr(model.config, name)
    reloaded = pickle.loads(pickle.dumps(model))
    for built in (model, copy.deepcopy(model), reloaded):
        with pytest.raises(ValueError, match=f"`{name}` cannot change: a model was built with"):
            setattr(built.config, name, value)
        setattr(built.config, name, before)
    # A copy of the config alone is free, and nothing of this is saved.
    other = copy.deepcopy(model.config)
    setattr(other, name, before)
    assert type(other).from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()
    assert not any(key.startswith("_model") for key in model.config.to_dict())


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
