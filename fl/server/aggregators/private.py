"""Differential privacy at the server: no released model tells whether a client took part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fl import privacy
from fl.config import Section
from fl.privacy import Spent, clipped, noisy
from fl.server.aggregators.base import Contribution, Streaming
from fl.server.aggregators.settings import Positive
from fl.server.strategies import State, add_delta
from fl.tensors import Tensors


class DPFedAvg(Streaming):
    """DP-FedAvg with a fixed clipping norm (McMahan et al. 2018, arXiv 1710.06963).

    Each client's difference is clipped to Euclid's norm `clip_norm` over all floating tensors
    together. Their sum is divided by the number of the federation's clients, whoever answered: a
    client that joins or leaves then moves the mean by at most `clip_norm` / N, while a denominator
    of those who answered would move with it too. Gaussian noise of standard deviation
    `noise_multiplier clip_norm / N` is added to every floating number that travels. What is not
    floating stays as the server has it.

    Epsilon is that of the Gaussian mechanism, once a step: every client is taken for one that took
    part in each, so nothing is gained by those who did not.

    The noise is new in every process, and its seed is kept nowhere: whoever has the seed can
    subtract the noise. So a run does not repeat to the last bit; what a checkpoint keeps is how
    often noise was added. A step that was told of and lost before its checkpoint counts too.
    """

    NOISED: ClassVar[str] = "noised"
    ANSWERED: ClassVar[str] = "answered"
    roles = frozenset({NOISED, ANSWERED})
    clips = True

    class Settings(Section):
        """All clients weigh alike."""

        clip_norm: Positive = 1.0
        """S: the largest Euclidean norm of a client's difference."""
        noise_multiplier: Positive = 1.0
        """z: the noise's standard deviation, as a multiple of what one client can change."""
        delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
        """The delta that epsilon is told for; well below 1 / N."""
        server_learning_rate: Positive = 1.0
        """How far the model goes along the noised mean."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        epsilon(settings.noise_multiplier, 1, settings.delta)  # a missing package is told now
        self._settings = settings
        self._num_clients = len(clients)

    @property
    def buffers(self) -> frozenset[str]:
        """None: one such as a running variance can be neither clipped nor noised and stay one."""
        return frozenset()

    @buffers.setter
    def buffers(self, names: Iterable[str]) -> None:
        if first := min(names, default=None):
            raise ValueError(
                f"the model's buffer {first} would leave a client unclipped and without noise: "
                f"{privacy.WITHOUT_BUFFERS}"
            )

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Clip one update and fold it in.

        Args:
            update: Differences.
            contribution: Whose they are; nothing else of it counts.

        Raises:
            ValueError: The client has one in this step already, or this one's norm is NaN.
        """
        answered = self._memory.get(self.ANSWERED, {})
        if contribution.client_id in answered:
            raise ValueError("a client may add one update to a step, lest it counts twice")
        super().add(clipped(update, self._settings.clip_norm), contribution)
        self._memory[self.ANSWERED] = {**answered, contribution.client_id: torch.tensor(True)}

    def report(self) -> dict[str, float]:
        """What the models up to now have cost, as (epsilon, delta)."""
        spent = epsilon(self._settings.noise_multiplier, self._steps(), self._settings.delta)
        return {"epsilon": spent, "delta": self._settings.delta}

    def lost(self, steps: int) -> None:
        """Count noised models that were told of and lost: a step again draws its noise anew."""
        self._memory[self.NOISED] = {"steps": torch.tensor(self._steps() + steps)}

    def _weight(self, contribution: Contribution) -> float:  # noqa: ARG002 - all alike
        return 1.0

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        settings = self._settings
        answered = self._mean.count / self._num_clients
        deviation = settings.noise_multiplier * settings.clip_norm / self._num_clients
        # A generator that is forgotten with the step.
        draw = privacy.generator()
        noised = {name: noisy(answered * tensor, deviation, draw) for name, tensor in mean.items()}
        self._memory = {self.NOISED: {"steps": torch.tensor(self._steps() + 1)}}
        unmoved = {name: weights[name] for name in weights.keys() - noised.keys()}
        return add_delta(weights, noised | unmoved, size=settings.server_learning_rate)

    def _steps(self) -> int:
        """How often noise was added."""
        noised: State = {self.NOISED: {"steps": torch.tensor(0)}} | self._memory
        return int(noised[self.NOISED]["steps"])


def epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """What some steps cost that every client took part in.

    Args:
        noise_multiplier: The noise's standard deviation by the sensitivity, positive.
        steps: How many, 0 or more.
        delta: The delta, above 0 and below 1.

    Returns:
        Epsilon.

    Raises:
        ValueError: The accountant is not installed.
    """
    return privacy.epsilon([Spent(noise_multiplier, 1.0, steps)], delta)
