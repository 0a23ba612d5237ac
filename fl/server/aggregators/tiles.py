"""Stepping a model a tile at a time, in memory that is there: every number is stepped by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from fl.server.aggregation import TILE
from fl.server.strategies import State
from fl.tensors import Tensors


class Optimizer(Protocol):
    """A server optimizer with its hyper-parameters bound."""

    def __call__(self, weights: Tensors, delta: Tensors, state: State) -> tuple[Tensors, State]:
        """Step from a model, the clients' mean difference and the last state."""
        ...


def step_by_tile(
    weights: Tensors, mean: Tensors, step: Callable[[Tensors, Tensors], Tensors]
) -> Tensors:
    """Step in the mean's memory: a third model is not to be needed beside two.

    Args:
        weights: The model.
        mean: Tensors of its names, and others; those of its names are taken out of it.
        step: Makes the next model of a model and a mean.

    Returns:
        The next model.
    """
    moved, _ = optimize_by_tile(
        weights, mean, {}, lambda start, change, _: (step(start, change), {})
    )
    return moved


def optimize_by_tile(
    weights: Tensors, mean: Tensors, state: State, optimizer: Optimizer
) -> tuple[Tensors, State]:
    """Step in the mean's memory, and let the last state go tensor by tensor as the next is made.

    Args:
        weights: The model.
        mean: Tensors of its names, and others; those of its names are taken out of it.
        state: What the optimizer remembers; what it has of those names is taken out of it.
        optimizer: Steps.

    Returns:
        The next model and state.

    Raises:
        ValueError: The state is another model's.
    """
    moved: Tensors = {}
    memory: State = {role: {} for role in state}
    for name, tensor in weights.items():
        last = {role: its.pop(name, None) for role, its in state.items()}
        moved[name], new = _stepped(name, tensor, mean.pop(name), last, optimizer)
        for role, its in new.items():
            memory.setdefault(role, {})[name] = its
    return moved, memory


def _stepped(
    name: str,
    tensor: torch.Tensor,
    change: torch.Tensor,
    last: Mapping[str, torch.Tensor | None],
    optimizer: Optimizer,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A tensor's next values, in its change's memory where that fits them; and its next state."""
    start, changes = tensor.reshape(-1), change.reshape(-1)
    moved = changes if change.dtype == tensor.dtype else torch.empty_like(start)
    memory: dict[str, torch.Tensor] = {}
    for begin in range(0, max(1, len(start)), TILE):
        at = slice(begin, begin + TILE)
        known = {role: _part(name, its, tensor.shape, at) for role, its in last.items()}
        tile, new = optimizer({name: start[at]}, {name: changes[at]}, known)
        moved[at] = tile[name]
        for role, its in new.items():
            if name in its:  # of what is not floating there is none
                whole = memory.setdefault(role, its[name].new_empty(len(start)))
                whole[at] = its[name]
    shaped = {role: whole.reshape(tensor.shape) for role, whole in memory.items()}
    return moved.reshape(tensor.shape), shaped


def _part(name: str, state: torch.Tensor | None, shape: torch.Size, at: slice) -> Tensors:
    """A tile of a tensor's state; nothing of another model's, which the optimizer then misses."""
    if state is None or state.shape != shape:
        return {}
    return {name: state.reshape(-1)[at]}
