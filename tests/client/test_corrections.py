"""FedProx and SCAFFOLD, as a server meets them."""

import stat

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fl.client import control, site_code
from fl.client.corrections import Controlled
from fl.config import TrainConfigs
from fl.server.strategies import fednova_norm, scaffold
from fl.tensors import decode

LINEAR = {"model": ("Linear", {}), "steps": 3}


def descend(start, samples, steps, rate, momentum=0.0, loss_term=None, clip=None, step_term=None):
    """Whole-batch descent written out: gradients by autograd, the momentum by hand."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    inputs, labels = samples.tensors
    for _ in range(steps):
        outputs = inputs @ weights["weight"].T + weights["bias"]
        loss = nn.functional.cross_entropy(outputs, labels)
        if loss_term:
            loss = loss + loss_term(weights)
        gradients = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
        if clip:
            norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
            gradients = {name: g * min(clip / norm, 1) for name, g in gradients.items()}
        with torch.no_grad():
            for name, gradient in gradients.items():
                added = gradient + (step_term[name] if step_term else 0)
                velocity[name] = momentum * velocity[name] + added
                weights[name] -= rate * velocity[name]
    return {name: tensor.detach() for name, tensor in weights.items()}


def samples():
    return site_code.load("data.py", "load")()[0]


# FedProx.


@pytest.mark.parametrize("clip", [None, 0.05])
def test_fedprox_descends_the_proximal_loss_and_clips_it_whole(site, clip):
    start = site.build("Linear")
    configs = {"trainer": "FedProxTrainer", "mu": 3.0, "optim_args": {"lr": 0.1, "momentum": 0.9}}
    if clip:
        configs |= {"clip_grad": True, "clip_value": clip}
    end = site.update(weights=start, **LINEAR, train_configs=configs)
    expected = descend(
        start,
        samples(),
        3,
        0.1,
        0.9,
        lambda weights: 1.5 * sum((weights[n] - start[n]).square().sum() for n in start),
        clip,
    )
    for name in start:
        torch.testing.assert_close(end[name], expected[name])


def test_mu_is_fedprox_alone():
    for settings in ({"trainer": "FedProxTrainer"}, {"mu": 0.1}):
        with pytest.raises(ValidationError, match="mu is what FedProxTrainer needs"):
            TrainConfigs(**settings)


# SCAFFOLD.


def broadcast(site, scale=0.0):
    start = site.build("Linear")
    server = {name: scale * torch.ones_like(tensor) for name, tensor in start.items()}
    return start, server, {**start, **control.prefixed(server)}


SCAFFOLD = {
    **LINEAR,
    "run_id": "run-1",
    "train_configs": {"trainer": "ScaffoldTrainer", "optim_args": {"lr": 0.1, "momentum": 0.9}},
}


@pytest.mark.parametrize("update", ["model", "difference"])
def test_scaffold_corrects_its_steps_and_sends_its_controls_change(site, update):
    start, server, weights = broadcast(site, 0.2)
    sent, change = control.split(site.update(weights=weights, update=update, **SCAFFOLD))
    end = descend(start, samples(), 3, 0.1, 0.9, step_term=server)
    distance = 0.1 * fednova_norm(3, momentum=0.9)
    for name in start:
        torch.testing.assert_close(
            sent[name], end[name] - (start[name] if update == "difference" else 0)
        )
        torch.testing.assert_close(
            change[name], (start[name] - end[name]) / distance - server[name]
        )


def test_scaffold_goes_on_from_the_control_that_it_kept(site):
    start, server, weights = broadcast(site, 0.2)
    _, own = control.split(site.update(weights=weights, **SCAFFOLD))  # c_i was 0
    sent, _ = control.split(site.update(weights=weights, **SCAFFOLD, round=2, control_version=1))
    correction = {name: server[name] - own[name] for name in start}
    end = descend(start, samples(), 3, 0.1, 0.9, step_term=correction)
    for name in start:
        torch.testing.assert_close(sent[name], end[name])


def test_what_the_control_takes_for_a_constant_gradient_is_that_gradient():
    """With momentum and a rate that changes, too: both are in the distance."""
    parameter = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, -2.0]))})
    start = {"w": parameter["w"].detach().clone()}
    zero = {"w": torch.zeros(2)}
    correction = Controlled(zero, zero, 0.9, torch.device("cpu"))
    optimizer = torch.optim.SGD(parameter.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(4):
        parameter["w"].grad = torch.tensor([3.0, 5.0])
        correction.to_step(parameter, optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    kept, change = correction.outcome(start, {"w": parameter["w"].detach()})
    torch.testing.assert_close(kept["w"], torch.tensor([3.0, 5.0]))
    assert torch.equal(kept["w"], change["w"])


def round_of(start, server, own, targets):
    """Ten steps of a client whose loss has some of the parameters."""
    model = nn.ParameterDict({name: nn.Parameter(t.clone()) for name, t in start.items()})
    correction = Controlled(server, own, 0.5, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        sum((model[name] - target).square() for name, target in targets.items()).backward()
        correction.to_step(model, 0.05)
        optimizer.step()
    end = {name: parameter.detach() for name, parameter in model.items()}
    return {name: end[name] - start[name] for name in start}, *correction.outcome(start, end)


def test_a_parameter_that_one_client_alone_uses_is_trained():
    start = {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}
    zero = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    own, state = [zero, zero], {"control": zero}
    for _ in range(60):
        sent = [
            round_of(start, state["control"], own[index], targets)
            for index, targets in enumerate([{"a": 1.0, "b": 5.0}, {"a": 3.0}])
        ]
        own = [control for _, control, _ in sent]
        mean, change = (
            {name: (sent[0][part][name] + sent[1][part][name]) / 2 for name in start}
            for part in (0, 2)
        )
        start, state = scaffold(start, mean, state, control_delta=change, participation=1.0)
        assert own[1]["b"] == sent[1][2]["b"] == 0
    assert start["b"].item() == pytest.approx(5, abs=1e-3)
    assert start["a"].item() == pytest.approx(2, abs=1e-3)


def test_a_step_without_a_gradient_is_none_of_its_parameters():
    """Gradients of 3 and 5 in every other step."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, -2.0]))})
    start, zero = {"w": model["w"].detach().clone()}, {"w": torch.zeros(2)}
    correction = Controlled(zero, zero, 0.9, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        model["w"].grad = torch.tensor([3.0, 5.0]) if step % 2 else None
        correction.to_step(model, 0.1)
        optimizer.step()
    kept, _ = correction.outcome(start, {"w": model["w"].detach()})
    torch.testing.assert_close(kept["w"], torch.tensor([3.0, 5.0]))


def test_a_repeated_round_gives_the_same_bytes_whatever_came_after_it(site):
    _, _, weights = broadcast(site, 0.2)

    def digest(number, version):
        sent = site.result(weights=weights, **SCAFFOLD, round=number, control_version=version)
        return sent["update"]["digest"]

    digest(1, None)
    second = digest(2, 1)
    assert digest(3, 1) != second  # the server never got round 2
    assert digest(2, 1) == second


def test_tied_weights_have_both_their_names(site):
    """As in the model that the server sends, and in the controls that it makes of that."""
    start = site.build("Tied")
    assert set(start) == {"first.weight", "last.weight"}
    sent, change = control.split(
        site.update(
            model=("Tied", {}),
            weights={**start, **control.prefixed(start)},
            update="difference",
            train_configs={"trainer": "ScaffoldTrainer", "optim_args": {"lr": 0.1}},
        )
    )
    for tensors in (sent, change):
        assert tensors["first.weight"].shape == (4, 4)
        assert torch.equal(tensors["first.weight"], tensors["last.weight"])


def test_controls_are_private_whole_and_removed_once_a_newer_one_is_taken(site):
    _, _, weights = broadcast(site)
    folder = site.state / "run-1" / "a"

    def names():
        return sorted(file.name for file in folder.iterdir())

    for number, version, saved, expected in [
        (1, None, None, ["1.safetensors"]),
        (2, None, None, ["1.safetensors", "2.safetensors"]),
        (3, 2, 2, ["2.safetensors", "3.safetensors"]),
        # Round 3 may still be taken: its answer is on its way.
        (4, 2, 2, ["2.safetensors", "3.safetensors", "4.safetensors"]),
        # It was, in a step that is not saved: a server that is killed asks from round 2 again.
        (5, 3, 2, ["2.safetensors", "3.safetensors", "4.safetensors", "5.safetensors"]),
        (3, 2, 2, ["2.safetensors", "3.safetensors", "4.safetensors", "5.safetensors"]),
        (6, 3, 3, ["3.safetensors", "4.safetensors", "5.safetensors", "6.safetensors"]),
    ]:
        versions = {"control_version": version, "control_saved": saved}
        site.result(weights=weights, **SCAFFOLD, round=number, **versions)
        assert names() == expected
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert {stat.S_IMODE(up.stat().st_mode) for up in (folder, folder.parent, site.state)} == {
        0o700
    }
    assert set(decode((folder / "3.safetensors").read_bytes())) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"control_version": 7, "round": 8}, "what client a kept of round 7 cannot be read"),
        ({"run_id": None}, "run_id"),
        ({"weights": None}, "tensors missing or unknown: control/"),
    ],
)
def test_what_scaffold_lacks_is_named(site, changes, expected):
    start, _, weights = broadcast(site)
    if "weights" in changes:
        changes = {"weights": start}
    answer = site.answer(**{**SCAFFOLD, "weights": weights, **changes})
    assert expected in answer["error"]["message"]


