"""Sites that take no time: queues, speeds and outages are drawn, and waiting is a jump.

The loop is the product's own (`fl.server.federation.Server`); `VirtualSites` stands in for its
endpoints and for its clock. What is trained is trained when an answer falls due, so no more updates
are in memory than the server holds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn
from torch.utils.data import Dataset

from fl.client import algorithms, data, devices, trainer
from fl.client.built import TrainingError
from fl.client.corrections import Correction, pull
from fl.client.warm import round_seed
from fl.config import Client, TrainConfigs
from fl.endpoints.base import EndpointError, JSONObject
from fl.errors import FederationError
from fl.tensors import Tensors, decode, encode
from fl.transport import Ref, Transport

Result = TypeVar("Result")

Queue = Callable[[float], float]
"""Draws the seconds that a task waits which is submitted at some second of the simulation."""


@dataclass(frozen=True)
class VirtualSite:
    """What a simulated site is like.

    Attributes:
        queue: Draws the queue delay of each task.
        seconds_per_step: Of one minibatch step, positive.
        transfer_seconds: To get the model, and again to put the update.
        held_seconds: How long a worker that is there waits for a task before its block ends; a
            block that has trained ends with that.
        offline: Outages, each from one second of the simulation to another, in order. A task that
            is there when one begins is lost; one that is sent during it waits for its end.
    """

    queue: Queue
    seconds_per_step: float = 1.0
    transfer_seconds: float = 0.0
    held_seconds: float = 120.0
    offline: Sequence[tuple[float, float]] = ()

    def online_from(self, moment: float) -> float:
        """The first moment, from some other on, at which the site is online."""
        while ends := [end for begin, end in self.offline if begin <= moment < end]:
            moment = max(ends)
        return moment

    def online_until(self, moment: float) -> float:
        """When the next outage after a moment begins."""
        return min((down for down, _ in self.offline if down > moment), default=math.inf)

    def survives(self, begin: float, end: float) -> bool:
        """Whether no outage begins after one moment and up to another."""
        return not any(begin < down <= end for down, _ in self.offline)


@dataclass(frozen=True)
class Trained:
    """What training at a simulated site gives.

    Attributes:
        update: What the request wants: the difference, or the trained model.
        num_samples: Samples it was trained on.
        metrics: The client's own numbers.
    """

    update: Tensors
    num_samples: int
    metrics: dict[str, float]


class Work(Protocol):
    """What simulated sites do."""

    def steps(self, request: JSONObject, seconds_per_step: float) -> int:
        """Minibatch steps that a request asks for, positive.

        Args:
            request: See `fl.server.requests.train_request`.
            seconds_per_step: The site's, for a budget in seconds.
        """
        ...

    def train(self, request: JSONObject, weights: Tensors, steps: int) -> Trained:
        """Do them.

        Args:
            request: See `fl.server.requests.train_request`.
            weights: The model that it names.
            steps: How many.

        Returns:
            What came out.

        Raises:
            FederationError: Training failed; it is the site's answer then.
        """
        ...


class Training:
    """The product's own trainer, in this process: SCAFFOLD's and `local_dp` are refused.

    Args:
        model: Any model of the federation's kind; it is loaded anew for every task.
        sets: Every client's training set.
    """

    def __init__(self, model: nn.Module, sets: Mapping[str, Dataset[Any]]) -> None:
        self._model, self._sets = model, sets

    def steps(self, request: JSONObject, seconds_per_step: float) -> int:
        """See `Work.steps`."""
        if request["steps"] is not None:
            return int(request["steps"])
        configs = TrainConfigs.model_validate(request["train_configs"])
        match configs.mode:
            case "step":
                return configs.num_local_steps
            case "seconds":
                return math.ceil(configs.num_local_seconds / seconds_per_step)
            case "epoch":
                dataset = self._sets[request["client_id"]]
                return configs.num_local_epochs * len(data.training_batches(dataset, configs, 0))

    def train(self, request: JSONObject, weights: Tensors, steps: int) -> Trained:
        """See `Work.train`."""
        name = request["client_id"]
        configs = TrainConfigs.model_validate(request["train_configs"])
        correction = _correction(configs, weights)
        self._model.load_state_dict(weights, strict=False)
        done = trainer.train(
            self._model,
            self._sets[name],
            configs,
            seed=round_seed(request["model_configs"]["seed"], name, request["round"]),
            steps=steps,
            learning_rate_scale=request["learning_rate_scale"],
            correction=correction,
        )
        trained = {n: t for n, t in self._model.state_dict().items() if n in weights}
        update = trained if request["update"] == "model" else algorithms.delta(trained, weights)
        return Trained(update, done.num_samples, {"train_loss": done.loss})


def _correction(configs: TrainConfigs, received: Tensors) -> Correction:
    """What the trainer adds to gradients; refused where a site would keep or add what none has."""
    if configs.trainer == "ScaffoldTrainer":
        raise TrainingError("a virtual site has no ScaffoldTrainer")
    if configs.local_dp is not None:
        raise TrainingError("a virtual site has no local_dp")
    return pull(configs, received, devices.choose(configs.device))


class VirtualSites:
    """Simulated sites and their clock: `fl.endpoints.base.Endpoints`, `fl.server.clock.Clock`.

    Args:
        sites: What each client's site is like, by client_id.
        work: What they do.
        transport: The way for models, the server's too.
        tick: Virtual seconds between two looks of the server at its sites; finite.
    """

    def __init__(
        self,
        sites: Mapping[str, VirtualSite],
        work: Work,
        transport: Transport,
        *,
        tick: float = 60.0,
    ) -> None:
        self.tick = tick
        self._sites, self._work, self._transport = sites, work, transport
        self._now = 0.0
        self._woken = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._running: dict[str, float] = {}
        self._held: dict[str, float] = {}

    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Jump to the next event that wakes the server, but no further than some seconds."""
        until = self._now + max(seconds, 0.0)
        while not self._woken and self._events and self._events[0][0] <= until:
            self._jump()
        if not self._woken:
            self._now = until
        self._woken = False

    def _jump(self) -> None:
        """Go to the next event, and to all at the same moment."""
        self._now = self._events[0][0]
        while self._events and self._events[0][0] == self._now:
            _moment, _count, happen = heapq.heappop(self._events)
            happen()

    def wake(self) -> None:
        """See `Clock.wake`."""
        self._woken = True

    def call(self, question: Callable[[], Result]) -> Future[Result]:
        """See `Clock.call`: it is answered at once."""
        answer: Future[Result] = Future()
        try:
            answer.set_result(question())
        except FederationError as error:
            answer.set_exception(error)
        return answer

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        """See `Endpoints.submit`."""
        future: Future[JSONObject] = Future()
        if request["operation"] == "progress":
            self._find(client.client_id, request["job"], future)
        elif request["operation"] == "enter":
            self._enter(client.client_id, request["job"], future)
        else:
            self._queue(client.client_id, request, future)
        return future

    def health(self, client: Client) -> str | None:
        """See `Endpoints.health`."""
        back = self._sites[client.client_id].online_from(self._now)
        return None if back == self._now else f"its endpoint is offline until {back:.0f} s"

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        return EndpointError(str(error))

    def session(self, client: Client) -> str | None:  # noqa: ARG002  (the protocol's signature)
        """See `Endpoints.session`: a simulation ends with its process."""
        return None

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:  # noqa: ARG002  (the protocol's signature)
        """See `Endpoints.recover`."""
        return {}

    def close(self) -> None:
        """Forget what is under way."""
        self._events.clear()
        self._running.clear()
        self._held.clear()

    def _queue(self, name: str, request: JSONObject, future: Future[JSONObject]) -> None:
        """Draw when a task will be done; if its site does not live so long, it never is."""
        site = self._sites[name]
        steps = self._work.steps(request, site.seconds_per_step)
        delivered = site.online_from(self._now)
        held = self._held.pop(name, -math.inf) >= delivered
        started = delivered if held else delivered + site.queue(delivered)
        seconds = {
            "get": site.transfer_seconds,
            "train": steps * site.seconds_per_step,
            "put": site.transfer_seconds,
        }
        done = started + sum(seconds.values())
        if site.survives(delivered, started):
            self._running[request["job"]] = started
        if site.survives(delivered, done):
            self._at(done, lambda: future.set_result(self._answer(request, steps, seconds)))

    def _enter(self, name: str, job: str, future: Future[JSONObject]) -> None:
        """Draw when a block begins for a task that asks nothing: it is there for another then."""
        site = self._sites[name]
        delivered = site.online_from(self._now)
        started = delivered + site.queue(delivered)

        def begin() -> None:
            self._running.pop(job)
            self._held[name] = min(started + site.held_seconds, site.online_until(started))
            future.set_result({"result": {}})

        if site.survives(delivered, started):
            self._running[job] = started
            self._at(started, begin)

    def _answer(self, request: JSONObject, steps: int, seconds: dict[str, float]) -> JSONObject:
        """Train, now that the answer is due."""
        self._running.pop(request["job"], None)
        try:
            weights = decode(self._transport.get(Ref.from_json(request["model"])))
            trained = self._work.train(request, weights, steps)
        except FederationError as error:
            kind = type(error).__name__
            return {"error": {"type": kind, "message": str(error), "traceback": ""}}
        update = self._transport.put(encode(trained.update))
        return {
            "result": {
                "job": request["job"],
                "update": update.to_json(),
                "num_samples": trained.num_samples,
                "steps": steps,
                "metrics": trained.metrics,
                "seconds": seconds,
            }
        }

    def _find(self, name: str, job: str, future: Future[JSONObject]) -> None:
        """A probe is a task in the same block: it answers once that has come, if it comes."""
        site, begun = self._sites[name], self._running.get(job, self._now)
        moment = max(self._now, begun, site.online_from(self._now))
        alive = job in self._running and site.survives(begun, moment)
        found = {"result": {"recorded": True, "alive": alive}}
        if site.survives(self._now, moment):
            self._at(moment, lambda: future.set_result(found))

    def _at(self, moment: float, happen: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, happen))
