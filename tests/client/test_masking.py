"""A site's part in a secure sum, and what it does not let a server talk it into."""

import json
import os
import time

import numpy as np
import pytest
import torch
import yaml

from fl.client import masking, task, trainer
from fl.secure_sum import fixed_point, masks
from fl.secure_sum.consistency import confirmation, roster_digest, sum_digest
from fl.secure_sum.fixed_point import MASKED, decoded
from fl.secure_sum.keys import advertise as advertised
from fl.secure_sum.keys import public, sign
from fl.secure_sum.shamir import combine
from fl.tensors import decode
from fl.transport.base import Ref
from fl.transport.inline import InlineTransport

NAMES = ["a", "b", "c"]
CLIP = 10.0


class Sum:
    """Sites and the server of one sum, whose every message a test may change."""

    def __init__(self, site, session="s", names=NAMES, threshold=2):
        self.site, self.session = site, session
        self.names, self.threshold = list(names), threshold
        self.bundles, self.sealed, self.updates, self.signatures = {}, {}, {}, {}

    def ask(self, operation, name, **changes):
        request = {"operation": operation, "client_id": name, "run_id": "run", "job": "j"}
        request |= {"session": self.session, **changes}
        return task.run(json.loads(json.dumps(request)))

    def advertise(self, *names):
        for name in names:
            self.bundles[name] = result(self.ask("advertise", name))["bundle"]

    def share(self, name, threshold=None, roster=None):
        asked = {"threshold": threshold or self.threshold, "roster": roster or self.bundles}
        return self.ask("share", name, **asked)

    def train(self, name, group=None, **changes):
        terms = {"session": self.session, "group": group or self.names, "clip_norm": CLIP}
        terms |= {"threshold": self.threshold, "weights": "equal", **changes.pop("terms", {})}
        wanted = {"masking": terms, "run_id": "run", "update": "difference", **changes}
        return self.site.answer(client_id=name, **wanted)

    def confirm(self, name, *survivors):
        answer = self.ask("confirm", name, survivors=survivors)
        if "result" in answer:
            self.signatures[name] = answer["result"]["signature"]
        return answer

    def unmask(self, name):
        shares = {peer: sealed[name] for peer, sealed in self.sealed.items() if peer != name}
        return self.ask("unmask", name, signatures=self.signatures, shares=shares)

    def up_to_masking(self, *silent, groups=None):
        """Everything until updates are there, of all but the silent."""
        self.advertise(*self.names)
        self.sealed = {name: result(self.share(name))["shares"] for name in self.names}
        for name in self.names:
            if name not in silent:
                group = (groups or {}).get(name)
                self.updates[name] = words(result(self.train(name, group)))
        return self

    def up_to_confirming(self, *silent):
        """That, and the signatures of all whose updates are there."""
        self.up_to_masking(*silent)
        for name in self.updates:
            result(self.confirm(name, *self.updates))
        return self

    def signature(self, **changes):
        """That of b, that all are in the sum; or of something else, or by somebody else."""
        told = {"session": self.session, "threshold": self.threshold, "roster": self.bundles}
        told |= {"group": self.names, "survivors": self.names}
        told |= {"name": "b", "identity": masking._identity(), **changes}
        roster = roster_digest(told["session"], told["threshold"], told["roster"])
        digest = sum_digest(roster, told["group"], told["survivors"])
        return sign(told["identity"], confirmation(told["name"], digest))

    def total(self, given):
        """What a server makes of the answers to `unmask`, by name."""
        total = sum(self.updates.values())
        for name in self.names:
            what = "own" if name in self.updates else "pairwise"
            places = {self.names.index(peer) + 1: a[what].get(name) for peer, a in given.items()}
            shares = {place: int(share, 16) for place, share in places.items() if share}
            secret = combine(shares).to_bytes(32, "big")
            assert public(secret) == self.bundles[name][what]
            if what == "own":
                masks.apply(total, masks.own_mask(secret, self.session), add=False)
                continue
            for peer in self.updates:
                other = self.bundles[peer]["pairwise"]
                key = masks.pairwise_mask(secret, other, self.session, (name, peer))
                masks.apply(total, key, add=not masks.adds(peer, name))
        return total


def result(answer):
    assert "result" in answer, answer
    return answer["result"]


def refused(answer):
    assert "error" in answer, answer
    return answer["error"]["message"]


def words(trained):
    return sent(trained)[MASKED].numpy().view(np.uint64)


def sent(trained):
    return decode(InlineTransport().get(Ref.from_json(trained["update"])))


