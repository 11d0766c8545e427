"""Small Momentum models on synthetic tasks, trained side by side as one stack, and how they are tested."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from modeling_prism import MomentumConfig, MomentumForCausalLM
from training.experiments.common.arguments import SmallRunArguments
from training.stacked import Stack
from training.tasks.recall import IGNORED


class AnswersOnly(nn.Module):
    """A causal LM whose logits are computed where they are scored: input_ids (B, L), places (B, Q) -> (B, Q, V)."""

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        hidden_states = self.causal_lm.model(input_ids, use_cache=False).last_hidden_state
        places = places[..., None].expand(-1, -1, hidden_states.shape[-1])
        return self.causal_lm.lm_head(hidden_states.gather(1, places))


def small_momentum(
    arguments: SmallRunArguments, seed: int, vocab_size: int, length: int, gamma: float, layers: int, **fields
) -> AnswersOnly:
    """A randomly initialised model whose gamma is a buffer, so that models with different gammas stack."""
    torch.manual_seed(seed)
    config = MomentumConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=2 * arguments.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=arguments.num_attention_heads,
        max_position_embeddings=length,
        initializer_range=arguments.initializer_range,
        # Any but 0, which would make the layer Llama's, without the buffer.
        momentum_gamma=1.0,
        **fields,
    )
    model = MomentumForCausalLM._from_config(config, attn_implementation="eager")
    for layer in model.model.layers:
        del layer.self_attn.gamma
        layer.self_attn.register_buffer("gamma", torch.tensor(float(gamma)))
    return AnswersOnly(model)


def answers_of(input_ids: np.ndarray, labels: np.ndarray, device: str) -> tuple[torch.Tensor, ...]:
    """`input_ids` (N, L), where logits are scored (N, Q), and the answers (N, Q), from a task's two arrays."""
    rows, columns = np.nonzero(labels != IGNORED)
    shape = (len(labels), -1)
    arrays = (input_ids, columns.reshape(shape) - 1, labels[rows, columns].reshape(shape))
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def answer_loss(forward: Callable, input_ids: torch.Tensor, places: torch.Tensor, answers: torch.Tensor):
    """Mean cross-entropy of the answers, in nats."""
    return nn.functional.cross_entropy(forward(input_ids, places).flatten(0, 1), answers.flatten())


def answer_accuracy(forward: Callable, input_ids: torch.Tensor, places: torch.Tensor, answers: torch.Tensor):
    """Share of the answers that are the most likely token of all."""
    return (forward(input_ids, places).argmax(-1) == answers).float().mean()


def _random_state(device: str, state: torch.Tensor | None = None) -> torch.Tensor:
    """The state of torch's own generator, which a model may draw from; set to `state` if that is given."""
    random = torch.cuda if torch.device(device).type == "cuda" else torch
    if state is not None:
        random.set_rng_state(state.cpu())
    return random.get_rng_state()


def train_stack(
    models: list[AnswersOnly],
    seeds: list[int],
    learning_rates: list[float],
    draw: Callable,
    arguments: SmallRunArguments,
    checkpoint: Path,
) -> tuple[np.ndarray, Stack]:
    """
    Trains models side by side on fresh examples, and goes on where it was stopped.

    Args:
        models (`list[AnswersOnly]`): K models.
        seeds (`list[int]`): of the data, one a model: equal seeds read the same examples in the same order.
        learning_rates (`list[float]`): one a model.
        draw (`Callable`): (number of examples, seed=) -> input_ids, labels.
        arguments (`SmallRunArguments`): the rest.
        checkpoint (`Path`): where all that is needed to go on is saved, every `save_steps`.

    Returns:
        test accuracies (K, tests), the first before training, then one every `eval_steps`; and the stack.
    """
    device = arguments.device
    stack = Stack(
        [model.to(device) for model in models],
        answer_loss,
        learning_rate=learning_rates,
        compile=arguments.torch_compile,
    )
    streams = {seed: np.random.default_rng([seed, 1]) for seed in dict.fromkeys(seeds)}
    # Another stream than any seed's: a list of three.
    test = answers_of(*draw(arguments.test_examples, seed=np.random.default_rng([0, 0, 2])), device)
    accuracies = [stack.map(answer_accuracy, *test, batched=False).cpu()]
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        stack.load_state_dict(saved["stack"])
        accuracies = list(saved["accuracies"].cpu())
        for stream, state in zip(streams.values(), saved["streams"]):
            stream.bit_generator.state = state
        _random_state(device, saved["random"])
    for step in range(stack.steps + 1, arguments.max_steps + 1):
        batches = {
            seed: answers_of(*draw(arguments.batch_size, seed=stream), device) for seed, stream in streams.items()
        }
        stack.step(*(torch.stack(parts) for parts in zip(*(batches[seed] for seed in seeds))))
        if step % arguments.eval_steps == 0:
            accuracies.append(stack.map(answer_accuracy, *test, batched=False).cpu())
        if step % arguments.save_steps == 0:
            saved = {
                "stack": stack.state_dict(),
                "accuracies": torch.stack(accuracies),
                "streams": [stream.bit_generator.state for stream in streams.values()],
                "random": _random_state(device),
            }
            save_checkpoint(saved, checkpoint)
    return torch.stack(accuracies, dim=1).numpy(), stack


def save_checkpoint(state: dict, file: Path) -> None:
    """Saves under another name until it is whole: a crash leaves the checkpoint before."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)