def test_a_disk_that_takes_no_control_fails_the_round(site):
    (site.state).parent.mkdir(exist_ok=True)
    site.state.write_text("no folder")
    _, _, weights = broadcast(site)
    assert "cannot be written" in site.answer(weights=weights, **SCAFFOLD)["error"]["message"]


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "Adam"},
        {"optim_args": {"lr": 0.1, "weight_decay": 1e-4}},
        {"optim_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True}},
        {"optim_args": {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}},
        {"amp": "float16"},
    ],
)
def test_scaffold_refuses_what_its_controls_do_not_fit(settings):
    with pytest.raises(ValidationError, match="ScaffoldTrainer"):
        TrainConfigs(trainer="ScaffoldTrainer", **settings)
    TrainConfigs(trainer="ScaffoldTrainer", optim_args={"lr": 0.1, "weight_decay": 0.0})


def test_the_servers_control_stays_the_mean_of_the_clients(site):
    """Three rounds of two clients, one of which misses the second, against c = mean c_i."""
    weights, state, versions = site.build("Linear"), {}, {"a": None, "b": None}
    zero = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for number, clients in enumerate([("a", "b"), ("a",), ("a", "b")], start=1):
        sent = []
        for client in clients:
            result = site.result(
                **SCAFFOLD,
                weights={**weights, **control.prefixed(state.get("control", zero))},
                data=("load", {"n": 32 if client == "a" else 16}),
                client_id=client,
                round=number,
                control_version=versions[client],
            )
            sent.append(control.split(site.tensors_of(result)))
            versions[client] = number
        mean, change = (
            {name: sum(update[part][name] for update in sent) / len(sent) for name in weights}
            for part in (0, 1)
        )
        weights, state = scaffold(
            weights, mean, state, control_delta=change, participation=len(sent) / 2
        )
    kept = [
        decode((site.state / "run-1" / client / "3.safetensors").read_bytes()) for client in "ab"
    ]
    for name in weights:
        torch.testing.assert_close(
            state["control"][name], sum(control[name] for control in kept) / 2
        )
