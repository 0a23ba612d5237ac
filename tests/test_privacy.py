"""Clipping by hand, and the accountant's epsilon against published values."""

import math

import pytest
import torch

from fl.privacy import Spent, clipped, epsilon


def test_clipping_is_of_all_floating_tensors_together():
    update = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "count": torch.tensor(99)}
    within, at, beyond = clipped(update, 6.0), clipped(update, 5.0), clipped(update, 1.0)
    assert within.keys() == {"a", "b"}
    for tensors in (within, at):
        assert torch.equal(tensors["a"], update["a"]) and torch.equal(tensors["b"], update["b"])
    torch.testing.assert_close(beyond, {"a": torch.tensor([0.6, 0]), "b": torch.tensor([[0.8]])})


def test_what_cannot_be_measured_does_not_get_in():
    huge = {"w": torch.full((3,), 3e38)}  # its norm overflows
    assert torch.equal(clipped(huge, 1.0)["w"], torch.zeros(3))
    assert torch.equal(clipped({"w": torch.zeros(3)}, 1.0)["w"], torch.zeros(3))
    with pytest.raises(ValueError, match="no number"):
        clipped({"w": torch.tensor([1.0, math.nan])}, 1.0)


def test_half_precision_is_clipped_in_single():
    update = {"w": torch.full((4,), 300.0, dtype=torch.float16)}
    result = clipped(update, 1.0)["w"]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((4,), 0.5))


PUBLISHED = [
    (Spent(4.530877117, 1.0, 1), 1e-6, 1.0),
    (Spent(0.7, 1.0, 2), 1e-5, 10.8602036),
    (Spent(1.0, 1.0, 5), 1e-6, 13.376),
    (Spent(0.7, 0.01, 120), 1e-5, 3.2392676),
    (Spent(1.3, 150 / 60_000, 15 * 400), 1e-5, 0.7242234026109595),
    (Spent(1.0, 100 / 100_000, 30 * 1000), 1e-7, 1.4154988495444842),
]
"""The first is of dp-accounting's rdp_privacy_accountant_test.py; the others are of TensorFlow
Privacy's compute_dp_sgd_privacy_test.py, which states examples, batch and epochs instead of rates
and steps (https://github.com/tensorflow/privacy). All are told to the digits they are held to."""


@pytest.mark.parametrize(("spent", "delta", "published"), PUBLISHED)
def test_epsilon_is_the_published_one(spent, delta, published):
    digits = len(str(published).partition(".")[2])
    # The first was published of finer orders than the accountant's own.
    bound = 1e-5 if published == 1 else max(0.5 * 10.0**-digits, 1e-9)
    assert epsilon([spent], delta) == pytest.approx(published, abs=bound, rel=0)


@pytest.mark.parametrize("steps", [100, 400])
def test_more_steps_with_as_many_times_the_variance_cost_the_same(steps):
    spent = Spent(4.530877117 * math.sqrt(steps), 1.0, steps)
    assert epsilon([spent], 1e-6) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "delta"),
    [(1.0, 1, 1e-5), (10.0, 100, 1e-5), (5.0, 50, 1e-3), (2.0, 400, 1e-6)],
)
def test_epsilon_lies_between_the_best_and_the_simplest_bound(noise_multiplier, steps, delta):
    """No less than is possible (Balle and Wang 2018, arXiv 1805.06530, Theorem 8), no more than
    that of zero-concentrated privacy (Bun and Steinke 2016, arXiv 1605.02065, Proposition 1.3).

    Steps of the Gaussian mechanism are one of it with the noise divided by their square root.
    """
    sigma = noise_multiplier / math.sqrt(steps)
    spent = epsilon([Spent(noise_multiplier, 1.0, steps)], delta)

    def tail(x):
        return math.erfc(x / math.sqrt(2)) / 2

    possible = tail(spent * sigma - 1 / (2 * sigma)) - math.exp(spent) * tail(
        spent * sigma + 1 / (2 * sigma)
    )
    rho = 1 / (2 * sigma**2)
    assert possible < delta
    assert spent < rho + 2 * math.sqrt(rho * math.log(1 / delta))
    assert epsilon([Spent(noise_multiplier, 1.0, 0)], delta) == 0
