"""The server's side of secure sums, one a round: who is in it, and what unmasks it.

Before a round's training its sites advertise keys, then share them; after it, those whose updates
are in the sum sign whose these are, then give the shares that take the masks off. A site that fails
one of these small tasks drops out of the round: before training its mask is in no sum, after it the
others' shares do.

Bonawitz et al. 2017, figure 4. Answers are read with suspicion; what a site's secrets are put
together to must fit the public keys that it advertised.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from pydantic import ValidationError

from fl.config import Client, Federation
from fl.endpoints.base import Endpoints, JSONObject, SiteError, answer_of
from fl.errors import FederationError
from fl.secure_sum import masks
from fl.secure_sum.consistency import confirmation, roster_digest, sum_digest
from fl.secure_sum.keys import (
    KEY_BYTES,
    SEALED_BYTES,
    Bundle,
    SecureSumError,
    agreed,
    is_signed,
    public,
)
from fl.secure_sum.shamir import PRIME, combine
from fl.server import patience, sites
from fl.server.aggregators.secure import SecureFedAvg

GRACE_SECONDS = 10.0
"""How long the others may take once enough sites have answered."""
SEALED_CHARACTERS = 4 * -(-SEALED_BYTES // 3)
"""Of shares that are sealed, in base64."""
PROBE = bytes(KEY_BYTES)
"""A private key that any proper key agrees with."""


@dataclass(frozen=True)
class _Group:
    """The sites of one sum.

    Attributes:
        session: The sum's name.
        roster: What the sum's keys are shared by, in one word.
        bundles: The keys of all who advertised some, by name: each has a share of the others'.
        sealed: Of those who shared theirs, what they left for each peer. Their masks are in it.
    """

    session: str
    roster: str
    bundles: dict[str, Bundle]
    sealed: dict[str, dict[str, str]]


@dataclass
class _Answers:
    """What sites answered to one small task, and why others did not."""

    given: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, FederationError] = field(default_factory=dict)


class Masking:
    """Secure sums of a run.

    Args:
        federation: The configuration.
        endpoints: Where sites are.
        aggregator: What sums.
        run_id: The run's name.
    """

    def __init__(
        self, federation: Federation, endpoints: Endpoints, aggregator: SecureFedAvg, run_id: str
    ) -> None:
        self._clients = {client.client_id: client for client in federation.clients}
        self._endpoints, self._aggregator, self._run_id = endpoints, aggregator, run_id
        configs = federation.server_configs
        self._patience = aggregator.settings.phase_deadline or configs.round_deadline
        self._group: _Group | None = None

    def begin(self, number: int, names: Sequence[str]) -> dict[str, FederationError]:
        """Have sites agree on the masks of a round's sum.

        Args:
            number: The round.
            names: Who shall be in it.

        Returns:
            Who is not, and why: all, where too few are left.
        """
        session = f"{self._run_id}.{number}.{uuid4().hex[:12]}"
        taken: set[str] = set()
        advertised = self._ask(
            names,
            lambda name: self._request("advertise", session, name),
            lambda name, result: _bundle(result, session, name, taken),
        )
        failed = dict(advertised.failed)
        bundles = advertised.given
        roster = {name: bundle.model_dump() for name, bundle in bundles.items()}
        terms = {"threshold": self._aggregator.threshold, "roster": roster}
        if len(bundles) >= self._aggregator.threshold:
            shared = self._ask(
                list(bundles),
                lambda name: self._request("share", session, name, **terms),
                lambda name, result: _sealed(result, bundles.keys() - {name}),
            )
            failed |= shared.failed
            digest = roster_digest(session, self._aggregator.threshold, roster)
            self._group = _Group(session, digest, bundles, shared.given)
        if len(names) - len(failed) < self._aggregator.threshold:
            self._group = None
            few = SecureSumError(
                f"{len(names) - len(failed)} sites agreed on masks, "
                f"{self._aggregator.threshold} are needed"
            )
            failed = dict.fromkeys(names, few) | failed
        return failed

    def terms(self, name: str) -> JSONObject | None:
        """What a site's request says of masks; None where it is in no sum of this round."""
        if self._group is None or name not in self._group.sealed:
            return None
        settings = self._aggregator.settings
        return {
            "session": self._group.session,
            "group": sorted(self._group.sealed),
            "threshold": self._aggregator.threshold,
            "clip_norm": settings.clip_norm,
            "weights": settings.client_weights_mode,
        }

    def unmask(self, survivors: Sequence[str]) -> None:
        """Take the masks off the aggregator's sum.

        Args:
            survivors: Whose updates are in it.

        Raises:
            SecureSumError: Too few sites confirm that, or give shares, or these do not fit.
        """
        group, threshold = self._group, self._aggregator.threshold
        if group is None or len(survivors) < threshold:
            raise SecureSumError(
                f"the sum is of {len(survivors)} sites, {threshold} are needed to unmask it"
            )
        confirmed = self._confirmed(group, sorted(survivors))
        answers = self._ask(
            list(confirmed.given),
            lambda name: self._unmask_request(group, name, confirmed.given),
            lambda _name, result: {what: _shares(result, what) for what in ("own", "pairwise")},
            enough=threshold,
        )
        answers.failed |= confirmed.failed
        self._aggregator.unmask(self._left(group, survivors, answers))
        self._group = None

    def _confirmed(self, group: _Group, survivors: list[str]) -> _Answers:
        """What survivors sign; who does not is asked for no shares, and stays in the sum."""
        threshold = self._aggregator.threshold
        told = sum_digest(group.roster, group.sealed, survivors)
        confirmed = self._ask(
            survivors,
            lambda name: self._request("confirm", group.session, name, survivors=survivors),
            lambda name, result: _signature(result, group.bundles[name], confirmation(name, told)),
            enough=threshold,
        )
        if len(confirmed.given) < threshold:
            raise SecureSumError(
                f"{len(confirmed.given)} sites confirmed whose updates are in the sum, "
                f"{threshold} are needed: {_reasons(confirmed.failed)}"
            )
        return confirmed

    def _unmask_request(
        self, group: _Group, name: str, signatures: Mapping[str, str]
    ) -> JSONObject:
        sealed = {peer: given[name] for peer, given in group.sealed.items() if peer != name}
        return self._request(
            "unmask", group.session, name, signatures=dict(signatures), shares=sealed
        )

    def _left(
        self, group: _Group, survivors: Sequence[str], answers: _Answers
    ) -> Iterator[tuple[bytes, bool]]:
        """The masks in the sum that no other cancels, and whether each has to be added."""
        places = {name: place for place, name in enumerate(sorted(group.bundles), 1)}
        for name in group.sealed:
            what: Literal["own", "pairwise"] = "own" if name in survivors else "pairwise"
            shares = {
                places[peer]: given[what][name]
                for peer, given in answers.given.items()
                if name in given[what]
            }
            secret = self._secret(group.bundles[name], name, what, shares, answers)
            if what == "own":
                yield masks.own_mask(secret, group.session), False
                continue
            for peer in survivors:
                other, pair = group.bundles[peer].pairwise, (name, peer)
                key = masks.pairwise_mask(secret, other, group.session, pair)
                yield key, not masks.adds(peer, name)

    def _secret(
        self,
        bundle: Bundle,
        name: str,
        what: Literal["own", "pairwise"],
        shares: Mapping[int, int],
        answers: _Answers,
    ) -> bytes:
        """A site's secret from its shares; one that is wrong is found if there is one to spare."""
        threshold, wanted = self._aggregator.threshold, getattr(bundle, what)
        if len(shares) < threshold:
            closed = SecureSumError(f"the shares that {name} left there do not open")
            without = [peer for peer, given in answers.given.items() if name not in given[what]]
            raise SecureSumError(
                f"{len(shares)} sites gave a share of what unmasks {name}, {threshold} are needed: "
                f"{_reasons({**answers.failed, **dict.fromkeys(without, closed)})}"
            )
        for doubted in (None, *shares):
            believed = [place for place in shares if place != doubted][:threshold]
            secret = combine({place: shares[place] for place in believed})
            if len(believed) == threshold and secret < 2**256:
                found = secret.to_bytes(32, "big")
                if public(found) == wanted:
                    return found
        raise SecureSumError(
            f"the shares of what unmasks {name} do not fit its keys: those that it left are wrong, "
            f"or those that another gave"
        )

    def _request(self, operation: str, session: str, name: str, **more: Any) -> JSONObject:
        return {
            "operation": operation,
            "client_id": name,
            "run_id": self._run_id,
            "session": session,
            "job": f"{session}.{operation}.{name}",
            **more,
        }

    def _ask(
        self,
        names: Sequence[str],
        request: Callable[[str], JSONObject],
        read: Callable[[str, JSONObject], Any],
        enough: int | None = None,
    ) -> _Answers:
        """Send sites a small task each, and wait until all, or enough, have answered."""
        asked = {name: _Asked(self._clients[name], request(name)) for name in names}
        answers = _Answers()
        for task in asked.values():
            task.send(self._endpoints)
        between = max(sites.CHECK_SECONDS, len(asked) * sites.SPACING_SECONDS)
        until, look_at = time.monotonic() + self._patience, time.monotonic() + between
        while asked:
            again = [task.again for task in asked.values() if task.again is not None]
            done = _done(asked, min([until, look_at, *again]))
            if not done and time.monotonic() >= until:
                break
            self._take_all(answers, asked, done, read)
            if time.monotonic() >= look_at:
                self._look(answers, asked)
                look_at = time.monotonic() + between
            if enough is not None and len(answers.given) >= enough:
                until, enough = min(until, time.monotonic() + GRACE_SECONDS), None
        silent = SecureSumError(f"no answer to a small task within {self._patience:g} s")
        answers.failed |= {name: task.failure or silent for name, task in asked.items()}
        return answers

    def _take_all(
        self,
        answers: _Answers,
        asked: dict[str, _Asked],
        done: set[Future[JSONObject]],
        read: Callable[[str, JSONObject], Any],
    ) -> None:
        """Read what has come, and send again what was lost a while ago."""
        for name, task in list(asked.items()):
            if task.future in done:
                self._take(answers, name, task, read)
            elif task.again is not None and time.monotonic() >= task.again:
                task.send(self._endpoints)
            if task.failure is not None:
                answers.failed[name] = task.failure
            if task.failure is not None or name in answers.given:
                del asked[name]

    def _look(self, answers: _Answers, asked: dict[str, _Asked]) -> None:
        """Look after the sites whose tasks are out; who is offline is asked no longer."""
        for name, task in list(asked.items()):
            if task.again is None:
                task.look(self._endpoints)
            if task.failure is not None:
                answers.failed[name] = task.failure
                del asked[name]

    def _take(
        self,
        answers: _Answers,
        name: str,
        task: _Asked,
        read: Callable[[str, JSONObject], Any],
    ) -> None:
        """Read a site's answer, unless that was lost on its way."""
        result = task.result(self._endpoints)
        if result is None:
            return
        try:
            if result.get("job") != task.request["job"]:
                raise SecureSumError("the site's answer is of another task than it was sent")
            answers.given[name] = read(name, result)
        except FederationError as error:
            task.failure = error


