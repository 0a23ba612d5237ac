import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server.aggregators import Contribution, open_aggregator
from fl.server.strategies import fedavg, fednova_norm
from tests.server.strategies.models import model, running, w


def fednova_paper(start, deltas, samples, norms, effective):
    shares = np.array(samples) / np.sum(samples)
    steps = [delta / norm for delta, norm in zip(deltas, norms, strict=True)]
    return start + effective * np.tensordot(shares, np.array(steps), axes=1)


def fednova(start, deltas, samples, steps, effective=None):
    aggregator = open_aggregator("FedNovaAggregator", {"effective_steps": effective}, ["a"])
    for delta, n, done in zip(deltas, samples, steps, strict=True):
        sent = {name: tensor.clone() for name, tensor in delta.items()}
        aggregator.add(sent, Contribution("a", n, done, staleness=0, share=1.0))
    return aggregator.step(start)


sites = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 300)), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(sites, st.none() | st.floats(0.1, 50))
def test_fednova_by_a_running_mean_is_the_papers(sites, effective):
    samples, steps = [n for n, _ in sites], [tau for _, tau in sites]
    start, deltas = model(0), [model(seed) for seed in range(1, len(sites) + 1)]
    moved = fednova(start, deltas, samples, steps, effective)
    tau = np.average(steps, weights=samples) if effective is None else effective
    expected = fednova_paper(w(start), [w(delta) for delta in deltas], samples, steps, tau)
    np.testing.assert_allclose(w(moved), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(1, 300))
def test_fednova_with_even_steps_is_fedavg(samples, steps):
    start, deltas = model(0), [model(seed) for seed in range(1, len(samples) + 1)]
    moved = fednova(start, deltas, samples, [steps] * len(samples))
    expected, _ = fedavg(start, running(deltas, samples), {})
    torch.testing.assert_close(moved, expected)


def test_fednova_norm_is_the_papers_vector():
    assert fednova_norm(7) == 7
    rho, tau, alpha = 0.9, 12, 0.05
    geometric = [(1 - rho ** (tau - k)) / (1 - rho) for k in range(tau)]
    assert fednova_norm(tau, momentum=rho) == pytest.approx(sum(geometric))
    proximal = [(1 - alpha) ** (tau - 1 - k) for k in range(tau)]
    assert fednova_norm(tau, proximal=alpha) == pytest.approx(sum(proximal))


def test_no_number_of_steps_that_a_site_may_claim_takes_long():
    steps = 2**53 - 1
    assert fednova_norm(steps) == steps
    assert fednova_norm(steps, momentum=0.9) == pytest.approx(10 * steps)
    assert fednova_norm(steps, momentum=0.9, proximal=0.5) == pytest.approx(2)


def test_fednova_norm_is_how_far_sgd_goes():
    rate, mu, momentum = 0.1, 0.5, 0.8
    position = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([position], lr=rate, momentum=momentum)
    for _ in range(15):
        position.grad = torch.ones_like(position) + mu * position.detach()
        optimizer.step()
    norm = fednova_norm(15, momentum=momentum, proximal=rate * mu)
    assert position.item() == pytest.approx(-rate * norm)


def descend(start, target, steps, rate):
    """Steps of gradient descent on |w - target|^2 / 2."""
    for _ in range(steps):
        start = start - rate * (start - target)
    return start


def test_fednova_corrects_what_uneven_steps_do_to_fedavg():
    steps = [2, 40]

    def local_deltas(start):
        ends = [descend(start["w"], target, k, 2e-3) for target, k in enumerate(steps)]
        return [{"w": end - start["w"]} for end in ends]

    nova = avg = {"w": torch.tensor([5.0])}
    for _ in range(400):
        nova = fednova(nova, local_deltas(nova), [1, 1], steps)
        avg, _ = fedavg(avg, running(local_deltas(avg), [1, 1]), {})
    assert abs(nova["w"].item() - 0.5) < 0.03  # the optimum of the mean of both losses
    assert avg["w"].item() > 0.9  # pulled to the client that does more steps


def test_fednova_refuses_what_has_no_meaning():
    for call in (
        lambda: fednova_norm(0),
        lambda: fednova_norm(1, momentum=1),
    ):
        with pytest.raises(ValueError, match=r"positive|below 1"):
            call()