@pytest.fixture
def summing(site):
    return Sum(site)


@pytest.mark.parametrize("silent", [(), ("b",)], ids=["all", "one drops out"])
def test_what_is_unmasked_is_the_mean_of_what_the_sites_would_send_in_clear(site, summing, silent):
    summing.up_to_confirming(*silent)
    there = [name for name in NAMES if name not in silent]
    given = {name: result(summing.unmask(name)) for name in there[:2]}
    mean = decoded(summing.total(given), site.weights, CLIP, len(there))
    clear = [site.update(client_id=name, update="difference") for name in there]
    for name, found in mean.items():
        exact = sum(update[name].double() for update in clear) / len(there)
        assert torch.allclose(found.double(), exact, rtol=1e-6, atol=len(there) * CLIP / 2**33)


def test_what_leaves_is_one_tensor_of_noise_and_no_integer(site, summing):
    summing.up_to_masking("b", "c")
    tensors = sent(result(summing.train("a")))
    assert list(tensors) == [MASKED] and tensors[MASKED].dtype == torch.int64
    floating = sum(t.numel() for t in site.weights.values() if t.is_floating_point())
    assert tensors[MASKED].shape == (floating,)
    assert np.abs(tensors[MASKED].numpy().astype(float)).mean() > 2**60


def test_what_is_asked_again_is_answered_the_same(summing, site):
    """By another worker too: what a site has said lies in files."""
    summing.up_to_masking()
    before = dict(summing.bundles), summing.sealed["a"], summing.updates["a"].tolist()
    site.cool()
    summing.advertise("a")
    again = result(summing.share("a"))["shares"], words(result(summing.train("a"))).tolist()
    assert (dict(summing.bundles), *again) == before
    assert result(summing.confirm("a", *NAMES)) == result(summing.confirm("a", *reversed(NAMES)))
    result(summing.confirm("b", *NAMES))
    assert result(summing.unmask("a")) == result(summing.unmask("a"))


def test_of_no_peer_both_secrets_are_given(summing):
    summing.up_to_confirming("b")
    given = result(summing.unmask("a"))
    assert set(given["own"]) == {"a", "c"} and set(given["pairwise"]) == {"b"}
    for survivors in (NAMES, ["a", "b"]):
        assert "other survivors were named" in refused(summing.confirm("a", *survivors))
    assert result(summing.unmask("a")) == given


def test_sites_that_are_told_of_different_survivors_unmask_nothing(site):
    """Of five sites three must help; all say the truth, and yet a's update would be seen alone.

    It has the masks that a shares with b and c. All five would give their share of a's own mask,
    c, d and e theirs of b's pairwise key, and b, d and e theirs of c's.
    """
    told = {"a": "abc", "b": "abd", "c": "acd", "d": "ade", "e": "ade"}
    summing = Sum(site, names="abcde", threshold=3)
    summing.up_to_masking(groups={"a": ["a", "b", "c"]})
    for name, survivors in told.items():
        result(summing.confirm(name, *survivors))
    for name in told:
        assert "sites have signed what this one was told" in refused(summing.unmask(name))


