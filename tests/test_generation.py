"""
Decoding, for every family and variant: whatever mixture of padding, chunks, cache and strategy, what comes out is what
plain runs of unpadded documents without a cache give. Negative controls break the cache, the positions or the mask on
purpose and see the same check fail.
"""

import random

import pytest
import torch
from families import (
    CASES,
    DEFAULT_CASES,
    DOCUMENTS,
    PAD,
    PADDINGS,
    ROUTING_CASES,
    STATE_CASES,
    TOLERANCE,
    VISIBLE,
    VOCAB,
    Case,
    assert_near,
    left_pad,
    positions_from_mask,
    random_ids,
    right_pad,
)
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    StaticLayer,
)
from transformers.integrations.executorch import convert_and_export_with_cache
from transformers.utils import logging

from modeling_prism import state_previous_token
from modeling_prism.state_spherical import RunningMeanLayer


CACHES = {"dynamic": DynamicCache, "static": StaticCache}
LENGTHS = (13, 5, 9)


# Logits


def call(model, ids, attention_mask, position_ids, cache):
    return model(ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache).logits


@torch.no_grad()
def chunked_error(model, cache_name, seed, call=call):
    """
    Largest difference between the logits of plain runs and those of a left-padded batch that is prefilled in random
    chunks and then fed token by token.
    """
    draw = random.Random(seed)
    documents = [random_ids(length, seed=10 * seed + length) for length in LENGTHS]
    ids, mask = left_pad(documents)
    # No row is free of padding.
    extra = draw.randint(1, 3)
    ids = torch.nn.functional.pad(ids, (extra, 0), value=PAD)
    mask = torch.nn.functional.pad(mask, (extra, 0))
    positions, total = positions_from_mask(mask), ids.shape[1]

    prefill = total - 4
    cuts = [0, *sorted(draw.sample(range(1, prefill), 3)), *range(prefill, total + 1)]
    size = {"max_cache_len": total + draw.randint(0, 3)} if cache_name == "static" else {}
    cache = CACHES[cache_name](config=model.config, **size)
    pieces = [
        call(model, ids[:, start:end], mask[:, :end], positions[:, start:end], cache)
        for start, end in zip(cuts, cuts[1:])
    ]
    logits = torch.cat(pieces, dim=1)
    assert logits.shape == (len(documents), total, VOCAB)
    errors = []
    for row, document in enumerate(documents):
        plain = model(document[None], use_cache=False).logits[0]
        errors.append((logits[row, -len(document) :] - plain).abs().max().item())
    return max(errors)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("cache_name", CACHES)
@pytest.mark.parametrize("case", CASES)
def test_padded_chunks_then_tokens_equal_plain_runs(case, cache_name, attn_implementation, seed):
    assert chunked_error(case.model(attn_implementation=attn_implementation), cache_name, seed) < TOLERANCE


@pytest.mark.parametrize("positions", [True, False], ids=["positions", "mask_alone"])
@pytest.mark.parametrize("cuts", [(2,), (5,), (8,), (9,), (3, 5, 8, 9), range(1, 11)], ids=str)
@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize("cache_name", CACHES)
@pytest.mark.parametrize("case", [*ROUTING_CASES, STATE_CASES[1]])
@torch.no_grad()
def test_chunks_of_any_padding_equal_plain_runs(case, cache_name, pad, cuts, positions):
    """With left padding to 11 tokens the documents start at 0, 8 and 4: before, in and after a chunk."""
    if not positions and pad is not left_pad and case.family_name != "spherical":
        pytest.skip("without position ids, distances of RoPE count the padding between tokens")
    model = case.model()
    ids, mask = pad(DOCUMENTS)
    size = {"max_cache_len": 24} if cache_name == "static" else {}
    cache = CACHES[cache_name](config=model.config, **size)
    pieces, bounds = [], [0, *cuts, ids.shape[1]]
    for start, end in zip(bounds, bounds[1:]):
        places = positions_from_mask(mask)[:, start:end] if positions else None
        pieces.append(call(model, ids[:, start:end], mask[:, :end], places, cache))
    logits = torch.cat(pieces, dim=1)
    for row, document in enumerate(DOCUMENTS):
        assert_near(logits[row, mask[row].bool()], model(document[None], use_cache=False).logits[0])


def positions_restart_in_every_chunk(model, ids, attention_mask, position_ids, cache):
    return call(model, ids, attention_mask, torch.arange(ids.shape[1]).expand_as(ids), cache)


