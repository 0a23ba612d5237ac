"""DP-SGD at a site: what is sent hides from its reader whether one sample was in the training set.

Abadi et al. 2016, https://arxiv.org/abs/1607.00133, Algorithm 1: every sample's gradient is
clipped, and noise is added to their sum. Opacus (https://opacus.ai) finds and clips the gradients.
Who is in a minibatch and what the noise is are drawn from a generator of the site's own: the run's
seed is the server's, who could take both away.

Opacus is imported where it is needed: it is an extra.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from fl import privacy
from fl.client import data, frozen
from fl.client.spending import PrivacyError
from fl.config import DPSGD, TrainConfigs
from fl.privacy import noisy

Wrap = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
LEAST_DEVIATION = 1e-30
"""Of the noise: float32 holds gradients of that size beside it, and their squares' sums above."""


class PoissonBatches(Sampler[list[int]]):
    """An epoch of minibatches that each sample is in by chance, independently of all others.

    Args:
        samples: How many there are.
        rate: The chance of each, above 0 and at most 1.
    """

    def __init__(self, samples: int, rate: float) -> None:
        self._samples, self._rate = samples, rate
        self._draw = privacy.generator()

    def __len__(self) -> int:
        """Minibatches an epoch, in which a sample is once on average."""
        return math.ceil(1 / self._rate)

    def __iter__(self) -> Iterator[list[int]]:
        """The minibatches, as places in the set; one may be empty."""
        for _ in range(len(self)):
            yield np.flatnonzero(self._draw.random(self._samples) < self._rate).tolist()


def sampling_rate(samples: int, configs: TrainConfigs) -> float:
    """The chance of a sample to be in a minibatch: `train_batch_size` of them on average."""
    return min(1.0, configs.train_batch_size / samples)


def batches(dataset: Dataset[Any], configs: TrainConfigs) -> DataLoader[Any]:
    """Minibatches by Poisson sampling, which the accountant reckons with.

    Args:
        dataset: Samples of (input, label).
        configs: The mean size of a minibatch, workers.

    Returns:
        The minibatches of an epoch. An empty one has tensors of length 0.
    """
    samples = data.count(dataset)

    def collate(found: list[Any]) -> list[torch.Tensor]:
        inputs, labels = default_collate(found or [dataset[0]])
        return [inputs[: len(found)], labels[: len(found)]]

    return DataLoader(
        dataset,
        batch_sampler=PoissonBatches(samples, sampling_rate(samples, configs)),
        collate_fn=collate,
        **data.workers(configs),
    )


@contextmanager
def applied(model: nn.Module, configs: TrainConfigs) -> Iterator[Wrap]:
    """Have a model's gradients found sample by sample, where `configs` want it.

    Args:
        model: The model, in training mode.
        configs: What is wanted.

    Yields:
        What makes of an optimizer one that clips each sample's gradient and adds noise.

    Raises:
        PrivacyError: Opacus is not installed, or does not know a layer of the model; or something
            of the model would leave without noise, or mixes samples.
    """
    if configs.dp_sgd is None:
        yield lambda optimizer: optimizer
        return
    wanted = configs.dp_sgd
    require_covered(model)
    try:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise PrivacyError(
            f"dp_sgd needs packages that this site lacks ({error}): pip install 'fl-hpc[privacy]'"
        ) from error
    try:
        hooked = GradSampleModule(model)
    except NotImplementedError as error:
        raise PrivacyError(
            f"dp_sgd: a sample's gradient cannot be told from another's in this model "
            f"({' '.join(str(error).split())}): take GroupNorm instead of batch norm"
        ) from error

    def wrap(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        clipping = DPOptimizer(
            optimizer,
            noise_multiplier=0.0,  # what Opacus draws, torch's 32 bits of a seed would tell
            max_grad_norm=wanted.max_grad_norm,
            expected_batch_size=configs.train_batch_size,
        )
        clipping.attach_step_hook(_noise(wanted, configs.train_batch_size))
        return clipping  # type: ignore[no-any-return]  # Opacus has no types

    # Said of every model whose first layer takes data: data needs no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    try:
        yield wrap
    finally:
        hooked.zero_grad(set_to_none=True)
        hooked.to_standard_module()


def require_covered(model: nn.Module) -> None:
    """Refuse what Opacus lets pass: it looks at trained layers alone, and all else leaves too.

    Args:
        model: The model.

    Raises:
        PrivacyError: Something of it would leave without noise, or mixes samples.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in frozen.travelling(model):
        if name not in parameters:
            raise PrivacyError(
                f"dp_sgd: the model's buffer {name} would leave without noise: "
                f"{privacy.WITHOUT_BUFFERS}"
            )
        if parameters[name].is_complex():
            raise PrivacyError(f"dp_sgd: the complex parameter {name} would get half its noise")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PrivacyError(
                f"dp_sgd: {name or 'the model'} mixes samples: {privacy.WITHOUT_BUFFERS}"
            )


def mean_of_samples(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    outputs: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """The mean of samples' losses, each found by itself.

    A loss of the minibatch may weigh a sample by the labels of others, as a mean over those that
    are not ignored does: then clipping bounds what no sample can change.

    Args:
        loss: Of outputs and labels, one number.
        outputs: The model's (n, ...).
        labels: Theirs (n, ...).

    Returns:
        One number.

    Raises:
        PrivacyError: There is not one output for each sample.
    """
    if len(outputs) != len(labels):
        raise PrivacyError(
            f"dp_sgd: the model gives {len(outputs)} outputs for {len(labels)} samples, so that "
            "nobody can tell whose they are"
        )
    each = (slice(index, index + 1) for index in range(len(outputs)))
    return torch.stack([loss(outputs[one], labels[one]).reshape(()) for one in each]).mean()


def require_each(model: nn.Module, samples: int) -> None:
    """See that what is clipped are the samples' gradients.

    Args:
        model: After the backward pass.
        samples: In the minibatch.

    Raises:
        PrivacyError: A layer has seen other things as samples, such as the slices of each.
    """
    for name, parameter in model.named_parameters():
        found = getattr(parameter, "grad_sample", None)
        if isinstance(found, torch.Tensor) and len(found) != samples:
            raise PrivacyError(
                f"dp_sgd: {name.removeprefix('_module.')} has {len(found)} gradients for {samples} "
                "samples: the model must keep samples apart in its first dimension"
            )


def _noise(wanted: DPSGD, batch_size: int) -> Callable[[Any], None]:
    """Adds noise to gradients that are clipped, summed and divided by the mean batch's size."""
    draw = privacy.generator()
    deviation = wanted.noise_multiplier * wanted.max_grad_norm / batch_size
    if deviation < LEAST_DEVIATION:
        raise PrivacyError(
            f"dp_sgd: for a train_batch_size of {batch_size} the noise would be {deviation:.1e}, "
            "which float32 takes for none"
        )

    def add(optimizer: Any) -> None:
        for parameter in optimizer.params:
            parameter.grad = noisy(parameter.grad, deviation, draw)

    return add


def no_samples(model: nn.Module) -> None:
    """What `backward` leaves of an empty minibatch: no sample's gradient; noise is still added."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]  # Opacus' own
