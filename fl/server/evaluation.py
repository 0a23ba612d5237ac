"""Federated evaluation: the global model on every site's own validation set, weighted by its size.

A round's model is evaluated by the tasks that it is sent with anyway, before they train it; only
the last one, which nobody trains any more, is sent for that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any
from uuid import uuid4

from fl.config import Client, Federation
from fl.endpoints.base import Endpoints, JSONObject, answer_of
from fl.errors import FederationError
from fl.sealing import ServerKeys
from fl.server.answers import is_number
from fl.server.clock import Clock
from fl.server.events import SiteEvaluation, SitesEvaluated
from fl.server.requests import evaluate_request
from fl.server.schedulers import Answer
from fl.tensors import Data, Tensors, pieces
from fl.transport import Transport


def is_due(federation: Federation, version: int) -> bool:
    """Whether the model after some steps is to be evaluated by those who train it.

    Args:
        federation: The configuration.
        version: Steps that the server has taken.
    """
    every = federation.server_configs.federated_evaluation
    return every is not None and version > 0 and version % every == 0


def of_answers(answers: Sequence[Answer], during: int) -> list[SitesEvaluated]:
    """What sites found of the models that they were sent, before they trained them.

    Args:
        answers: A round's.
        during: The round.

    Returns:
        One for each model that any of them evaluated, the oldest first.
    """
    found: dict[int, dict[str, SiteEvaluation]] = {}
    for answer in answers:
        loss, accuracy = (answer.metrics.get(f"pre_val_{name}") for name in ("loss", "accuracy"))
        if answer.num_validation_samples and loss is not None and accuracy is not None:
            evaluation = SiteEvaluation(loss, accuracy, answer.num_validation_samples)
            found.setdefault(answer.version, {})[answer.client_id] = evaluation
    return [mean(version, during, found[version]) for version in sorted(found)]


def mean(version: int, during: int, sites: Mapping[str, SiteEvaluation]) -> SitesEvaluated:
    """One model's evaluations and their mean, by samples.

    Args:
        version: Steps that the server had taken when it sent the model.
        during: The round in which they came.
        sites: What each site found; at least one.
    """
    total = sum(site.num_samples for site in sites.values())
    return SitesEvaluated(
        round=version,
        during=during,
        loss=sum(site.loss * site.num_samples for site in sites.values()) / total,
        accuracy=sum(site.accuracy * site.num_samples for site in sites.values()) / total,
        num_samples=total,
        sites=dict(sites),
    )


def at_sites(
    federation: Federation,
    clients: Sequence[Client],
    *,
    endpoints: Endpoints,
    transport: Transport,
    clock: Clock,
    weights: Tensors,
    version: int,
    run_id: str,
    base: str | None,
    sealing: ServerKeys | None,
    warn: Callable[[str], Any],
) -> SitesEvaluated | None:
    """Have every site that is online evaluate a model, and wait no longer than a round may take.

    Args:
        federation: The configuration.
        clients: Its sites that are asked.
        endpoints: Where sites are.
        transport: The server's way for models.
        clock: What asks who is online, several at a time.
        weights: What travels of the model.
        version: Steps that made it.
        run_id: The run's name.
        base: The digest of the rest, or None.
        sealing: The run's keys, where models are sealed.
        warn: Told of each site that gives nothing.

    Returns:
        What they found; None if no site found anything.

    Raises:
        TransportError: The model cannot be put.
    """
    encoded: Iterable[Data] = pieces(weights)
    if sealing is not None:
        encoded = sealing.seal_model(encoded)
    model = transport.put(*encoded)
    keys = sealing.for_sites() if sealing is not None else None

    def request(client: Client, job: str) -> JSONObject:
        return evaluate_request(
            federation,
            client,
            model,
            job=job,
            run_id=run_id,
            base=base,
            upload=transport.grant(None),  # it puts nothing
            sealing=keys,
        )

    try:
        sent = _send(clients, endpoints, clock, request, warn)
        found = _gather(sent, endpoints, federation.server_configs.round_deadline, warn)
    finally:
        try:
            transport.evict(model)
        except FederationError as error:
            warn(f"a model was not evicted: {error}")
    return mean(version, version + 1, found) if found else None


def _send(
    clients: Sequence[Client],
    endpoints: Endpoints,
    clock: Clock,
    request: Callable[[Client, str], JSONObject],
    warn: Callable[[str], Any],
) -> dict[str, tuple[Future[JSONObject], str]]:
    """Send every site that is online its task; gives the answer to come, and the task's name."""
    asked = [clock.call(partial(endpoints.health, client)) for client in clients]
    sent = {}
    for client, health in zip(clients, asked, strict=True):
        job = f"evaluate.{client.client_id}.{uuid4().hex[:12]}"
        try:
            if (down := health.result()) is not None:
                raise FederationError(down)
            sent[client.client_id] = endpoints.submit(client, request(client, job)), job
        except FederationError as error:
            warn(f"{client.client_id} does not evaluate the model: {error}")
    return sent


def _gather(
    sent: Mapping[str, tuple[Future[JSONObject], str]],
    endpoints: Endpoints,
    patience: float,
    warn: Callable[[str], Any],
) -> dict[str, SiteEvaluation]:
    """What sites answer in time."""
    done, _ = wait([future for future, _ in sent.values()], timeout=patience)
    found = {}
    for name, (future, job) in sent.items():
        try:
            if future not in done:
                raise FederationError(f"no answer within {patience:g} s")
            found[name] = _read(answer_of(future, endpoints), job)
        except FederationError as error:
            warn(f"{name} does not evaluate the model: {error}")
    return found


def _read(result: JSONObject, job: str) -> SiteEvaluation:
    """What a site says it found: anything."""
    if result.get("job") != job:
        raise FederationError("its answer is of another task than it was sent")
    samples = result.get("num_samples")
    if not isinstance(samples, int) or isinstance(samples, bool) or not 0 < samples < 2**53:
        raise FederationError(f"its num_samples is {samples!r:.40}")
    return SiteEvaluation(_finite(result, "loss"), _finite(result, "accuracy"), samples)


def _finite(result: JSONObject, key: str) -> float:
    number = result.get(key)
    if not isinstance(number, float) or not is_number(number):
        raise FederationError(f"its {key} is {number!r:.40}, no finite number")
    return number