@dataclass
class _Asked:
    """A small task at a site.

    Attributes:
        client: The site.
        request: What it was sent.
        future: Its answer to come.
        sent: How often it was sent.
        again: When it is sent again, by `time.monotonic`; None while it is out.
        misses: Looks in a row that found the site offline.
        failure: Why nothing is expected any more, or None.
    """

    client: Client
    request: JSONObject
    future: Future[JSONObject] | None = None
    sent: int = 0
    again: float | None = None
    misses: int = 0
    failure: FederationError | None = None

    def send(self, endpoints: Endpoints) -> None:
        self.sent, self.again = self.sent + 1, None
        try:
            self.future = endpoints.submit(self.client, self.request)
        except FederationError as error:
            self._lose(error)

    def result(self, endpoints: Endpoints) -> JSONObject | None:
        """What the site answered; None where it will be asked again, or has failed."""
        if self.future is None:
            return None
        try:
            return answer_of(self.future, endpoints)
        except FederationError as error:
            self._lose(error)
        return None

    def _lose(self, error: FederationError) -> None:
        """Have it sent again after a pause: an engine that has just failed would lose that too."""
        self.future = None
        attempts, pause = patience.patience_after(error, self.sent)
        refused = isinstance(error, SiteError) and error.kind not in patience.PASSING
        if refused or self.sent >= attempts:
            self.failure = error
        else:
            self.again = time.monotonic() + pause

    def look(self, endpoints: Endpoints) -> None:
        """Give up a site that is offline: two looks in a row say so, and no answer is there."""
        try:
            down = endpoints.health(self.client)
        except FederationError:
            return  # the service could not be asked: that says nothing of the site
        self.misses = self.misses + 1 if down else 0
        answered = self.future is not None and self.future.done()
        if down and self.misses >= sites.MISSES and not answered:
            self.failure = FederationError(down)


