"""Stacked training: every model of a stack ends where torch.optim.AdamW would have taken it alone."""

import copy
import functools
import shutil

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_prism import MomentumConfig, MomentumForCausalLM
from training.experiments.common.arguments import SmallRunArguments
from training.experiments.common.stacks import AnswersOnly, answer_loss, small_momentum
from training.stacked import Stack


SMALL = SmallRunArguments(hidden_size=16, num_attention_heads=2)
VOCAB_SIZE, LENGTH = 13, 9
GAMMAS = [0.0, 1.0, -0.5]


class Toy(nn.Module):
    """Two layers, a buffer that matters, and a weight that the loss does not touch."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))
        self.unused = nn.Parameter(torch.randn(5))
        self.register_buffer("scale", torch.tensor(1.0 + seed))

    def forward(self, inputs):
        return self.scale * self.layers(inputs)


def squared_error(forward, inputs, targets):
    return (forward(inputs) - targets).square().mean()


def draw(step: int, count: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """The batches of `count` models: (count, 11, 3) and (count, 11, 2)."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(count, 11, 3, generator=generator, dtype=dtype)
    return inputs, torch.randn(count, 11, 2, generator=generator, dtype=dtype)


def make_stack(count: int = 3, **options) -> Stack:
    return Stack([Toy(seed) for seed in range(count)], squared_error, **{"learning_rate": 1e-2, **options})


def train(stack: Stack, steps: int = 5) -> Stack:
    for step in range(stack.steps, stack.steps + steps):
        stack.step(*draw(step, len(stack)))
    return stack


def state_of(stack: Stack) -> dict:
    return copy.deepcopy(stack.state_dict())


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


# AdamW


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("count,chunk_size", [(1, None), (3, None), (3, 2), (3, 1)])
def test_each_model_follows_torch_adamw(count, chunk_size, dtype, tolerance):
    rates, decays = [1e-2, 1e-3, 3e-3][:count], [0.0, 0.01, 0.5][:count]
    betas = [(0.9, 0.999), (0.8, 0.99), (0.5, 0.9)][:count]
    alone = [Toy(seed).to(dtype) for seed in range(count)]
    stack = Stack(alone, squared_error, learning_rate=rates, weight_decay=decays, betas=betas, chunk_size=chunk_size)
    started = stack.unstack(0)
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, betas=pair)
        for model, rate, decay, pair in zip(alone, rates, decays, betas)
    ]
    for step in range(200):
        batch = draw(step, count, dtype)
        losses = stack.step(*batch)
        for index, (model, optimizer) in enumerate(zip(alone, optimizers)):
            optimizer.zero_grad(set_to_none=True)
            loss = squared_error(model, *(part[index] for part in batch))
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(losses[index], loss.detach(), atol=tolerance, rtol=tolerance)
            for name, weight in model.named_parameters():
                torch.testing.assert_close(
                    stack.params[name][index], weight.detach(), atol=tolerance, rtol=0, msg=f"{name}, step {step}"
                )
    # What the agreement is worth: the weights went far, and another weight decay or beta leads elsewhere.
    assert (stack.params["layers.0.weight"][0] - started["layers.0.weight"]).abs().max() > 0.05
    assert stack.steps == 200 and len(stack) == count


@pytest.mark.parametrize("other", [{"weight_decay": 0.02}, {"betas": (0.9, 0.99)}, {"eps": 1e-3}])
def test_another_hyperparameter_leads_elsewhere(other):
    weights = [train(make_stack(**options), 50).params["layers.0.weight"] for options in ({}, other)]
    assert (weights[0] - weights[1]).abs().max() > 1e-4


@pytest.mark.compile
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="compiling takes a C++ compiler")
def test_a_compiled_stack_takes_the_same_steps():
    compiled, eager = (train(make_stack(chunk_size=1, compile=on)) for on in (True, False))
    compiled.keep([2, 0])
    eager.keep([2, 0])
    for name, weights in train(compiled).params.items():
        torch.testing.assert_close(weights, train(copy.deepcopy(eager)).params[name], atol=1e-5, rtol=0)


