"""A site's part in a secure sum: keys, shares of them, a masked update, and what unmasks the sum.

The server may ask for each of these again, when an answer was lost or a worker died, and gets the
same. What would let it take the masks off one update is guarded by files that are written once
(`site_state.write_once`) and outlive any worker: keys are shared with one roster, one update is
masked by them, and of a peer either its own mask is given away or the masks it shares with others.
And which of the two is a matter of what enough of its peers have signed that they were told too.

Bonawitz et al. 2017, figure 4; the signatures of rounds 0 and 3 are by an identity of the site's
own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fl.client import site_state
from fl.client.policy import site_policy
from fl.client.request import (
    ConfirmRequest,
    Masking,
    RequestError,
    ShareRequest,
    SumRequest,
    TrainRequest,
    UnmaskRequest,
    read,
)
from fl.client.site_state import SiteStateError
from fl.secure_sum import masks
from fl.secure_sum.consistency import confirmation, roster_digest, sum_digest
from fl.secure_sum.fixed_point import MASKED, encoded, require_weight
from fl.secure_sum.keys import (
    KEY_BYTES,
    Bundle,
    Private,
    SecureSumError,
    identity_of,
    is_signed,
    open_shares,
    seal_shares,
    sign,
)
from fl.secure_sum.keys import advertise as advertised
from fl.secure_sum.shamir import split
from fl.tensors import Tensors

FORGOTTEN_SECONDS = 7 * 24 * 3600.0
"""How old the keys of a run that has not come back are before they are removed."""


def advertise(request: dict[str, Any]) -> dict[str, Any]:
    """Draw keys for one sum.

    Args:
        request: A `SumRequest`.

    Returns:
        `job`, and `bundle`: their public halves.

    Raises:
        FederationError: They cannot be kept.
    """
    wanted = read(SumRequest, request)
    kept = _Kept(wanted.run_id, wanted.client_id, wanted.session)
    kept.forget_others()
    bundle = advertised(kept.draw(), _identity(), wanted.session, wanted.client_id)
    return {"job": wanted.job, "bundle": bundle.model_dump()}


def identity() -> str:
    """What peers may know this site by: the public half of its Ed25519 key, in hex."""
    return identity_of(_identity())


def share(request: dict[str, Any]) -> dict[str, Any]:
    """Leave a share of each key with every peer, sealed for that peer.

    Args:
        request: A `ShareRequest`.

    Returns:
        `job`, and `shares` by peer.

    Raises:
        PolicyRefusal: The sum is not one that the site's policy allows.
        SecureSumError: The roster is not to be trusted, or is another than before.
    """
    wanted = read(ShareRequest, request)
    kept = _Kept(wanted.run_id, wanted.client_id, wanted.session)
    private = kept.private()
    _require_roster(wanted, private)
    names = sorted(wanted.roster)
    secrets = (int.from_bytes(key, "big") for key in (private.pairwise, private.own))
    pairwise, own = (split(secret, wanted.threshold, len(names)) for secret in secrets)
    shares = {name: (pairwise[place], own[place]) for place, name in enumerate(names)}
    mine = shares.pop(wanted.client_id)
    roster = {name: bundle.model_dump() for name, bundle in sorted(wanted.roster.items())}
    # Whoever was told of another roster or threshold can open none of them, and so give none away.
    digest = roster_digest(wanted.session, wanted.threshold, roster)
    sealed = {
        peer: seal_shares(private, wanted.roster[peer], (digest, wanted.client_id, peer), pair)
        for peer, pair in shares.items()
    }
    facts = {"roster": roster, "threshold": wanted.threshold, "digest": digest}
    found = kept.once("shares", {**facts, "mine": mine, "sealed": sealed})
    if {name: found[name] for name in facts} != facts:
        raise SecureSumError("the keys of this sum were shared with another roster before")
    return {"job": wanted.job, "shares": found["sealed"]}


def _require_roster(wanted: ShareRequest, private: Private) -> None:
    """Refuse a sum in which this site's update would not be safe."""
    threshold, count = wanted.threshold, len(wanted.roster)
    policy = site_policy()
    policy.require_masks(threshold)
    policy.require_peers(
        {name: b.identity for name, b in wanted.roster.items() if name != wanted.client_id}
    )
    # Two groups that are told of different survivors then share a site, which tells but one.
    if not (count < 2 * threshold and 2 <= threshold <= count):
        raise SecureSumError(f"{threshold} of {count} sites are no majority that a sum is safe by")
    for name, bundle in wanted.roster.items():
        bundle.verify(wanted.session, name)
    own = advertised(private, _identity(), wanted.session, wanted.client_id)
    if wanted.roster.get(wanted.client_id) != own:
        raise SecureSumError("the roster has not this site's keys")
    keys = {key for b in wanted.roster.values() for key in (b.channel, b.pairwise, b.own)}
    if len(keys) < 3 * count:
        raise SecureSumError("the roster has a key twice")


