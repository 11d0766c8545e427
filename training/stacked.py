"""Trains many small models of one shape side by side as one program (`torch.func`).

A `Stack` holds K models and stacks their weights along a first axis. Forward and backward pass run under `vmap`, or
one model after the other. AdamW updates the stacked weights with a learning rate, weight decay and betas per model.
The models do not interact: each ends where it would have ended alone, up to rounding (tested). Finished models can be
dropped.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap


class Stack:
    """
    Trains K models of one architecture.

    Args:
        models (`list[nn.Module]`): K modules that differ only in the values of their parameters and buffers. The stack
            copies them and leaves them unchanged.
        loss (`Callable`): (forward, *batch) -> scalar, where `forward(*args, **kwargs)` calls one model and `batch`
            holds that model's tensors.
        learning_rate, weight_decay, betas: for AdamW, one value for all models or a list with one per model.
        eps (`float`): for AdamW.
        chunk_size (`int`, *optional*): number of models per call, for stacks larger than the processor's caches. 1
            runs one model after the other, without `vmap`. Default: all.
        compile (`bool`): whether to compile the program, which takes a minute and, on a CPU, a C++ compiler.

    Attributes:
        params (`dict[str, torch.Tensor]`): the weights, each (K, *shape).
        buffers (`dict[str, torch.Tensor]`): the buffers, each (K, *shape).
        steps (`int`): number of steps taken.

    Raises:
        ValueError: no models, frozen parameters, or a list whose length is not that of `models`.
    """

    def __init__(
        self,
        models: list[nn.Module],
        loss: Callable,
        *,
        learning_rate: float | list[float],
        weight_decay: float | list[float] = 0.01,
        betas: tuple[float, float] | list[tuple[float, float]] = (0.9, 0.999),
        eps: float = 1e-8,
        chunk_size: int | None = None,
        compile: bool = False,
    ):
        count = len(models)
        if not models:
            raise ValueError("`models` is empty: a stack needs at least one.")
        frozen = [name for name, value in models[0].named_parameters() if not value.requires_grad]
        if frozen:
            raise ValueError(
                f"`models` have frozen parameters, which a stack would train: turn {frozen} into buffers."
            )
        self.module = models[0]
        self.params, self.buffers = stack_module_state(models)
        self.params = {name: value.detach() for name, value in self.params.items()}
        self.exp_avg = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.steps = 0
        self.chunk_size = chunk_size
        self.compile = compile
        self.eps = eps
        betas = betas if isinstance(betas, list) else [betas] * count
        # In float64, as in torch.optim.
        self.hyperparameters = {
            "learning_rate": self._one_each("learning_rate", learning_rate, count),
            "weight_decay": self._one_each("weight_decay", weight_decay, count),
            "beta1": self._one_each("betas", [beta1 for beta1, _ in betas], count),
            "beta2": self._one_each("betas", [beta2 for _, beta2 in betas], count),
        }
        self._losses = self._losses_of(loss, compile)

    @staticmethod
    def _one_each(name: str, values: float | list[float], count: int) -> torch.Tensor:
        if isinstance(values, list) and len(values) != count:
            raise ValueError(f"`{name}` has {len(values)} values for {count} models: give one, or one for each.")
        return torch.as_tensor(values, dtype=torch.float64).expand(count).clone()

    def __len__(self) -> int:
        return len(self.hyperparameters["learning_rate"])

    def _losses_of(self, loss: Callable, compile: bool) -> Callable:
        """Returns the function from stacked weights, buffers and batch to the losses (K,)."""
        wrap = functools.partial(torch.compile, dynamic=False) if compile else lambda program: program

        def one(params, buffers, *batch):
            return loss(lambda *args, **kwargs: functional_call(self.module, (params, buffers), args, kwargs), *batch)

        if self.chunk_size != 1:
            return wrap(vmap(one, randomness="different", chunk_size=self.chunk_size))
        one = wrap(one)

        # The kernels of a single model are faster than those of a batch of one.
        def one_by_one(params, buffers, *batch):
            if any(len(part) != len(self) for part in batch):
                raise ValueError(
                    f"`batch` has tensors for {[len(part) for part in batch]} models, the stack has {len(self)}."
                )
            params, buffers = ({name: value.unbind() for name, value in store.items()} for store in (params, buffers))
            return torch.stack(
                [
                    one(*({name: rows[k] for name, rows in store.items()} for store in (params, buffers)), *rows)
                    for k, rows in enumerate(zip(*batch))
                ]
            )

        return one_by_one

    def step(self, *batch: torch.Tensor) -> torch.Tensor:
        """Takes one AdamW step per model on tensors (K, ...); returns the losses before it, (K,)."""
        params = {name: value.requires_grad_() for name, value in self.params.items()}
        losses = self._losses(params, self.buffers, *batch)
        # A weight outside the loss gets no gradient, and AdamW leaves it unchanged.
        gradients = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
        self.params = {name: value.detach() for name, value in params.items()}
        self._adamw(dict(zip(self.params, gradients)))
        return losses.detach()

    @torch.no_grad()
    def _adamw(self, gradients: dict[str, torch.Tensor | None]) -> None:
        """Follows `torch.optim.AdamW`, in its order of operations."""
        self.steps += 1
        rate, decay, beta1, beta2 = (
            self.hyperparameters[key] for key in ("learning_rate", "weight_decay", "beta1", "beta2")
        )
        step_size = rate / (1 - beta1**self.steps)
        root_correction = (1 - beta2**self.steps).sqrt()
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            param = self.params[name]

            def each(values):
                return values.to(param).view(-1, *[1] * (param.ndim - 1))

            param.mul_(each(1 - rate * decay))
            self.exp_avg[name].lerp_(gradient, each(1 - beta1))
            self.exp_avg_sq[name].mul_(each(beta2)).add_(gradient.square().mul_(each(1 - beta2)))
            denominator = self.exp_avg_sq[name].sqrt().div_(each(root_correction)).add_(self.eps)
            param.sub_(denominator.reciprocal_().mul_(self.exp_avg[name]).mul_(each(step_size)))

    @torch.no_grad()
    def map(self, function: Callable, *batch: torch.Tensor, batched: bool = True):
        """
        Calls `function(forward, *batch)` for every model, without gradients.

        Args:
            function (`Callable`): like `loss`, but may return any tensor or dict of tensors.
            batch: tensors (K, ...), or with `batched=False` tensors that all models share.
        """

        def one(params, buffers, *batch):
            return function(
                lambda *args, **kwargs: functional_call(self.module, (params, buffers), args, kwargs), *batch
            )

        in_dims = (0, 0, *[0 if batched else None] * len(batch))
        return vmap(one, in_dims=in_dims, randomness="different", chunk_size=self.chunk_size)(
            self.params, self.buffers, *batch
        )

    def keep(self, indices: list[int]) -> None:
        """Keeps the models at `indices` and drops the others."""
        for store in (self.params, self.buffers, self.exp_avg, self.exp_avg_sq, self.hyperparameters):
            for name, value in store.items():
                store[name] = value[indices].clone()
        # torch compiles `vmap` again for every number of models and gives up after eight.
        if self.compile and self.chunk_size != 1:
            torch.compiler.reset()

    def unstack(self, index: int) -> dict[str, torch.Tensor]:
        """Returns copies of one model's weights, by name."""
        return {name: value[index].clone() for name, value in self.params.items()}

    def state_dict(self) -> dict:
        """Returns the state for `load_state_dict` to continue bit for bit, not a copy: a further step changes it."""
        return {
            "params": self.params,
            "buffers": self.buffers,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "hyperparameters": self.hyperparameters,
            "eps": self.eps,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict) -> None:
        """
        Continues from a copy of `state_dict`, with as many models as it holds.

        Raises:
            ValueError: the state belongs to another architecture.
        """

        def shapes(tensors):
            return {name: value.shape[1:] for name, value in tensors.items()}

        for name in ("params", "buffers", "exp_avg", "exp_avg_sq", "hyperparameters"):
            if shapes(getattr(self, name)) != shapes(state[name]):
                raise ValueError(
                    f"`state` holds the {name} of another architecture: build the stack from models like the saved "
                    "ones."
                )
        for name, value in state.items():
            setattr(self, name, {key: one.clone() for key, one in value.items()} if isinstance(value, dict) else value)