@pytest.mark.compile
def test_a_compiled_stack_stays_compiled_as_models_leave(monkeypatch):
    # A back end that needs no C++ compiler: what is traced, and how often, is the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        stack = make_stack(count=torch._dynamo.config.recompile_limit + 2, compile=True)
        while len(stack) > 1:
            train(stack, 1).keep(list(range(len(stack) - 1)))


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_what_the_loss_does_not_touch_stays(chunk_size):
    stack = train(make_stack(weight_decay=0.5, chunk_size=chunk_size))
    assert_same(stack.params["unused"], torch.stack([Toy(seed).unused.detach() for seed in range(3)]))
    assert_same(stack.exp_avg["unused"], torch.zeros(3, 5))


def test_the_models_themselves_do_not_change():
    models = [Toy(seed) for seed in range(2)]
    train(Stack(models, squared_error, learning_rate=1e-2))
    for seed, model in enumerate(models):
        assert_same(model.state_dict(), Toy(seed).state_dict())
        assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


# Models beside each other


def test_nothing_passes_between_models():
    stacks = [make_stack() for _ in range(3)]
    # The second has other data and another rate, the third is broken.
    stacks[1].hyperparameters["learning_rate"][1] = 10.0
    stacks[2].params["layers.0.weight"][1] = torch.nan
    for step in range(20):
        for stack, shift in zip(stacks, (0, 5, 0)):
            inputs, targets = draw(step, 3)
            inputs[1] += shift
            stack.step(inputs, targets)
    for index in (0, 2):
        assert_same(stacks[1].unstack(index), stacks[0].unstack(index))
        assert_same(stacks[2].unstack(index), stacks[0].unstack(index))
    name = "layers.0.weight"
    assert (stacks[1].params[name][1] - stacks[0].params[name][1]).abs().max() > 0.1
    assert stacks[2].params[name][1].isnan().all()


def test_keep_drops_models_and_the_rest_go_on():
    rates = [1e-3, 1e-2, 3e-2]
    whole, kept = (train(make_stack(learning_rate=rates)) for _ in range(2))
    kept.keep([2, 0])
    assert len(kept) == 2 and kept.hyperparameters["learning_rate"].tolist() == [3e-2, 1e-3]
    for step in range(5, 10):
        batch = draw(step, 3)
        losses, fewer = whole.step(*batch), kept.step(*(part[[2, 0]] for part in batch))
        # The batched products of 2 and of 3 models may add in another order.
        torch.testing.assert_close(fewer, losses[[2, 0]], atol=1e-6, rtol=1e-6)
    for name, weights in kept.params.items():
        torch.testing.assert_close(weights, whole.params[name][[2, 0]], atol=1e-6, rtol=0)
        assert_same(kept.buffers["scale"], torch.tensor([3.0, 1.0]))
    assert kept.steps == 10


def test_map_sees_shared_and_own_batches_and_keeps_no_graph():
    stack = train(make_stack())
    inputs, targets = draw(0, 3)
    own = stack.map(squared_error, inputs, targets)
    shared = stack.map(squared_error, inputs[1], targets[1], batched=False)
    assert own.shape == shared.shape == (3,) and not own.requires_grad
    torch.testing.assert_close(own[1], shared[1])
    outputs = stack.map(lambda forward, inputs: {"outputs": forward(inputs)}, inputs[0], batched=False)["outputs"]
    assert outputs.shape == (3, 11, 2)
    for index in range(3):
        model = Toy(index)
        model.load_state_dict(stack.unstack(index), strict=False)
        torch.testing.assert_close(outputs[index], model(inputs[0]).detach(), atol=1e-6, rtol=1e-6)


# Saving


