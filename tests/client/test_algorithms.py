import numpy as np
import pytest
import torch
from torch import nn

from fl.client.algorithms import (
    add_control_correction,
    add_proximal_gradient,
    control_correction,
    delta,
    new_control,
    no_control,
)
from fl.server.aggregation import WeightedMean
from fl.server.strategies import fedavg, scaffold


def network(dtype=torch.float64):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(dtype)
    model[0].weight.requires_grad_(False)
    return model


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def backward(model, extra=lambda model: 0.0):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (model(inputs).square().mean() + extra(model)).backward()


# Deltas.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_delta_is_zero_where_nothing_changed(dtype):
    received = weights(network(dtype))
    trained = {name: tensor.clone() for name, tensor in received.items()}
    trained["2.bias"] += 0.5
    trained["1.num_batches_tracked"] += 7
    moved = delta(trained, received)
    assert {n: t.dtype for n, t in moved.items()} == {n: t.dtype for n, t in received.items()}
    assert torch.count_nonzero(moved["0.weight"]) == 0
    assert moved["2.bias"].item() == pytest.approx(0.5, rel=1e-2)
    assert moved["1.num_batches_tracked"].item() == 7


def test_the_delta_of_complex_numbers_is_one():
    received = {"c": torch.tensor([1 + 2j])}
    moved = delta({"c": torch.tensor([4 - 2j])}, received)
    assert moved["c"].tolist() == [3 - 4j]


def test_a_delta_can_take_the_memory_of_what_was_received():
    received, trained = weights(network()), weights(network())
    trained = {name: tensor + 1 for name, tensor in trained.items()}
    expected = delta(trained, received)
    places = {name: tensor.data_ptr() for name, tensor in received.items()}
    moved = delta(trained, received, in_place=True)
    for name, tensor in moved.items():
        assert torch.equal(tensor, expected[name])
        assert (tensor.data_ptr() == places[name]) == tensor.is_floating_point()


# FedProx.


def test_proximal_gradient_is_autograds():
    model, other = network(), network()
    received = {name: tensor + 0.3 for name, tensor in weights(model).items()}
    before = {name: tensor.clone() for name, tensor in received.items()}
    backward(model)
    add_proximal_gradient(model, received, mu=0.7)
    backward(
        other,
        lambda model: (
            0.35
            * sum(
                (parameter - received[name]).square().sum()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            )
        ),
    )
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, two.grad)
        else:
            assert one.grad is None
    assert all(torch.equal(received[name], before[name]) for name in before)


def test_no_proximal_gradient_where_training_begins_or_without_mu():
    model = network()
    received = weights(model)
    backward(model)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    add_proximal_gradient(model, received, mu=1.0)
    add_proximal_gradient(model, {n: t + 1 for n, t in received.items()}, mu=0.0)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    for one, two in zip(gradients, after, strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="mu"):
        add_proximal_gradient(model, received, mu=-1.0)


def test_fedprox_stays_between_the_global_model_and_the_local_optimum():
    """The minimum of (w - 3)^2 / 2 + mu/2 (w - 1)^2 is (3 + mu) / (1 + mu)."""
    point = Point(1.0)
    received = weights(point)
    optimizer = torch.optim.SGD(point.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        point.loss(curvature=1.0, target=3.0).backward()
        add_proximal_gradient(point, received, mu=4.0)
        optimizer.step()
    assert point.w.item() == pytest.approx(7 / 5)


# SCAFFOLD.


class Point(nn.Module):
    """One number, on the parabola of a client."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))

    def loss(self, curvature, target):
        return 0.5 * curvature * (self.w - target) ** 2


def local(received, controls, curvature, target, steps, rate):
    """A SCAFFOLD client's round; without controls, a FedAvg client's."""
    point = Point()
    point.load_state_dict(received)
    optimizer = torch.optim.SGD(point.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        point.loss(curvature, target).backward()
        if controls:
            add_control_correction(point, control_correction(*controls))
        optimizer.step()
    return weights(point)


def mean(updates):
    running = WeightedMean()
    for update in updates:
        running.add(update, 1.0)
    return running.result()


CLIENTS = [(1.0, 0.0), (9.0, 1.0)]
OPTIMUM = 0.9  # (1 * 0 + 9 * 1) / (1 + 9)


def test_scaffold_reaches_the_optimum_that_fedavg_misses():
    averaged = start = weights(Point(-4.0))
    far = {"w": 10 * 0.05}
    state, own = {}, [no_control(Point()), no_control(Point())]
    for _ in range(200):
        server = state.get("control", no_control(Point()))
        ends, changes = [], []
        for index, (curvature, target) in enumerate(CLIENTS):
            ends.append(local(start, (server, own[index]), curvature, target, 10, 0.05))
            own[index], change = new_control(own[index], server, start, ends[-1], distance=far)
            changes.append(change)
        start, state = scaffold(
            start,
            mean([delta(end, start) for end in ends]),
            state,
            control_delta=mean(changes),
            participation=1.0,
        )
        ends = [local(averaged, None, h, t, 10, 0.05) for h, t in CLIENTS]
        averaged, _ = fedavg(averaged, mean([delta(end, averaged) for end in ends]), {})
    assert start["w"].item() == pytest.approx(OPTIMUM, abs=1e-6)
    assert abs(averaged["w"].item() - OPTIMUM) > 0.1
    # The controls are the clients' gradients at the optimum, the server's is their mean: zero.
    assert [control["w"].item() for control in own] == pytest.approx([0.9, -0.9], abs=1e-5)
    assert state["control"]["w"].item() == pytest.approx(0, abs=1e-6)
    assert start["frozen"].item() == 2


def test_new_control_is_option_two():
    generator = np.random.default_rng(0)
    own, server, received, trained = (
        {"w": torch.from_numpy(generator.normal(size=(2, 3)))} for _ in range(4)
    )
    before = [t["w"].clone() for t in (own, server, received, trained)]
    control, change = new_control(own, server, received, trained, distance={"w": 0.4})
    c_i, c, x, y = (tensor.numpy() for tensor in before)
    np.testing.assert_allclose(control["w"].numpy(), c_i - c + (x - y) / 0.4)
    np.testing.assert_allclose(change["w"].numpy(), -c + (x - y) / 0.4)
    for one, two in zip(before, (own, server, received, trained), strict=True):
        assert torch.equal(one, two["w"])
    with pytest.raises(ValueError, match="distance"):
        new_control(own, server, received, trained, distance={"w": -0.1})


def test_a_control_of_one_step_is_its_gradient():
    received = weights(Point(2.0))
    zero = no_control(Point())
    trained = local(received, (zero, zero), 3.0, 1.0, 1, 0.1)
    control, _ = new_control(zero, zero, received, trained, distance={"w": 0.1})
    assert control["w"].item() == pytest.approx(3.0 * (2.0 - 1.0))


def test_controls_are_of_trainable_parameters_and_single_precision_at_least():
    control = no_control(network(torch.bfloat16))
    assert "0.weight" not in control
    assert "1.running_mean" not in control
    assert control["0.bias"].dtype == torch.float32
    assert all(torch.count_nonzero(tensor) == 0 for tensor in control.values())
    model = network(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    add_control_correction(model, {name: tensor + 1 for name, tensor in control.items()})
    assert all(p.grad.eq(1).all() for p in model.parameters() if p.grad is not None)
    assert model[2].bias.grad.dtype == torch.bfloat16