def _done(asked: Mapping[str, _Asked], until: float) -> set[Future[JSONObject]]:
    """Answers that are there, or the first that comes by then, by `time.monotonic`."""
    futures = [task.future for task in asked.values() if task.future is not None]
    seconds = max(until - time.monotonic(), 0.0)
    if not futures:
        time.sleep(seconds)  # `wait` would not wait for none
        return set()
    return wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done


def _reasons(failed: Mapping[str, FederationError]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items())


def _bundle(result: JSONObject, session: str, name: str, taken: set[str]) -> Bundle:
    """A site's keys, unless its peers would refuse the whole roster for them.

    Args:
        result: What the site answered.
        session: The sum's name.
        name: The site's.
        taken: The keys of those that answered before; this site's are added.
    """
    try:
        bundle = Bundle.model_validate(result.get("bundle"))
    except ValidationError as error:
        raise SecureSumError("the site's answer has no keys") from error
    bundle.verify(session, name)
    keys = {bundle.channel, bundle.pairwise, bundle.own}
    if len(keys) < 3 or keys & taken:
        raise SecureSumError("the site has a key twice, or one that another has")
    for key in keys:
        agreed(PROBE, key, "probe")
    taken |= keys
    return bundle


def _signature(result: JSONObject, bundle: Bundle, text: bytes) -> str:
    given = result.get("signature")
    if not isinstance(given, str) or not is_signed(bundle.identity, given, text):
        raise SecureSumError("the site's signature is not of the sum's survivors")
    return given


def _sealed(result: JSONObject, peers: set[str]) -> dict[str, str]:
    given = result.get("shares")
    if not isinstance(given, dict) or given.keys() != peers:
        raise SecureSumError("the site's answer has not a share for every peer")
    if not all(_is_sealed(text) for text in given.values()):
        raise SecureSumError("the site's shares are none")
    return given


def _is_sealed(text: Any) -> bool:
    """Whether it may be what `seal_shares` made: whether it opens, its peer alone can see."""
    if not isinstance(text, str) or len(text) != SEALED_CHARACTERS:
        return False
    try:
        return len(base64.b64decode(text, validate=True)) == SEALED_BYTES
    except ValueError:
        return False


def _shares(result: JSONObject, what: str) -> dict[str, int]:
    """Shares by the peer whose secret they are of; what is none is left out."""
    given = result.get(what)
    if not isinstance(given, dict):
        raise SecureSumError("the site's answer has no shares")
    return {
        name: int(text, 16)
        for name, text in given.items()
        if isinstance(text, str)
        and 0 < len(text) <= 66  # hex of 33 bytes
        and set(text) <= set("0123456789abcdef")
        and int(text, 16) < PRIME
    }
