"""Aggregators for rounds: averages, server optimizers, and what corrects clients that differ."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch

from fl.config import Section
from fl.server.aggregation import WeightedMean
from fl.server.aggregators.base import Contribution, Streaming
from fl.server.aggregators.settings import ClientWeights, Fraction, Positive
from fl.server.aggregators.tiles import Optimizer, optimize_by_tile, step_by_tile
from fl.server.strategies import (
    State,
    add_delta,
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fednova_norm,
    fedyogi,
    scaffold,
)
from fl.server.strategies.steps import wide
from fl.tensors import Tensors, is_inexact


class _Rounds(Streaming):
    """Steps of a model's parameters; its buffers go where the clients' went on average."""

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        parameters = {name: t for name, t in weights.items() if name not in self.buffers}
        buffers = {name: t for name, t in weights.items() if name in self.buffers}
        moved = self._step(parameters, mean) | step_by_tile(buffers, mean, add_delta)
        return {name: moved[name] for name in weights}

    @abstractmethod
    def _step(self, parameters: Tensors, mean: Tensors) -> Tensors:
        """The next parameters, from a mean of more than theirs."""


class _Averaging(_Rounds):
    """The clients' mean difference, by their weights, and a server optimizer's step."""

    def __init__(
        self, settings: ClientWeights, clients: Sequence[str], optimizer: Optimizer
    ) -> None:
        super().__init__()
        settings.require_weights_of(clients)
        self._weight_of = settings.weight
        self._optimizer = optimizer

    def _weight(self, contribution: Contribution) -> float:
        return self._weight_of(contribution)

    def _step(self, parameters: Tensors, mean: Tensors) -> Tensors:
        moved, memory = optimize_by_tile(parameters, mean, self._memory, self._optimizer)
        self._memory = {role: memory.get(role, {}) for role in self.roles}
        return moved


class FedAvg(_Averaging):
    """Federated averaging (McMahan et al. 2017, arXiv 1602.05629)."""

    class Settings(ClientWeights):
        """Weights only."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__(settings, clients, fedavg)


class FedAvgM(_Averaging):
    """Server momentum (Hsu et al. 2019, arXiv 1909.06335)."""

    roles = frozenset({"momentum"})

    class Settings(ClientWeights):
        """APPFL's names."""

        server_learning_rate: Positive = 1.0
        """How far the momentum takes the model."""
        server_momentum_param_1: Fraction = 0.9
        """Share of the last step that is kept."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        optimizer = partial(
            fedavgm,
            learning_rate=settings.server_learning_rate,
            momentum=settings.server_momentum_param_1,
        )
        super().__init__(settings, clients, optimizer)


class FedAdagrad(_Averaging):
    """Adagrad at the server (Reddi et al. 2021, arXiv 2003.00295)."""

    roles = frozenset({"momentum", "second_moment"})

    class Settings(ClientWeights):
        """APPFL's names."""

        server_learning_rate: Positive = 0.01
        """eta; the paper tunes it for every task."""
        server_momentum_param_1: Fraction = 0.0
        """beta_1, the first moment's decay."""
        server_adapt_param: Positive = 1e-3
        """tau: the smaller, the more adaptive."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        optimizer = partial(
            fedadagrad,
            learning_rate=settings.server_learning_rate,
            beta1=settings.server_momentum_param_1,
            tau=settings.server_adapt_param,
        )
        super().__init__(settings, clients, optimizer)


class _TwoMoments(ClientWeights):
    """APPFL's names."""

    server_learning_rate: Positive = 0.01
    """eta; the paper tunes it for every task."""
    server_momentum_param_1: Fraction = 0.9
    """beta_1, the first moment's decay."""
    server_momentum_param_2: Fraction = 0.99
    """beta_2, the second moment's decay."""
    server_adapt_param: Positive = 1e-3
    """tau: the smaller, the more adaptive."""

    def bind(self, optimizer: Callable[..., tuple[Tensors, State]]) -> Optimizer:
        """The optimizer with these hyper-parameters."""
        return partial(
            optimizer,
            learning_rate=self.server_learning_rate,
            beta1=self.server_momentum_param_1,
            beta2=self.server_momentum_param_2,
            tau=self.server_adapt_param,
        )


class FedAdam(_Averaging):
    """Adam at the server (Reddi et al. 2021)."""

    roles = FedAdagrad.roles
    Settings = _TwoMoments

    def __init__(self, settings: _TwoMoments, clients: Sequence[str]) -> None:
        super().__init__(settings, clients, settings.bind(fedadam))


class FedYogi(_Averaging):
    """Yogi at the server (Reddi et al. 2021)."""

    roles = FedAdagrad.roles
    Settings = _TwoMoments

    def __init__(self, settings: _TwoMoments, clients: Sequence[str]) -> None:
        super().__init__(settings, clients, settings.bind(fedyogi))


