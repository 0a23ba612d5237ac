"""What a model marks frozen stays where it is, and both sides have to have the same."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from fl.client import frozen
from fl.client.frozen import base_digest, travelling

FROZEN = ("Net", {"frozen": True})
MOVING = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)
        self.target = nn.Linear(4, 2).requires_grad_(False)
    def forward(self, inputs):
        for own, other in zip(self.target.parameters(), self.inner.parameters()):
            own.data = 0.9 * own.data + 0.1 * other.data
        return self.inner(inputs)
"""


def test_frozen_parameters_are_told_from_buffers_and_found_behind_every_name():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    model.tied = nn.Module()
    model.tied.weight = model[0].weight
    assert set(frozen.frozen(model)) == {"0.weight", "tied.weight"}
    assert set(travelling(model)) == set(model.state_dict()) - {"0.weight", "tied.weight"}


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype"])
def test_the_digest_tells_bases_apart(change):
    base = {"w": torch.arange(6.0)}
    other = {
        "value": {"w": torch.arange(6.0).index_fill(0, torch.tensor([5]), 5.5)},
        "name": {"v": torch.arange(6.0)},
        "shape": {"w": torch.arange(6.0).view(2, 3)},
        "dtype": {"w": torch.arange(6.0).view(torch.int32)},
    }[change]
    assert base_digest(base) == base_digest({"w": torch.arange(6.0)})
    assert base_digest(base) != base_digest(other)


def test_a_base_elsewhere_is_copied_and_hashed_piece_by_piece(monkeypatch):
    """As from a GPU, whose memory may hold more than the host's."""
    copies, alive = [], []

    class Copy(np.ndarray):
        pass

    def copied(tensor):
        values = tensor.clone().numpy().view(np.uint8).view(Copy)
        copies.append(weakref.ref(values))
        alive.append(sum(copy() is not None for copy in copies))
        return memoryview(values)

    base = {name: torch.full((64,), float(ord(name))) for name in "abcdef"}
    expected = base_digest(base)
    monkeypatch.setattr("fl.tensors.memory", copied)
    assert base_digest(base) == expected
    assert len(alive) == 6 and max(alive) <= 2


def test_nothing_frozen_has_no_digest():
    assert base_digest({}) is None


@pytest.mark.parametrize("operation", ["train", "evaluate", "rehearse"])
def test_another_base_than_the_servers_is_refused(site, operation):
    weights, base = site.build(*FROZEN[:1], **FROZEN[1]), site.base(*FROZEN[:1], **FROZEN[1])
    wanted = {"weights": weights, "model": FROZEN, "operation": operation}
    for known in (base[::-1], None):
        answer = site.answer(**wanted, base=known)
        told = answer.get("error") or next(
            item for item in answer["result"]["items"] if item["outcome"] == "failed"
        )
        assert f"not the server's (digest {base[:8]} here, " in told["message"]
        assert "\n" not in told["message"]
    assert "error" not in site.answer(**wanted, base=base)


def test_a_warm_worker_hashes_its_base_once_a_training(site, monkeypatch):
    wanted = {
        "weights": site.build(*FROZEN[:1], **FROZEN[1]),
        "base": site.base(*FROZEN[:1], **FROZEN[1]),
        "model": FROZEN,
    }
    site.result(**wanted)
    hashed = []
    digest = frozen.digest_each
    monkeypatch.setattr(frozen, "digest_each", lambda data: (hashed.append(1), digest(data))[1])
    site.result(**wanted, round=2)
    assert len(hashed) == 1


def test_training_that_moves_frozen_parameters_is_refused(site):
    (site.code / "model.py").write_text(MOVING)
    wanted = {"weights": site.build("Net"), "base": site.base("Net")}
    for number in (1, 2):  # nor is the model kept
        error = site.answer(**wanted, round=number)["error"]
        assert "training changed parameters that the model marks frozen" in error["message"]


def test_fedprox_pulls_what_travelled(site):
    wanted = {
        "weights": site.build(*FROZEN[:1], **FROZEN[1]),
        "base": site.base(*FROZEN[:1], **FROZEN[1]),
        "model": FROZEN,
        "train_configs": {"trainer": "FedProxTrainer", "mu": 0.1},
    }
    assert "layers.0.weight" not in site.update(**wanted)


def test_scaffold_controls_what_is_trained(site):
    weights = site.build(*FROZEN[:1], **FROZEN[1])
    floating = {
        f"control/{name}": torch.zeros_like(tensor)
        for name, tensor in weights.items()
        if tensor.is_floating_point() and "running" not in name
    }
    update = site.update(
        weights=weights | floating,
        base=site.base(*FROZEN[:1], **FROZEN[1]),
        model=FROZEN,
        train_configs={"trainer": "ScaffoldTrainer"},
        run_id="run",
    )
    assert set(update) == set(weights) | set(floating)