def require_room(masking: Masking, num_samples: int) -> None:
    """Refuse, before anything is trained, more samples than the sum has room for.

    Args:
        masking: What the request says of masks.
        num_samples: Samples that will be trained on.

    Raises:
        SecureSumError: They are too many.
    """
    require_weight(_weight(masking, num_samples), len(set(masking.group)))


def _weight(masking: Masking, num_samples: int) -> int:
    return num_samples if masking.weights == "sample_size" else 1


def masked(update: Tensors, wanted: TrainRequest, masking: Masking, num_samples: int) -> Tensors:
    """Mask an update: what leaves is noise to whoever has not the masks.

    Args:
        update: Differences; what is not floating stays at the site.
        wanted: The request.
        masking: What it says of masks.
        num_samples: Samples that the update was trained on.

    Returns:
        One tensor, `MASKED`: int64, as many numbers as the update has floating ones.

    Raises:
        SecureSumError: Another update was masked by these keys before, or the sum is not safe.
        SiteStateError: The keys are not here any more.
    """
    if wanted.update != "difference" or wanted.run_id is None:
        raise RequestError("request: masking: is of differences, and of a run")
    if wanted.compressor_configs.enable_compression:
        raise RequestError("request: masking: what is masked cannot be compressed")
    kept = _Kept(wanted.run_id, wanted.client_id, masking.session)
    private, shares, group = kept.private(), kept.read("shares"), sorted(set(masking.group))
    if masking.threshold != shares["threshold"] or not set(group) <= set(shares["roster"]):
        raise SecureSumError("the sum's sites are not those that keys were shared with")
    if wanted.client_id not in group or len(group) < shares["threshold"]:
        raise SecureSumError(f"a sum of {len(group)} sites is not safe for this one")
    words = encoded(update, masking.clip_norm, _weight(masking, num_samples), len(group))
    masks.apply(words, masks.own_mask(private.own, masking.session), add=True)
    for peer in group:
        if peer != wanted.client_id:
            other = shares["roster"][peer]["pairwise"]
            pair = (wanted.client_id, peer)
            key = masks.pairwise_mask(private.pairwise, other, masking.session, pair)
            masks.apply(words, key, add=masks.adds(*pair))
    facts = {"group": group, "sha256": hashlib.sha256(words.data).hexdigest()}
    # The difference of two updates under the same masks is one of updates in clear.
    if kept.once("masked", facts) != facts:
        raise SecureSumError("another update was masked for this sum before")
    kept.require(private)
    return {MASKED: torch.from_numpy(words.view("i8"))}


def confirm(request: dict[str, Any]) -> dict[str, Any]:
    """Sign whose updates are in the sum: once, so that no peer unmasks another for it.

    Args:
        request: A `ConfirmRequest`.

    Returns:
        `job`, `survivors`, and `signature`, which is also of the group and the roster.

    Raises:
        SecureSumError: Other survivors were named before, too few, or not this site.
        SiteStateError: The keys are not here any more.
    """
    wanted = read(ConfirmRequest, request)
    kept = _Kept(wanted.run_id, wanted.client_id, wanted.session)
    private, shares, group = kept.private(), kept.read("shares"), kept.read("masked")["group"]
    survivors = sorted(set(wanted.survivors))
    if not {wanted.client_id} <= set(survivors) <= set(group):
        raise SecureSumError("the survivors are not of the sum that this site's update is in")
    if len(survivors) < shares["threshold"]:
        raise SecureSumError(f"a sum of {len(survivors)} sites is not safe for this one")
    if kept.once("survivors", survivors) != survivors:
        raise SecureSumError("other survivors were named for this sum before")
    kept.require(private)
    text = confirmation(wanted.client_id, sum_digest(shares["digest"], group, survivors))
    return {"job": wanted.job, "survivors": survivors, "signature": sign(_identity(), text)}