def left_padding_is_attended_to(model, ids, attention_mask, position_ids, cache):
    return call(model, ids, torch.ones_like(attention_mask), position_ids, cache)


@pytest.mark.parametrize("broken_call", [positions_restart_in_every_chunk, left_padding_is_attended_to])
@pytest.mark.parametrize("cache_name", CACHES)
@pytest.mark.parametrize("case", CASES)
def test_negative_control_wrong_arguments(case, cache_name, broken_call):
    assert chunked_error(case.model(), cache_name, seed=0, call=broken_call) > VISIBLE


def keys_move_by_one(keys, values, past):
    return keys.roll(1, dims=2), values


def last_cached_value_is_lost(keys, values, past):
    keys, values = keys.clone(), values.clone()
    if past > 0:
        # Where the keys are the values, too, no others are cached.
        (values if values.shape[-1] else keys)[:, :, past - 1] = 0
    return keys, values


# Uniform routing keeps neither keys nor values; its own control is below.
KEY_VALUE_CASES = [case for case in CASES if "uniform" not in case.id]


@pytest.mark.parametrize("corrupt", [keys_move_by_one, last_cached_value_is_lost])
@pytest.mark.parametrize("cache_name", CACHES)
@pytest.mark.parametrize("case", KEY_VALUE_CASES)
def test_negative_control_broken_cache(case, cache_name, corrupt, monkeypatch):
    layer_class = {"dynamic": DynamicLayer, "static": StaticLayer}[cache_name]
    update = layer_class.update

    def broken_update(self, *args, **kwargs):
        past = int(self.get_seq_length())
        return corrupt(*update(self, *args, **kwargs), past)

    monkeypatch.setattr(layer_class, "update", broken_update)
    assert chunked_error(case.model(), cache_name, seed=0) > VISIBLE


def test_negative_control_momentum_without_its_state(monkeypatch):
    """Every chunk starts as if it were a document: its first token has no previous one."""
    monkeypatch.setattr(state_previous_token, "read_state", lambda *args: None)
    for variant in ("default", "keys", "queries", "pre_rope", "per_layer"):
        for cache_name in CACHES:
            assert chunked_error(Case("momentum", variant).model(), cache_name, seed=0) > VISIBLE


@pytest.mark.parametrize("lost", [{0: True, 1: False}, {0: False, 1: True}, {0: False, 1: False}], ids=str)
@pytest.mark.parametrize("cache_name", CACHES)
def test_negative_control_spherical_without_its_running_mean(cache_name, lost, monkeypatch):
    """Every chunk starts without the sum of the values before it, without their number, or without both."""
    update = RunningMeanLayer.update

    def forgetful_update(self, *args, **kwargs):
        for state_idx, kept in lost.items():
            self.has_previous_state[state_idx] &= kept
        return update(self, *args, **kwargs)

    monkeypatch.setattr(RunningMeanLayer, "update", forgetful_update)
    for variant in ("uniform", "uniform_layer_norm"):
        assert chunked_error(Case("spherical", variant).model(), cache_name, seed=0) > VISIBLE


# generate()


NEW_TOKENS = 12


