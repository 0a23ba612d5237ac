"""Updates as whole numbers modulo 2^64, which masks can be added to.

An update x is first clipped to Euclid's norm C over all its floating tensors together, so none of
its numbers is larger than C. Each then becomes round(x w 2^32 / C), w being the site's weight.

The sum of n sites of weights that add up to W is exact. Divided by 2^32 W / C it is the weighted
mean of the clipped updates, to within n C / (2^33 W) and the precision of float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from fl.secure_sum.keys import SecureSumError
from fl.secure_sum.masks import Words
from fl.tensors import Tensors, norm

MASKED = "masked"
"""The name of the one tensor that travels: of `length` whole numbers, int64."""
FRACTION_BITS = 32
"""Of the clipping norm, which a number is told in 2^32nds of."""
TILE = 1 << 18
"""Numbers that are widened at a time."""


def most_weight(sites: int) -> int:
    """The largest weight that a site may have, for no sum of so many to overflow.

    One bit is the sign's, and one is left for what a norm in float32 is off.

    Args:
        sites: How many are summed.
    """
    return (1 << (62 - FRACTION_BITS)) // sites


def require_weight(weight: int, sites: int) -> None:
    """Refuse a weight that the sum has no room for.

    Args:
        weight: A site's.
        sites: How many are summed.

    Raises:
        SecureSumError: It is too large.
    """
    if weight > most_weight(sites):
        raise SecureSumError(
            f"{weight} samples are too many for a secure sum of {sites} sites, which has room for "
            f"{most_weight(sites)} each: take client_weights_mode: equal"
        )


def length(layout: Mapping[str, torch.Tensor]) -> int:
    """How many numbers of a model are summed: those of its floating tensors.

    Args:
        layout: The model; only shapes and dtypes count.
    """
    return sum(tensor.numel() for tensor in layout.values() if tensor.is_floating_point())


def encoded(update: Tensors, clip_norm: float, weight: int, sites: int) -> Words:
    """An update in whole numbers, its floating tensors one behind the other by their names.

    Args:
        update: Differences; what is not floating is left out.
        clip_norm: C, positive.
        weight: The site's, positive.
        sites: How many are summed.

    Returns:
        uint64, in one dimension.

    Raises:
        SecureSumError: A number is not finite, or the weight too large.
    """
    require_weight(weight, sites)
    size = norm(update)
    if not math.isfinite(size):
        raise SecureSumError("the update's norm is no finite number")
    scale = weight * 2.0**FRACTION_BITS / max(clip_norm, size)
    words = np.empty(length(update), np.uint64)
    end = 0
    for _, tensor in _floating(update):
        for tile in torch.split(tensor.detach().cpu().reshape(-1), TILE):
            begin, end = end, end + tile.numel()
            words[begin:end] = np.rint(tile.double().numpy() * scale).astype(np.int64).view("u8")
    return words


def decoded(total: Words, layout: Tensors, clip_norm: float, weight: int) -> Tensors:
    """The weighted mean, of a sum.

    Args:
        total: The sum of what `encoded` gave, modulo 2^64.
        layout: Tensors of the names and shapes that were summed.
        clip_norm: C.
        weight: W, the sum of the weights.

    Returns:
        The floating tensors, float32 or float64 as their dtype needs.
    """
    scale = clip_norm / (weight * 2.0**FRACTION_BITS)
    mean: Tensors = {}
    end = 0
    for name, like in _floating(layout):
        begin, end = end, end + like.numel()
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        flat = torch.empty(like.numel(), dtype=wide)
        whole = total[begin:end].view(np.int64)
        for at in range(0, len(whole), TILE):
            flat[at : at + TILE] = torch.from_numpy(whole[at : at + TILE] * scale)
        mean[name] = flat.reshape(like.shape)
    return mean


def _floating(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return sorted((name, t) for name, t in tensors.items() if t.is_floating_point())
