"""Aggregation that a minority of wrong updates cannot steer.

Unlike a mean, these need every update of a round at once: N models. Beyond those and the result
they work in slices of at most `SLICE` elements over all updates, so what they need on top does not
grow with the model or the number of clients: some 100 MiB at most. Updates may be memory-mapped
files; each slice is read once, and once more for the mean that follows Krum.

Updates are differences, or models that started from the same one. All have the same names, shapes
and dtypes, and no NaN (`fl.tensors.require_same_layout`). Half precision is averaged in float32,
and so is the result: it is rounded once, when the model is stepped. Of what is not floating
(counters), the median and the trimmed mean take the lower middle value, which a minority cannot
steer either, and multi-Krum the best update's. Equal updates give just that update, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from fl.server.strategies.steps import wide
from fl.tensors import Tensors

SLICE = 2**21
"""Elements, over all updates, that are worked on at a time."""


def coordinate_median(updates: Sequence[Tensors]) -> Tensors:
    """Each coordinate's median (Yin et al. 2018, arXiv 1803.01498, Algorithm 1, option I).

    Between the two middle values where the number of updates is even. It holds out against fewer
    than half of the updates.

    Args:
        updates: At least one.

    Returns:
        Tensors in the updates' dtypes, but floats at least float32.

    Raises:
        ValueError: There is no update, or a tensor is complex.
    """
    _require_updates(updates)
    lower, upper = (len(updates) - 1) // 2, len(updates) // 2
    return _by_coordinate(updates, lambda ordered: _mean(ordered[lower : upper + 1]))


def trimmed_mean(updates: Sequence[Tensors], *, fraction: float = 0.1) -> Tensors:
    """Each coordinate's mean without its extremes (Yin et al. 2018, Algorithm 1, option II).

    Of N values, the floor(fraction N) least and as many greatest are left out. It holds out
    against as many wrong updates as it trims from one side.

    Args:
        updates: At least one.
        fraction: Share that is trimmed from each side, 0 <= fraction < 1/2; 0 gives the mean.

    Returns:
        Tensors in the updates' dtypes, but floats at least float32.

    Raises:
        ValueError: There is no update, a tensor is complex, or the fraction is out of range.
    """
    _require_updates(updates)
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction must be at least 0 and below 1/2, not {fraction}")
    # 0.29 * 100 is 28.999...96: a whole number that rounding has missed is meant as one.
    trimmed = min(math.floor(fraction * len(updates) + 1e-9), (len(updates) - 1) // 2)
    kept = slice(trimmed, len(updates) - trimmed)
    return _by_coordinate(updates, lambda ordered: _mean(ordered[kept]))


def multi_krum(
    updates: Sequence[Tensors], *, num_byzantine: int, keep: int | None = None
) -> Tensors:
    """Multi-Krum: the mean of the updates that lie closest to others (Blanchard et al. 2017).

    https://papers.nips.cc/paper/6617, section 4 and its Multi-Krum variant; see `krum_order`.

    Args:
        updates: More than 2 `num_byzantine` + 2.
        num_byzantine: f, how many may be wrong, 0 or more.
        keep: m, how many are averaged, 1 to N; N - f - 2 when None. 1 is Krum.

    Returns:
        Tensors in the updates' dtypes, but floats at least float32; what is not floating is the
        best update's.

    Raises:
        ValueError: There are too few updates for f, a tensor is complex, or `keep` is out of range.
    """
    order = krum_order(updates, num_byzantine=num_byzantine)
    keep = len(updates) - num_byzantine - 2 if keep is None else keep
    if not 1 <= keep <= len(updates):
        raise ValueError(f"keep must be 1 to {len(updates)}, not {keep}")
    chosen = [updates[index] for index in order[:keep]]
    return {
        name: _in_slices(
            [update[name] for update in chosen],
            _mean if tensor.is_floating_point() else lambda stacked: stacked[0],
        )
        for name, tensor in chosen[0].items()
    }


def krum_order(updates: Sequence[Tensors], *, num_byzantine: int) -> list[int]:
    """Updates by Krum's score, the best first: who is averaged, and who looks wrong.

    An update's score is the sum of its squared Euclidean distances to its N - f - 2 closest
    others, over all floating tensors, in float64 (Blanchard et al. 2017, section 4).

    Args:
        updates: More than 2 `num_byzantine` + 2.
        num_byzantine: f, how many may be wrong, 0 or more.

    Returns:
        Indices into `updates`; of equal scores, the first in `updates` comes first.

    Raises:
        ValueError: There are too few updates for f, or a tensor is complex.
    """
    _require_updates(updates)
    _require_real(updates)
    needed = 2 * num_byzantine + 3
    if num_byzantine < 0 or len(updates) < needed:
        raise ValueError(
            f"Krum against {num_byzantine} wrong updates needs at least {needed}, "
            f"not {len(updates)}"
        )
    # The first of the sorted distances is the update's own, zero.
    closest = _squared_distances(updates).sort(dim=1).values[:, 1 : -num_byzantine - 1]
    return closest.sum(dim=1).argsort(stable=True).tolist()


def _by_coordinate(
    updates: Sequence[Tensors], reduce: Callable[[torch.Tensor], torch.Tensor]
) -> Tensors:
    """Reduce each coordinate's values in their order; counters to the lower middle one."""
    middle = (len(updates) - 1) // 2

    def in_order(stacked: torch.Tensor) -> torch.Tensor:
        # NumPy's sort of values side by side is several times as fast as torch's; it has no
        # bfloat16, and puts NaN last as well.
        ordered = torch.from_numpy(np.sort(wide(stacked).t().numpy(), axis=1)).t()
        return reduce(ordered) if ordered.is_floating_point() else ordered[middle]

    _require_real(updates)
    return {name: _in_slices([update[name] for update in updates], in_order) for name in updates[0]}


