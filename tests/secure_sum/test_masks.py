"""Masks vanish from sums, and leave of an update what noise would be."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.secure_sum import fixed_point, masks
from fl.secure_sum.fixed_point import decoded, encoded, length, most_weight
from fl.secure_sum.keys import Private, SecureSumError, public


def masked(values, name, privates, session="s"):
    """As a site does it."""
    values = values.copy()
    masks.apply(values, masks.own_mask(privates[name].own, session), add=True)
    for peer in privates.keys() - {name}:
        key = masks.pairwise_mask(
            privates[name].pairwise, public(privates[peer].pairwise), session, (name, peer)
        )
        masks.apply(values, key, add=masks.adds(name, peer))
    return values


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(0, 40), st.randoms(use_true_random=False))
def test_of_a_sum_of_all_only_their_own_masks_are_left(sites, size, draw):
    names = [f"site-{i}" for i in range(sites)]
    privates = {name: Private.draw() for name in names}
    values = {
        name: np.array([draw.getrandbits(64) for _ in range(size)], np.uint64) for name in names
    }
    total = sum(masked(values[name], name, privates) for name in names)
    for private in privates.values():
        masks.apply(total, masks.own_mask(private.own, "s"), add=False)
    assert total.tolist() == sum(values.values()).tolist()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 65])
def test_a_mask_is_one_stream_however_it_is_cut(size, monkeypatch):
    whole = np.zeros(size, np.uint64)
    masks.apply(whole, bytes(32), add=True)
    monkeypatch.setattr(masks, "TILE", 8)
    cut = np.zeros(size, np.uint64)
    masks.apply(cut, bytes(32), add=True)
    assert whole.tolist() == cut.tolist()
    # AES-256 of the counter 0 by the key 0: NIST's GFSbox and KeySbox vectors' ciphertext.
    assert whole[0].tobytes() == bytes.fromhex("dc95c078a2408989")


def test_every_sum_pair_and_site_has_a_mask_of_its_own():
    a, b, c = (Private.draw() for _ in range(3))
    keys = [
        masks.own_mask(a.own, "s"),
        masks.own_mask(a.own, "t"),
        masks.own_mask(b.own, "s"),
        masks.pairwise_mask(a.pairwise, public(b.pairwise), "s", "ab"),
        masks.pairwise_mask(a.pairwise, public(b.pairwise), "t", "ab"),
        masks.pairwise_mask(a.pairwise, public(c.pairwise), "s", "ac"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[3] == masks.pairwise_mask(b.pairwise, public(a.pairwise), "s", "ba")


NUMBERS = 1 << 18


def suspicion(words):
    """How far numbers are from noise, in standard deviations: the largest of several statistics.

    Of their bytes, place by place, the frequencies (chi-squared, 255 degrees of freedom); of their
    bits, place by place, the ones; of neighbours, the correlation of their bits.
    """
    octets = words.view(np.uint8).reshape(-1, 8)
    expected = len(words) / 256
    found = []
    for place in range(8):
        counts = np.bincount(octets[:, place], minlength=256)
        chi = ((counts - expected) ** 2 / expected).sum()
        found.append(abs(chi - 255) / np.sqrt(2 * 255))
    bits = np.unpackbits(octets, axis=1).astype(np.int8) * 2 - 1
    found += list(abs(bits.sum(axis=0)) / np.sqrt(len(words)))
    found += list(abs((bits[1:] * bits[:-1]).sum(axis=0)) / np.sqrt(len(words) - 1))
    return max(found)


LIMIT = 6.5
"""Of 136 statistics of true noise, the largest passes this once in ten million times."""


@pytest.mark.parametrize("kind", ["a constant", "a normal update", "zeros"])
def test_what_the_server_sees_of_an_update_is_noise(kind):
    numbers = torch.Generator().manual_seed(0)
    update = {
        "a constant": torch.full((NUMBERS,), 1e-3),
        "a normal update": 1e-3 * torch.randn(NUMBERS, generator=numbers),
        "zeros": torch.zeros(NUMBERS),
    }[kind]
    plain = encoded({"w": update}, 1.0, 100, 2)
    privates = {"a": Private.draw(), "b": Private.draw()}
    seen = masked(plain, "a", privates)
    assert suspicion(plain) > LIMIT, "the statistics see an update that has no mask"
    assert suspicion(seen) < LIMIT
    assert suspicion(seen - masked(plain, "b", privates)) < LIMIT
    if kind == "a normal update":
        alike = np.corrcoef(seen.view(np.int64), plain.view(np.int64))[0, 1]
        assert abs(alike) * NUMBERS**0.5 < LIMIT
    # Its own mask alone gone, or the other's alone, it is noise still.
    for key in (
        masks.own_mask(privates["a"].own, "s"),
        masks.pairwise_mask(privates["a"].pairwise, public(privates["b"].pairwise), "s", "ab"),
    ):
        rest = seen.copy()
        masks.apply(rest, key, add=False)
        assert suspicion(rest) < LIMIT


def test_the_statistics_pass_what_noise_is():
    noise = np.random.default_rng(0).integers(0, 2**64, NUMBERS, np.uint64)
    assert suspicion(noise) < LIMIT


floats = st.floats(-3, 3, width=32)


@st.composite
def summed(draw):
    """Updates of several sites, their weights, and a clipping norm."""
    sites = draw(st.integers(1, 6))
    updates = [
        {
            "z": torch.tensor(draw(st.lists(floats, min_size=2, max_size=2))),
            "a": torch.tensor([[draw(floats)]], dtype=torch.float64),
            "count": torch.tensor(draw(st.integers(0, 9))),
        }
        for _ in range(sites)
    ]
    weights = draw(st.lists(st.integers(1, most_weight(sites)), min_size=sites, max_size=sites))
    return updates, weights, draw(st.sampled_from([0.5, 1.0, 100.0]))


@settings(max_examples=50, deadline=None)
@given(summed())
def test_the_sum_is_the_mean_of_clipped_updates_within_the_rounding_that_is_stated(drawn):
    updates, weights, clip = drawn
    total = sum(
        encoded(update, clip, weight, len(updates))
        for update, weight in zip(updates, weights, strict=True)
    )
    mean = decoded(total, updates[0], clip, sum(weights))
    assert set(mean) == {"a", "z"}
    for name, found in mean.items():
        exact = sum(
            weight * update[name].double() * min(1, clip / max(fixed_point.norm(update), 1e-300))
            for update, weight in zip(updates, weights, strict=True)
        ) / sum(weights)
        rounding = len(updates) * clip / (2**33 * sum(weights))
        # Beside it, what the mean's own dtype and a norm in float32 are off.
        precision = 2**-22 * (exact.abs() + clip * 2**-30)
        assert ((found.double() - exact).abs() <= rounding + precision).all()


def test_the_order_is_that_of_names_and_what_is_no_float_is_left_out():
    update = {"b": torch.tensor([2.0]), "n": torch.tensor(5), "a": torch.tensor([[1.0]]).half()}
    assert length(update) == 2
    assert (encoded(update, 2.0**32, 1, 2)).tolist() == [1, 2]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_summed(wrong):
    with pytest.raises(SecureSumError, match="no finite number"):
        encoded({"w": torch.tensor([1.0, wrong])}, 1.0, 1, 2)


def test_too_many_samples_are_refused_before_they_overflow():
    largest = {"w": torch.tensor([1.0])}
    total = sum(itertools.repeat(encoded(largest, 1.0, most_weight(3), 3), 3))
    assert decoded(total, largest, 1.0, 3 * most_weight(3))["w"].item() == pytest.approx(1.0)
    with pytest.raises(SecureSumError, match="client_weights_mode: equal"):
        encoded(largest, 1.0, most_weight(3) + 1, 3)
