"""Differential privacy's noise and its price, for the server's steps and for a site's.

dp-accounting is imported where it is needed: it is an extra, and slow to import.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from fl.tensors import Tensors, norm

SEED_BITS = 256
"""Of the operating system's randomness, for each generator of noise."""
WITHOUT_BUFFERS = "take GroupNorm instead of batch norm, and register constants as not persistent"
"""What to do with a model whose buffers would leave without noise."""


class Spent(NamedTuple):
    """Some steps of the sampled Gaussian mechanism."""

    noise_multiplier: float
    """The noise's standard deviation, as a multiple of what one participant can change."""
    sampling_rate: float
    """The chance of each to take part in a step, above 0 and at most 1."""
    steps: int
    """How many, 0 or more."""


def generator() -> np.random.Generator:
    """A source of noise that nobody can repeat.

    NumPy's takes all of a seed; torch's keeps 32 bits of it, few enough to be tried.
    """
    return np.random.default_rng(secrets.randbits(SEED_BITS))


def clipped(update: Tensors, most: float) -> Tensors:
    """An update's floating tensors, scaled down to a norm where theirs is larger.

    Args:
        update: Differences.
        most: The largest Euclidean norm of all together.

    Returns:
        The floating tensors, float32 at least. One whose norm overflows becomes zero.

    Raises:
        ValueError: The norm is NaN.
    """
    found = norm(update)
    if math.isnan(found):
        raise ValueError("its norm is no number")
    scale = min(1.0, most / found) if found > 0 else 1.0
    return {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * scale
        for name, tensor in update.items()
        if tensor.is_floating_point()
    }


def noisy(tensor: torch.Tensor, deviation: float, draw: np.random.Generator) -> torch.Tensor:
    """A tensor and independent Gaussian noise.

    Args:
        tensor: Float32 or float64.
        deviation: The noise's standard deviation.
        draw: Where it comes from.

    Returns:
        The sum, as wide as the tensor.
    """
    wanted = np.float64 if tensor.dtype == torch.float64 else np.float32
    noise = torch.from_numpy(np.asarray(draw.standard_normal(tuple(tensor.shape), dtype=wanted)))
    return tensor.add(noise.to(tensor.device), alpha=deviation)


def epsilon(spent: Iterable[Spent], delta: float) -> float:
    """What steps of the sampled Gaussian mechanism cost, by the RDP accountant of dp-accounting.

    Neighbours differ by one participant, who is there or not (https://arxiv.org/abs/1702.07476 and
    https://arxiv.org/abs/1908.10530 are the method, the package is
    https://github.com/google/differential-privacy/tree/main/python).

    Args:
        spent: The steps; each draws its participants anew, independently of each other.
        delta: The delta, above 0 and below 1.

    Returns:
        Epsilon.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise ValueError(
            f"differential privacy needs one package more ({error}): pip install 'fl-hpc[privacy]'"
        ) from error
    accountant = rdp.RdpAccountant()
    for noise_multiplier, sampling_rate, steps in spent:
        event = dp_accounting.GaussianDpEvent(noise_multiplier)
        if steps:
            accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_rate, event), steps)
    return float(accountant.get_epsilon(delta))
