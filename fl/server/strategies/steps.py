"""Moving a model: the one place where dtypes, integers and booleans are dealt with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl.server.strategies.bounds import require_positive
from fl.tensors import Tensors, is_inexact

State = dict[str, Tensors]
"""What a server optimizer remembers, by role and name; `{}` before its first step."""


def mix(weights: Tensors, update: Tensors, *, rate: float) -> Tensors:
    """Go some of the way to another model: (1 - rate) weights + rate update.

    Args:
        weights: A model.
        update: Another, its names and shapes; floats may be wider.
        rate: How far, positive; beyond 1 goes past it.

    Returns:
        The model in between; integers and booleans are `update`'s.

    Raises:
        ValueError: The rate is not positive.
    """
    require_positive(rate=rate)
    return each(weights, update, lambda _name, start, end: start.add(end - start, alpha=rate))


def add_delta(weights: Tensors, delta: Tensors, *, size: float = 1.0) -> Tensors:
    """Move a model: weights + size delta.

    Args:
        weights: A model.
        delta: Differences, its names and shapes, floats possibly wider; of integers and booleans
            it is no difference but the new value.
        size: The step's, positive.

    Returns:
        The moved model; integers and booleans are `delta`'s.

    Raises:
        ValueError: The size is not positive.
    """
    require_positive(size=size)
    return each(weights, delta, lambda _name, start, change: start.add(change, alpha=size))


def each(
    weights: Tensors,
    other: Tensors,
    step: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Tensors:
    """Step every real or complex tensor, in float32 at least; the rest is the other model's."""
    return {
        name: (
            step(name, wide(start), other[name].to(wide_dtype(start.dtype)))
            if is_inexact(start)
            else other[name]
        ).to(start.dtype)
        for name, start in weights.items()
    }


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the precision that it is summed and stepped in: at least float32."""
    return tensor.to(wide_dtype(tensor.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision that a dtype is summed and stepped in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def last(
    state: State, role: str, name: str, like: torch.Tensor, initial: float = 0.0
) -> torch.Tensor:
    """A tensor of the state, or its first value."""
    if role not in state:
        return torch.full_like(like, initial)
    last = state[role].get(name)
    if last is None or last.shape != like.shape:
        raise ValueError(f"the strategy's state has no {role} of {name} {list(like.shape)}")
    return last