class FedNova(_Rounds):
    """Averaging that uneven local steps do not bias (Wang et al. 2020, arXiv 2007.07481).

    From w to w + tau_eff sum_i p_i Delta_i / a_i, with p_i = n_i / sum n, a_i the clients'
    `fednova_norm`s and tau_eff = sum_i p_i a_i. Buffers go where the clients' went on average.
    """

    NORM: ClassVar[str] = "fednova/norm"
    """The mean of the norms, which rides along with the buffers'."""
    UNDIVIDED: ClassVar[str] = "undivided "
    """Before the roles of the buffers' mean in a state."""

    class Settings(ClientWeights):
        """What clients do between steps."""

        momentum: Fraction | None = None
        """The clients' SGD momentum; each client's own where not set."""
        proximal: Fraction | None = None
        """The clients' learning rate times FedProx's mu; each client's own where not set."""
        effective_steps: Positive | None = None
        """tau_eff; the clients' weighted mean where not set."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        settings.require_weights_of(clients)
        self._settings = settings
        self._descents: dict[str, dict[str, float]] = {}
        self._undivided = WeightedMean()

    def descends(self, client: str, *, momentum: float, proximal: float) -> None:
        """Told how a client descends, which says how its training adds gradients up.

        Args:
            client: Its id.
            momentum: Its SGD momentum.
            proximal: Its learning rate times FedProx's mu.

        Raises:
            ValueError: A number is out of range, or the aggregator's settings have another.
        """
        theirs = {"momentum": momentum, "proximal": proximal}
        for name, value in theirs.items():
            own = getattr(self._settings, name)
            if own is not None and not math.isclose(own, value):
                raise ValueError(f"{name} is {own}, but {client} trains with {value:g}")
        try:
            fednova_norm(1, **theirs)
        except ValueError as error:
            raise ValueError(f"{client}: {error}") from error
        self._descents[client] = theirs

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Fold one update in: parameters by its weight over its norm, the rest by its weight.

        Dividing the parameters themselves would take another model's memory where they are narrow.
        """
        weight, norm = self._weight(contribution), self._norm(contribution)
        divided = {n: t for n, t in update.items() if is_inexact(t) and n not in self.buffers}
        undivided = {n: t for n, t in update.items() if n not in divided}
        self._mean.add(divided, weight / norm)
        norms = torch.tensor(norm, dtype=torch.float64)
        self._undivided.add({**undivided, self.NORM: norms}, weight)

    def state(self) -> State:
        """Both means as they are."""
        undivided = self._undivided.state()
        return {
            **super().state(),
            **{f"{self.UNDIVIDED}{role}": its for role, its in undivided.items()},
        }

    def restore(self, state: State) -> None:
        """Go on from another's `state`."""
        undivided = {r: its for r, its in state.items() if r.startswith(self.UNDIVIDED)}
        super().restore({role: its for role, its in state.items() if role not in undivided})
        self._undivided = WeightedMean()
        self._undivided.restore(
            {role.removeprefix(self.UNDIVIDED): its for role, its in undivided.items()}
        )
        if self._undivided.count != self._mean.count:
            raise ValueError("its updates are divided by their norms")

    def _norm(self, contribution: Contribution) -> float:
        settings = self._settings
        stated = {"momentum": settings.momentum or 0.0, "proximal": settings.proximal or 0.0}
        descent = self._descents.get(contribution.client_id, stated)
        return fednova_norm(contribution.steps, **descent)

    def _weight(self, contribution: Contribution) -> float:
        return self._settings.weight(contribution)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        mean.update(self._undivided.result())  # the mean's own: it is let go as it is stepped
        moved = super()._move(weights, mean)
        self._undivided = WeightedMean()
        return moved

    def _step(self, parameters: Tensors, mean: Tensors) -> Tensors:
        size = self._settings.effective_steps or float(mean[self.NORM])
        # The mean is of sum_i n_i / a_i, the rule is of sum_i n_i.
        size *= self._mean.total / self._undivided.total
        return step_by_tile(parameters, mean, partial(add_delta, size=size))


class Scaffold(_Rounds):
    """Control variates against client drift (Karimireddy et al. 2020, arXiv 1910.06378).

    The server's control variate has a tensor for every floating parameter that travels.
    """

    PREFIX: ClassVar[str] = "control/"
    roles = frozenset({"control"})

    class Settings(Section):
        """All clients weigh alike."""

        server_learning_rate: Positive = 1.0
        """How far the model goes towards the clients' mean."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        self._learning_rate = settings.server_learning_rate
        self._num_clients = len(clients)

    def extra(self, weights: Tensors) -> Tensors:
        """The server's control variate c, as `control/NAME`, float32 at least."""
        control = self._memory.get("control", {})
        return {
            self.PREFIX + name: control[name] if name in control else torch.zeros_like(wide(tensor))
            for name, tensor in weights.items()
            if tensor.is_floating_point() and name not in self.buffers
        }

    def _weight(self, contribution: Contribution) -> float:  # noqa: ARG002 - all alike
        return 1.0

    def _step(self, parameters: Tensors, mean: Tensors) -> Tensors:
        moved, self._memory = scaffold(
            parameters,
            mean,
            self._memory,
            control_delta={
                name.removeprefix(self.PREFIX): change
                for name, change in mean.items()
                if name.startswith(self.PREFIX)
            },
            participation=self._mean.count / self._num_clients,
            learning_rate=self._learning_rate,
        )
        return moved