def test_an_update_is_unmasked_by_what_enough_have_signed(summing):
    summing.up_to_masking()
    result(summing.confirm("a", *NAMES))
    expected = "1 sites have signed what this one was told of the sum, 2 are needed"
    assert expected in refused(summing.unmask("a"))
    summing.signatures["b"] = summing.signature()
    result(summing.unmask("a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"session": "t"},
        {"threshold": 3},
        {"roster": {}},
        {"group": ["a", "b"]},
        {"survivors": ["a", "b"]},
        {"name": "c"},
        {"identity": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signature_of_anything_else_does_not_count(summing, changes):
    """Nor one that b gave for c: sites of one state folder have one identity."""
    summing.up_to_masking()
    result(summing.confirm("a", *NAMES))
    summing.signatures["b"] = summing.signature(**changes)
    assert "1 sites have signed" in refused(summing.unmask("a"))


@pytest.mark.parametrize("text", ["", "x", "0" * 128, "é" * 128, " " * 128])
def test_what_is_no_signature_does_not_count(summing, text):
    summing.up_to_confirming()
    summing.signatures["b"] = text
    result(summing.unmask("a"))
    summing.signatures["c"] = text
    assert "1 sites have signed" in refused(summing.unmask("a"))


def test_who_is_no_survivor_signs_nothing(summing):
    summing.up_to_masking("c")
    result(summing.confirm("a", "a", "b"))
    for name in ("c", "eve"):
        summing.signatures[name] = summing.signature(name=name, survivors=["a", "b"])
    assert "1 sites have signed" in refused(summing.unmask("a"))


def test_who_has_not_confirmed_unmasks_nothing(summing):
    summing.up_to_masking()
    summing.signatures = {name: summing.signature(name=name) for name in NAMES}
    assert "keeps no survivors of the sum s" in refused(summing.unmask("a"))


def test_shares_open_for_no_peer_that_was_told_of_another_roster(summing):
    """Its threshold may be a lower one, or its peers made up."""
    summing.advertise(*NAMES)
    summing.sealed["a"] = result(summing.share("a"))["shares"]
    eve = advertised(masking.Private.draw(), bytes(32), "s", "c").model_dump()
    summing.bundles["c"] = eve
    result(summing.share("b"))
    result(summing.train("b"))
    result(summing.confirm("b", *NAMES))
    summing.signatures["c"] = summing.signature(name="c", identity=bytes(32))
    assert set(result(summing.unmask("b"))["own"]) == {"b"}


def test_two_updates_under_the_same_masks_do_not_leave(summing):
    summing.up_to_masking()
    assert "another update was masked" in refused(summing.train("a", steps=2))
    assert "another update was masked" in refused(summing.train("a", group=["a", "b"]))


def test_keys_are_shared_with_one_roster(summing):
    summing.advertise(*NAMES)
    result(summing.share("a"))
    other = Sum(summing.site)
    other.bundles = dict(summing.bundles)
    eve = masking.Private.draw()
    other.bundles["c"] = advertised(eve, bytes(32), "s", "c").model_dump()
    assert "another roster before" in refused(other.share("a"))
    assert "another roster before" in refused(summing.share("a", threshold=3))


@pytest.mark.parametrize(
    ("threshold", "count", "expected"),
    [(1, 1, "no majority"), (1, 2, "no majority"), (1, 3, "no majority"), (4, 3, "no majority")],
)
def test_a_sum_that_one_update_could_be_told_from_is_none(summing, threshold, count, expected):
    summing.advertise(*NAMES[:count])
    assert expected in refused(summing.share("a", threshold))


def test_a_roster_is_not_believed(summing):
    summing.advertise(*NAMES)
    swapped = {**summing.bundles, "b": summing.bundles["c"]}
    assert "the keys of b are not signed" in refused(summing.share("a", roster=swapped))
    eve = advertised(masking.Private.draw(), bytes(32), "s", "a").model_dump()
    assert "not this site's keys" in refused(
        summing.share("a", roster={**summing.bundles, "a": eve})
    )
    private = masking.Private.draw()
    twins = {name: advertised(private, bytes(32), "s", name).model_dump() for name in "bc"}
    assert "a key twice" in refused(summing.share("a", roster={**summing.bundles, **twins}))


@pytest.mark.parametrize(
    ("terms", "changes", "expected"),
    [
        ({"group": ["a"]}, {}, "a sum of 1 sites is not safe"),
        ({"group": ["b", "c"]}, {}, "a sum of 2 sites is not safe"),
        ({"group": ["a", "b", "d"]}, {}, "not those that keys were shared with"),
        ({"group": []}, {}, "masking.group"),
        ({"threshold": 3}, {}, "not those that keys were shared with"),
        ({"session": "t"}, {}, "keeps no keys of the sum t"),
        ({}, {"update": "model"}, "is of differences"),
        (
            {},
            {"compressor_configs": {"enable_compression": True, "lossy_compressor": "bf16"}},
            "cannot be compressed",
        ),
    ],
)
def test_an_update_is_masked_as_agreed_or_not_at_all(summing, terms, changes, expected):
    summing.up_to_masking(*NAMES)
    assert expected in refused(summing.train("a", terms=terms, **changes))


@pytest.mark.parametrize(
    ("survivors", "expected"),
    [
        (["a"], "a sum of 1 sites is not safe"),
        (["b", "c"], "not of the sum that this site's update is in"),
        (["a", "b", "d"], "not of the sum"),
    ],
)
def test_a_sum_of_too_few_or_of_others_is_not_unmasked(summing, survivors, expected):
    summing.up_to_masking()
    assert expected in refused(summing.confirm("a", *survivors))


def test_who_has_sent_no_update_unmasks_nothing(summing):
    summing.up_to_masking("b")
    assert "keeps no masked of the sum s" in refused(summing.confirm("b", *NAMES))
    assert "keeps no masked of the sum s" in refused(summing.unmask("b"))


def test_shares_that_do_not_open_are_left_out(summing):
    summing.up_to_confirming()
    summing.sealed["b"]["a"] = summing.sealed["b"]["c"]
    given = result(summing.unmask("a"))
    assert set(given["own"]) == {"a", "c"}


def test_a_new_sum_removes_the_keys_of_the_last(summing, site):
    summing.up_to_confirming()
    following = Sum(site, "t")
    following.advertise("a")
    assert [folder.name for folder in (site.state / "sums/run/a").iterdir()] == ["t"]
    assert "keeps no keys of the sum s" in refused(summing.unmask("a"))
    old = site.state / "sums/run/b/s"
    past = time.time() - masking.FORGOTTEN_SECONDS - 60
    os.utime(old / "keys", (past, past))
    following.advertise("c")
    assert not old.exists()


@pytest.fixture
def owner(tmp_path, monkeypatch):
    """Writes the site's policy."""
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "site-policy.yaml"))

    def write(**rules):
        text = yaml.safe_dump({"secure_aggregation": rules})
        (tmp_path / "site-policy.yaml").write_text(text)

    return write


def test_no_second_update_leaves_while_another_worker_forgets_the_sum(summing, monkeypatch):
    """A server that has two of a site's workers train could else take one from the other."""
    summing.up_to_masking("a")
    encode = masking.encoded

    def meanwhile(*arguments):
        summing.ask("advertise", "a", session="another")
        return encode(*arguments)

    words(result(summing.train("a")))
    monkeypatch.setattr(masking, "encoded", meanwhile)
    assert "keeps no keys" in refused(summing.train("a", steps=7))


def test_no_other_survivors_are_named_while_another_worker_forgets_the_sum(summing, monkeypatch):
    summing.up_to_masking()
    result(summing.confirm("a", "a", "b", "c"))
    once = masking._Kept.once

    def meanwhile(kept, name, value):
        if name == "survivors":
            monkeypatch.setattr(masking._Kept, "once", once)
            summing.ask("advertise", "a", session="another")
        return once(kept, name, value)

    monkeypatch.setattr(masking._Kept, "once", meanwhile)
    assert "keeps no keys" in refused(summing.confirm("a", "a", "b"))


def test_a_site_that_demands_it_shows_no_update(summing, site, owner):
    owner(min_sites=2)
    message = "secure_aggregation: the server wants to see the update"
    assert message in refused(site.answer())
    assert message in refused(site.answer(operation="rehearse"))
    result(site.answer(operation="rehearse", threshold=2))
    summing.up_to_masking()


def test_a_site_says_how_many_must_be_in_the_sum(summing, site, owner):
    owner(min_sites=3)
    summing.advertise(*NAMES)
    for answer in (
        summing.share("a", threshold=2),
        site.answer(operation="rehearse", threshold=2),
        summing.train("a"),
    ):
        assert "secure_aggregation: sums of 3 sites at least" in refused(answer)
    result(summing.share("a", threshold=3))


def test_a_site_knows_its_peers(summing, owner):
    known = masking.identity()
    owner(min_sites=2, peers={"b": known, "c": known})
    summing.advertise(*NAMES)
    result(summing.share("a"))
    for peers in ({"b": known}, {"b": known, "c": "0" * 64}):
        owner(min_sites=2, peers=peers)
        assert "secure_aggregation: c is no peer" in refused(summing.share("a"))


def test_keys_are_their_owners_alone_and_the_log_says_what_left(summing, site, monkeypatch):
    log = site.state.parent / "audit.jsonl"
    monkeypatch.setenv("FL_SITE_AUDIT", str(log))
    summing.up_to_confirming("b")
    result(summing.unmask("a"))
    kept = [file for file in site.state.rglob("*") if file.is_file() and "jobs" not in file.parts]
    assert kept and all(file.stat().st_mode & 0o077 == 0 for file in kept)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ended = {line["operation"]: line for line in lines if line["event"] == "ended"}
    assert ended["advertise"]["identity"] == masking.identity()
    assert ended["confirm"]["survivors"] == ["a", "c"]
    assert ended["unmask"]["shares"] == {"own": ["a", "c"], "pairwise": ["b"]}
    assert "shares" not in ended["train"]


def test_too_many_samples_for_a_sum_are_refused_before_training(summing, monkeypatch):
    monkeypatch.setattr(fixed_point, "most_weight", lambda sites: 93 // sites)
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("it was trained"))
    error = summing.train("a", terms={"weights": "sample_size"})["error"]
    assert error["type"] == "SecureSumError"
    assert "32 samples are too many for a secure sum of 3 sites" in error["message"]