def unmask(request: dict[str, Any]) -> dict[str, Any]:
    """Give shares of the survivors' own masks, and of the drop-outs' pairwise keys.

    Args:
        request: An `UnmaskRequest`.

    Returns:
        `job`; `own` and `pairwise`, by the peer whose secret a share is of, in hex. A peer whose
        sealed shares do not open is left out.

    Raises:
        SecureSumError: Too few of the survivors have signed what this site has.
        SiteStateError: The keys are not here any more, or this site has not confirmed the sum.
    """
    wanted = read(UnmaskRequest, request)
    kept = _Kept(wanted.run_id, wanted.client_id, wanted.session)
    private, shares, group = kept.private(), kept.read("shares"), kept.read("masked")["group"]
    survivors = kept.read("survivors")
    kept.require(private)
    _require_confirmed(wanted, shares, group, survivors)
    given: dict[str, dict[str, str]] = {"own": {}, "pairwise": {}}
    for peer in group:
        pair = _pair(wanted, private, shares, peer)
        if pair is not None:
            what = "own" if peer in survivors else "pairwise"
            given[what][peer] = f"{pair[what == 'own']:x}"
    return {"job": wanted.job, **given}


def _require_confirmed(
    wanted: UnmaskRequest, shares: dict[str, Any], group: list[str], survivors: list[str]
) -> None:
    """Refuse to unmask what too few of the survivors were told as this site was."""
    roster, told = shares["roster"], sum_digest(shares["digest"], group, survivors)
    signers = [
        peer
        for peer, signature in wanted.signatures.items()
        if peer in survivors
        and is_signed(roster[peer]["identity"], signature, confirmation(peer, told))
    ]
    if len(signers) < shares["threshold"]:
        raise SecureSumError(
            f"{len(signers)} sites have signed what this one was told of the sum, "
            f"{shares['threshold']} are needed"
        )


def _pair(
    wanted: UnmaskRequest, private: Private, shares: dict[str, Any], peer: str
) -> tuple[int, int] | None:
    """The shares of a peer's pairwise and own secrets that lie here; None if they do not open."""
    if peer == wanted.client_id:
        pairwise, own = shares["mine"]
        return pairwise, own
    bundle = Bundle.model_validate(shares["roster"][peer])
    way = (shares["digest"], peer, wanted.client_id)
    try:
        return open_shares(private, bundle, way, wanted.shares.get(peer, ""))
    except SecureSumError:
        return None


def _identity() -> bytes:
    """The site's Ed25519 private key, drawn when it is first asked for."""
    key = Private.draw().own
    return site_state.write_once(site_state.path("identity.key"), key)[:KEY_BYTES]


class _Kept:
    """What a site keeps of one sum, in a folder of its own.

    Args:
        run: The run's id.
        client: The client's.
        session: The sum's name.
    """

    def __init__(self, run: str, client: str, session: str) -> None:
        self._sums = site_state.path("sums", run, client)
        self._folder = site_state.path("sums", run, client, session)

    def draw(self) -> Private:
        """Keys for the sum: new ones, or those that were drawn before."""
        drawn = Private.draw()
        keys = drawn.channel + drawn.pairwise + drawn.own
        return _private(site_state.write_once(self._folder / "keys", keys))

    def private(self) -> Private:
        """The keys of the sum.

        Raises:
            SiteStateError: They are not here.
        """
        return _private(self._content("keys"))

    def require(self, private: Private) -> None:
        """See that nobody has forgotten the sum meanwhile, and with it what was kept once.

        Raises:
            SiteStateError: Its keys, which are removed first, are gone.
            SecureSumError: They are others.
        """
        if self.private() != private:
            raise SecureSumError("the sum's keys were drawn anew meanwhile")

    def once(self, name: str, value: Any) -> Any:
        """Keep a JSON value, unless there is one already; returns what is kept."""
        written = site_state.write_once(self._folder / name, json.dumps(value).encode())
        return json.loads(written)

    def read(self, name: str) -> Any:
        """A value that was kept.

        Raises:
            SiteStateError: It is not here.
        """
        return json.loads(self._content(name))

    def forget_others(self) -> None:
        """Remove what was kept of the run's earlier sums, and of runs that are long gone.

        Without its keys nothing of a sum can be given away any more, so they go first.
        """
        for folder in self._sums.glob("*"):
            if folder != self._folder:
                _remove(folder)
        long_gone = time.time() - FORGOTTEN_SECONDS
        for keys in site_state.path("sums").glob("*/*/*/keys"):
            with suppress(FileNotFoundError):  # its own client has just removed it
                if keys.stat().st_mtime < long_gone:
                    _remove(keys.parent)

    def _content(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise SiteStateError(
                f"this site keeps no {name} of the sum {self._folder.name} ({error.strerror})"
            ) from error


def _private(keys: bytes) -> Private:
    return Private(*(keys[begin : begin + KEY_BYTES] for begin in (0, KEY_BYTES, 2 * KEY_BYTES)))


def _remove(folder: Path) -> None:
    (folder / "keys").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