def _in_slices(
    tensors: list[torch.Tensor], reduce: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Reduce tensors over their first, stacked dimension, some coordinates at a time."""
    result = torch.empty_like(wide(tensors[0]), memory_format=torch.contiguous_format)
    flat = result.view(-1)
    for where, stacked in _slices(tensors):
        flat[where] = reduce(stacked)
    return result


def _slices(tensors: list[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Stacks of shape [N, coordinates] on the CPU, each with at most `SLICE` elements."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    width = max(1, SLICE // len(flat))
    for start in range(0, flat[0].numel(), width):
        where = slice(start, start + width)
        yield where, torch.stack([values[where] for values in flat]).cpu()


def _mean(stacked: torch.Tensor) -> torch.Tensor:
    """The mean over the first dimension; of equal values, exactly that value."""
    values = wide(stacked)
    return values[0] + (values - values[0]).mean(dim=0)


def _squared_distances(updates: Sequence[Tensors]) -> torch.Tensor:
    """Pairwise squared distances, float64 [N, N]."""
    count = len(updates)
    pairs = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for name, tensor in updates[0].items():
        if tensor.is_floating_point():
            for _where, stacked in _slices([update[name] for update in updates]):
                # By differences, not a Gram matrix: updates of a round are close to each other.
                pairs += torch.pdist(stacked.double()).square_()
    distances = torch.zeros(count, count, dtype=torch.float64)
    first, second = torch.triu_indices(count, count, offset=1)
    distances[first, second] = pairs
    return distances + distances.T


def _require_real(updates: Sequence[Tensors]) -> None:
    if names := [name for name, tensor in updates[0].items() if tensor.is_complex()]:
        raise ValueError(f"{names[0]} is complex: robust rules are for real numbers")


def _require_updates(updates: Sequence[Tensors]) -> None:
    if not updates:
        raise ValueError("no update to aggregate")