def generation_model(case):
    # Untied: a small tied model repeats its last token for ever, whatever the cache holds. Many an untied one runs in
    # circles as well; the tests take the first that does not.
    for seed in range(50):
        model = case.model(seed=seed, tie_word_embeddings=False)
        if all(len(set(tokens)) > NEW_TOKENS // 2 for tokens in plain_loop(model, prompts(), greedy)):
            return model
    raise AssertionError("every model runs in circles")


@torch.no_grad()
def plain_loop(model, documents, pick, new_tokens=NEW_TOKENS, eos=None):
    """Decodes without cache or padding; `pick` maps logits (B, V) to tokens (B,). Returns a list of B lists."""
    documents, done = [document.clone() for document in documents], [False] * len(documents)
    generated = [[] for _ in documents]
    for _ in range(new_tokens):
        logits = torch.stack([model(document[None], use_cache=False).logits[0, -1] for document in documents])
        for row, token in enumerate(pick(logits).tolist()):
            generated[row].append(PAD if done[row] else token)
            done[row] = done[row] or token == eos
            documents[row] = torch.cat((documents[row], torch.tensor([token])))
        if all(done):
            break
    return generated


def greedy(logits):
    return logits.argmax(-1)


def sample(logits, temperature=0.7):
    return torch.multinomial((logits / temperature).softmax(-1), num_samples=1)[:, 0]


def generate(model, documents, **kwargs):
    ids, mask = left_pad(documents)
    kwargs = {"eos_token_id": None, "max_new_tokens": NEW_TOKENS, "do_sample": False, **kwargs}
    sequences = model.generate(input_ids=ids, attention_mask=mask, disable_compile=True, **kwargs)
    return sequences[:, ids.shape[1] :].tolist()


def prompts(*lengths):
    return [random_ids(length, seed=length) for length in lengths or (9, 4, 6)]


CACHE_OPTIONS = {
    "no_cache": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static"},
    "chunked_prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.generation
@pytest.mark.parametrize("options", CACHE_OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_greedy(case, options):
    model = generation_model(case)
    expected = plain_loop(model, prompts(), greedy)
    assert generate(model, prompts(), **CACHE_OPTIONS[options]) == expected


@pytest.mark.parametrize("options", ["no_cache", "dynamic", "static"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_greedy_stops_at_the_end_of_the_text(case, options):
    model = generation_model(case)
    free = plain_loop(model, prompts(), greedy)
    # Some rows end before the others.
    eos = next(token for row in free for token in row if 0 < sum(token in other for other in free) < len(free))
    expected = plain_loop(model, prompts(), greedy, eos=eos)
    assert any(row[-1] == PAD for row in expected) and expected != free
    assert generate(model, prompts(), eos_token_id=eos, **CACHE_OPTIONS[options]) == expected


@pytest.mark.generation
@pytest.mark.parametrize("options", ["no_cache", "dynamic", "static"])
@pytest.mark.parametrize("case", CASES)
def test_sampling_with_a_fixed_seed(case, options):
    model = generation_model(case)
    torch.manual_seed(1)
    expected = plain_loop(model, prompts(), sample)
    assert expected != plain_loop(model, prompts(), sample)
    torch.manual_seed(1)
    kwargs = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, **CACHE_OPTIONS[options]}
    assert generate(model, prompts(), **kwargs) == expected


@pytest.mark.generation
@pytest.mark.parametrize("case", CASES)
def test_beam_search(case):
    model = generation_model(case)
    separate = [generate(model, [prompt], num_beams=3, use_cache=False)[0] for prompt in prompts()]
    for options in ("no_cache", "dynamic", "static"):
        assert generate(model, prompts(), num_beams=3, **CACHE_OPTIONS[options]) == separate
    assert separate != plain_loop(model, prompts(), greedy), "the beams never differ from greedy decoding"


def count_calls(model):
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


@pytest.mark.generation
@pytest.mark.parametrize("case", CASES)
def test_assisted_decoding(case):
    model = generation_model(case)
    expected = plain_loop(model, prompts(9), greedy)
    # A distorted copy is right now and then: some candidates are accepted, some thrown out of the cache again.
    assistant = generation_model(case)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    calls = count_calls(model)
    assert generate(model, prompts(9), assistant_model=assistant) == expected
    assert 1 < len(calls) < NEW_TOKENS, "no candidate was accepted"
    stranger = case.model(seed=5, tie_word_embeddings=False, intermediate_size=29)
    assert generate(model, prompts(9), assistant_model=stranger) == expected


@pytest.mark.generation
@pytest.mark.parametrize("case", CASES)
def test_prompt_lookup_decoding(case):
    model = generation_model(case)
    start = prompts(9)[0]
    # The continuation stands in the prompt already, but for its end.
    prompt = torch.cat((start, torch.tensor(plain_loop(model, [start], greedy)[0][:3]), random_ids(2), start))
    expected = plain_loop(model, [prompt], greedy)
    calls = count_calls(model)
    assert generate(model, [prompt], prompt_lookup_num_tokens=4) == expected
    assert len(calls) <= NEW_TOKENS


@pytest.mark.generation
@pytest.mark.parametrize("case", CASES)
def test_a_cache_may_be_used_for_the_next_turn(case):
    model = generation_model(case)
    prompt = prompts(9)[0][None]
    kwargs = {"eos_token_id": None, "do_sample": False, "max_new_tokens": 5, "disable_compile": True}
    first = model.generate(prompt, return_dict_in_generate=True, **kwargs)
    turn = torch.cat((first.sequences, random_ids(1, 4)), dim=1)
    # Without a mask, generate would take a generated PAD for padding.
    mask = torch.ones_like(turn)
    second = model.generate(turn, attention_mask=mask, past_key_values=first.past_key_values, **kwargs)
    assert second[0, turn.shape[1] :].tolist() == plain_loop(model, [turn[0]], greedy, new_tokens=5)[0]


@pytest.mark.parametrize("case", ROUTING_CASES)
def test_a_conversation_in_a_batch_goes_on_from_a_kept_cache(case):
    """The second turns follow first turns of different lengths: the mask has holes."""
    model = generation_model(case)
    first, second = [random_ids(n, seed=n) for n in (9, 4, 6)], [random_ids(n, seed=20 + n) for n in (2, 5, 3)]
    expected = plain_loop(model, [torch.cat(turns) for turns in zip(first, second)], greedy)
    (ids, mask), (more_ids, more_mask) = right_pad(first), left_pad(second)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=40)):
        with torch.no_grad():
            model(ids, attention_mask=mask, past_key_values=cache)
        all_ids, all_mask = torch.cat((ids, more_ids), dim=1), torch.cat((mask, more_mask), dim=1)
        sequences = model.generate(
            all_ids,
            attention_mask=all_mask,
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            disable_compile=True,
        )
        assert sequences[:, all_ids.shape[1] :].tolist() == expected


@pytest.mark.compile
@pytest.mark.parametrize("case", ROUTING_CASES)
@torch.no_grad()
def test_decoding_with_a_static_cache_compiles_once(case):
    model = case.model()
    ids, mask = left_pad([random_ids(9), random_ids(6)])
    expected = model(ids, attention_mask=mask, position_ids=positions_from_mask(mask), use_cache=False).logits
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    cache, pieces, bounds = StaticCache(config=model.config, max_cache_len=24), [], [0, 4, 5, 6, 7, 8, 9]
    for start, end in zip(bounds, bounds[1:]):
        inputs = model.prepare_inputs_for_generation(
            ids[:, :end],
            next_sequence_length=end - start,
            past_key_values=cache,
            attention_mask=mask[:, :end],
            position_ids=positions_from_mask(mask)[:, start:end],
        )
        # A mask for each kind of layer, or what uniform routing needs; Prism may have a key shift.
        needs_more = case.family_name == "prism" or any(case in param.values for param in STATE_CASES)
        assert isinstance(inputs["attention_mask"], dict) == needs_more
        pieces.append((model if start == 0 else compiled)(**inputs).logits)
    assert_near(torch.cat(pieces, dim=1)[mask.bool()], expected[mask.bool()])
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", STATE_CASES)
def test_negative_control_beams_keep_each_others_state(case, monkeypatch):
    model = generation_model(case)
    expected = generate(model, prompts(), num_beams=3, use_cache=False)
    assert generate(model, prompts(), num_beams=3) == expected
    monkeypatch.setattr(LinearAttentionCacheLayerMixin, "reorder_cache", lambda self, beam_idx: None)
    assert generate(model, prompts(), num_beams=3) != expected


# Cropping


@pytest.mark.parametrize("case", [*STATE_CASES, pytest.param(Case("momentum", "per_layer"), id="momentum-per_layer")])
@torch.no_grad()
def test_cropping_restores_the_state(case):
    model, ids = case.model(), random_ids(1, 11)
    expected = model(ids).logits

    def recording():
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        return cache

    cache = recording()
    if case.family_name == "spherical":
        # Layers of transformers cannot be cropped before their first token.
        cache.crop(0)
    model(ids[:, :5], past_key_values=cache)
    for removed in (0, 1, 3, 4):
        model(random_ids(1, 4, seed=removed), past_key_values=cache)
        cache.crop(-4)
        logits = model(torch.cat((ids[:, 5:6], random_ids(1, 3)), dim=1), past_key_values=cache).logits
        assert_near(logits[:, :1], expected[:, 5:6])
        cache.crop(-4)
    model(ids[:, 5:], past_key_values=cache)
    cache.crop(-6)
    assert cache.get_seq_length() == 5
    assert_near(model(ids[:, 5:], past_key_values=cache).logits, expected[:, 5:])
    # Cropped to nothing, and no longer recording.
    cache = recording()
    model(ids[:, :5], past_key_values=cache)
    cache.crop(-5)
    assert cache.get_seq_length() == 0
    for layer in cache.layers:
        layer.record_past = False
    for start, end in ((0, 4), (4, 11)):
        assert_near(model(ids[:, start:end], past_key_values=cache).logits, expected[:, start:end])
    # Nothing was recorded here.
    cache = model(ids).past_key_values
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-2)
    # Recorded from the second call on: the state of the first is gone.
    cache = DynamicCache(config=model.config)
    model(ids[:, :5], past_key_values=cache)
    cache.activate_past_recording()
    model(ids[:, 5:7], past_key_values=cache)
    with pytest.raises(ValueError, match="cropped to before it began recording|further back than it recorded"):
        cache.crop(-4)
        model(ids[:, 3:], past_key_values=cache)


@pytest.mark.parametrize(
    "case, layer",
    [(Case("momentum", "default"), LinearAttentionLayer), (Case("spherical", "uniform"), RunningMeanLayer)],
)
def test_negative_control_the_state_is_not_cropped(case, layer, monkeypatch):
    def keep_the_last(self, tokens_to_remove):
        self.cumulative_length = getattr(self, "cumulative_length", 0) - abs(tokens_to_remove)
        self.conv_states = {index: state[..., -1:] for index, state in self.conv_states.items()}

    monkeypatch.setattr(layer, "crop", keep_the_last)
    model = generation_model(case)
    wrong = []
    for seed in range(3):
        stranger = case.model(seed=5 + seed, tie_word_embeddings=False)
        prompt = [random_ids(9, seed=seed)]
        wrong.append(generate(model, prompt, assistant_model=stranger) != plain_loop(model, prompt, greedy))
    assert any(wrong)


# The end of the table, and export


WITH_TABLE = ("prism-learned_positions", "spherical-default", "spherical-uniform")


@pytest.mark.parametrize("options", [*CACHE_OPTIONS, "beams"])
@pytest.mark.parametrize("case", [case for case in CASES if case.id in WITH_TABLE])
def test_generation_stops_at_the_end_of_the_position_table(case, options):
    options = {**CACHE_OPTIONS, "beams": {"num_beams": 2}}[options]
    model = case.model(max_position_embeddings=12, tie_word_embeddings=False)
    cut, whole = ({"max_new_tokens": 99}, {"max_new_tokens": 3})
    assert generate(model, prompts(9, 4), **options, **cut) == generate(model, prompts(9, 4), **options, **whole)
    # Padding takes no position; a prompt that fills the table still gets its next token.
    for prompt, padding, new_tokens in ((9, 6, 3), (12, 0, 1)):
        ids, mask = left_pad([random_ids(prompt)])
        ids, mask = (torch.nn.functional.pad(tensor, (padding, 0)) for tensor in (ids, mask))
        told = model.generate(ids, attention_mask=mask, max_new_tokens=99, eos_token_id=None, **options)
        assert told.shape[1] == padding + prompt + new_tokens


@pytest.mark.compile
@pytest.mark.parametrize("case", ROUTING_CASES)
def test_an_exported_program_is_the_model_or_is_refused(case):
    """ExecuTorch's wrapper keeps keys, values and lengths, and nothing else, from one call to the next."""
    model, ids = case.model(), random_ids(1, 5)
    model.generation_config.cache_implementation = "static"
    model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 16}
    if {"previous_token", "running_mean"} & set(getattr(model.config, "layer_types", ())):
        for strict in (True, False):
            with pytest.raises(Exception, match="An exported program keeps keys and values alone"):
                convert_and_export_with_cache(model, strict=strict)
        program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False).module()
        assert_near(program(input_ids=ids, use_cache=False).logits, model(ids).logits)
    else:
        program = convert_and_export_with_cache(model, strict=False).module()
        steps = [program(input_ids=ids[:, i : i + 1], cache_position=torch.tensor([i])) for i in range(5)]
        assert_near(torch.cat(steps, dim=1), model(ids).logits)


@pytest.mark.generation
@pytest.mark.parametrize("case", STATE_CASES)
def test_a_saved_max_length_and_max_new_tokens_do_not_quarrel(case, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    model, ids = case.model(), random_ids(1, 5)
    model.generation_config.max_length = 9
    lengths = [model.generate(ids, **options).shape[1] for options in ({}, {"max_new_tokens": 2}, {"max_length": 8})]
    assert lengths == [9, 7, 8] and "seem to have been set" not in caplog.text
    # Both given by hand are still a contradiction.
    model.generate(ids, max_new_tokens=2, max_length=8)
    assert "seem to have been set" in caplog.text