def test_a_saved_stack_goes_on_bit_for_bit(tmp_path):
    options = {"learning_rate": [1e-3, 1e-2, 3e-2], "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    straight = train(make_stack(**options), 10)
    stopped = train(make_stack(**options), 5)
    torch.save(stopped.state_dict(), tmp_path / "stack.pt")
    # Other values in all that the state must overwrite, and another number of models.
    resumed = make_stack(count=2, learning_rate=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "stack.pt", weights_only=True))
    assert len(resumed) == 3 and resumed.steps == 5
    assert_same(state_of(train(resumed, 5)), state_of(straight))


def test_a_loaded_state_is_a_copy():
    source = train(make_stack())
    before = state_of(source)
    other = make_stack()
    other.load_state_dict(source.state_dict())
    train(other)
    other.keep([0])
    assert_same(state_of(source), before)


def test_the_state_of_another_architecture_is_refused():
    stack = make_stack()
    before = state_of(stack)
    named = Stack([nn.Linear(3, 2)], squared_error, learning_rate=1e-2)
    wider = Toy(0)
    wider.layers[0], wider.layers[2] = nn.Linear(3, 8), nn.Linear(8, 2)
    sized = Stack([wider], squared_error, learning_rate=1e-2)
    for other in (named, sized):
        with pytest.raises(ValueError, match="`state` holds the params of another architecture: build the stack"):
            stack.load_state_dict(other.state_dict())
    assert_same(state_of(stack), before)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"learning_rate": [1e-3, 1e-2]}, "`learning_rate` has 2 values for 3 models: give one, or one for each"),
        ({"weight_decay": [0.1]}, "`weight_decay` has 1 values for 3 models"),
        ({"betas": [(0.9, 0.99)] * 4}, "`betas` has 4 values for 3 models"),
        ({"count": 0}, "`models` is empty"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_stack(**options)


@pytest.mark.parametrize("chunk_size", [None, 2, 1])
def test_a_batch_of_fewer_models_is_refused(chunk_size):
    stack = make_stack(chunk_size=chunk_size)
    with pytest.raises((ValueError, RuntimeError)):
        stack.step(*draw(0, 2))


def test_frozen_parameters_are_refused():
    model = Toy(0)
    model.layers[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen parameters.*turn \['layers.0.bias'\] into buffers"):
        Stack([model], squared_error, learning_rate=1e-2)


# Momentum models, whose gamma is a buffer


@pytest.fixture(scope="module")
def ids():
    return torch.randint(VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def momentum_stack() -> Stack:
    models = [small_momentum(SMALL, seed, VOCAB_SIZE, LENGTH, gamma, layers=2) for seed, gamma in enumerate(GAMMAS)]
    return Stack(models, answer_loss, learning_rate=1e-2)


def every_place(ids):
    return torch.arange(ids.shape[1]).expand_as(ids)


@torch.no_grad()
def test_stacked_momentum_models_are_the_package_s(ids):
    stack = momentum_stack()
    logits = stack.map(lambda forward, *batch: forward(*batch), ids, every_place(ids), batched=False)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": VOCAB_SIZE, "max_position_embeddings": LENGTH}
    for index, gamma in enumerate(GAMMAS):
        model = MomentumForCausalLM(MomentumConfig(**sizes, momentum_gamma=gamma))
        if gamma == 0:
            model = LlamaForCausalLM(LlamaConfig(**sizes))
        AnswersOnly(model).load_state_dict(stack.unstack(index))
        torch.testing.assert_close(logits[index], model(ids).logits, atol=1e-5, rtol=0)
        # Each has its own gamma: with its neighbour's, the same weights answer otherwise.
        other = MomentumForCausalLM(MomentumConfig(**sizes, momentum_gamma=GAMMAS[index - 1]))
        AnswersOnly(other).load_state_dict(stack.unstack(index))
        assert (logits[index] - other(ids).logits).abs().max() > 1e-3
