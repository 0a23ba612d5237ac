import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fl.client import built, data, site_code, trainer
from fl.client.results import Evaluation
from fl.config import TrainConfigs

# A model with everything that could carry over: buffers that are not saved, counters, dropout, a
# state that it gives up, parameters that it thaws on its way; and a set that draws from every
# generator there is.
STATEFUL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.inner[0].weight.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls, self.state = 0, (torch.tensor(2.0),)
    def forward(self, inputs):
        self.calls += 1
        if self.state is not None:
            inputs = inputs * self.state[0]
        self.state = None
        if hasattr(self, "before"):
            inputs = inputs + 0.1
        self.before = True
        self.seen += inputs.mean()
        if self.calls > 2:
            self.inner[0].weight.requires_grad_(True)
        return self.inner(inputs * (1 + self.calls)) + self.seen
"""
DRAWING = """
import random
import numpy as np
import torch
from torch.utils.data import Dataset
class Drawn(Dataset):
    def __init__(self):
        self.inputs = torch.randn(32, 4)
    def __len__(self):
        return 32
    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(())
        return self.inputs[index] + float(noise), int(self.inputs[index, 0] > 0)
def load():
    drawn = Drawn()
    return drawn, drawn
"""


@pytest.fixture
def stateful(site):
    (site.code / "model.py").write_text(STATEFUL)
    (site.code / "data.py").write_text(DRAWING)
    site.weights, site.sent_base = site.build("Net"), site.base("Net")
    return site


SETTINGS = [
    {"optim": "SGD", "optim_args": {"lr": 0.1, "momentum": 0.9}},
    {"optim": "Adam", "optim_args": {"lr": 0.01}},
    {"optim": "Adagrad", "optim_args": {"lr": 0.1, "initial_accumulator_value": 0.1}},
    {
        "lr_scheduler": "OneCycleLR",
        "lr_scheduler_args": {"max_lr": 0.1, "total_steps": 9},
        "lr_scheduler_unit": "step",
        "optim_args": {"lr": 0.1, "momentum": 0.9},
    },
    {"num_workers": 1, "num_local_epochs": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_a_warm_worker_gives_the_bytes_of_a_cold_one(stateful, settings):
    configs = {
        "train_batch_size": 16,
        "num_local_epochs": 2,
        "do_pre_validation": True,
        "do_validation": True,
        **settings,
    }

    def bytes_of(number):
        result = stateful.result(round=number, train_configs=configs)
        return result["update"]["digest"], result["metrics"]

    cold = bytes_of(3)
    for number in (1, 2):
        bytes_of(number)
    assert bytes_of(3) == cold
    stateful.cool()
    assert bytes_of(3) == cold
    data._loaded.forget()  # a worker that was warm for other data
    assert bytes_of(3) == cold


def test_a_warm_worker_gives_the_bytes_of_a_new_process(stateful):
    configs = {"train_batch_size": 8, "optim_args": {"lr": 0.1, "momentum": 0.9}}
    for number in (1, 2):
        stateful.result(round=number, train_configs=configs)
    warm = stateful.result(round=3, train_configs=configs)
    script = (
        "import json, sys, torch; from fl.client import task;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        "print(json.dumps(task.run(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(stateful.request(round=3, train_configs=configs)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["result"]["update"]["digest"] == warm["update"]["digest"]


@pytest.fixture
def builds(monkeypatch):
    """What is built, in order."""
    made = []
    for module, name in [
        (built, "build_model"),
        (built, "_build_optimizer"),
        (data, "_shuffled"),
        (data, "_call"),
    ]:
        build = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, name=name, build=build: (made.append(name), build(*args))[1],
        )
    return made


ALL = ["build_model", "_call", "_shuffled", "_build_optimizer"]


def test_each_part_is_built_once_and_again_when_its_key_changes(site, builds):
    def built(**changes):
        builds.clear()
        site.result(**changes)
        return builds.copy()

    assert built() == ALL
    assert built(round=2) == []
    assert built(client_id="b", steps=4) == []
    assert built(train_configs={"optim_args": {"lr": 0.5}}) == ["_build_optimizer"]
    assert built(train_configs={"optim_args": {"lr": 0.5}}) == []
    assert built(train_configs={"train_batch_size": 4}) == ["_shuffled", "_build_optimizer"]
    assert built() == ["_shuffled"]
    assert built(model=("Net", {"drop": 0.1})) == ["build_model", "_build_optimizer"]
    assert built() == ["build_model", "_build_optimizer"]
    (site.code / "model.py").write_text((site.code / "model.py").read_text() + "\n")
    assert built() == ["build_model", "_build_optimizer"]
    assert built(data=("load", {"n": 16})) == ["_call", "_shuffled"]
    (site.code / "data.py").write_text((site.code / "data.py").read_text() + "\n")
    assert built(data=("load", {"n": 16})) == ["_call", "_shuffled"]


def test_the_last_set_is_gone_before_the_next_is_loaded(site):
    (site.code / "data.py").write_text(
        (site.code / "data.py").read_text()
        + "\nimport gc, weakref"
        + "\nlast, alive = [], []"
        + "\ndef load_alone(n):"
        + "\n    gc.collect()"
        + "\n    alive.extend(kept() is not None for kept in last)"
        + "\n    samples = load(n)[0]"
        + "\n    last[:] = [weakref.ref(samples)]"
        + "\n    return samples, samples"
    )
    for n in (8, 16, 24):
        site.result(data=("load_alone", {"n": n}), train_configs={"do_validation": True})
    alive = site_code.load("data.py", "load_alone").__globals__["alive"]
    assert alive == [False, False]


TRACKED = """
import gc, weakref
last, alive = [], []
def Tracked(number):
    gc.collect()
    alive.extend(kept() is not None for kept in last)
    model = nn.Linear(4, 2)
    last[:] = [weakref.ref(model.weight)]
    return model
"""


def test_the_last_model_is_gone_before_the_next_is_built(site):
    """With its optimizer, which holds its parameters."""
    with (site.code / "model.py").open("a") as model:
        model.write(TRACKED)
    linear = {"weights": site.build("Linear")}
    for number in (1, 2):
        site.result(model=("Tracked", {"number": number}), **linear)
    site.result(operation="rehearse", model=("Tracked", {"number": 2}), **linear)
    alive = site_code.load("model.py", "Tracked").__globals__["alive"]
    assert alive == [False, False]


def test_after_training_there_is_room_for_validation(site, monkeypatch):
    held = []

    def look(model, *_, **__):
        optimizer, _ = built._optimizer._built
        held.append([*optimizer.state, *(p for p in model.parameters() if p.grad is not None)])
        return Evaluation(0.0, 0.0, 1)

    monkeypatch.setattr(trainer, "evaluate", look)
    site.result(train_configs={"do_validation": True, "optim": "Adam"})
    assert held == [[]]


def test_a_factory_that_is_no_plain_function_is_told_apart_by_its_file(site):
    for width in (3, 5):
        (site.code / "model.py").write_text(
            "import functools\nfrom torch import nn\n"
            f"Net = functools.partial(nn.Linear, 4, {width})\n"
        )
        weights = site.build("Net")
        assert site.update(weights=weights)["weight"].shape == (width, 4)


def test_a_task_that_fails_leaves_nothing_built(site, builds):
    site.result()
    site.answer(train_configs={"optim_args": {"lr": 1e38}, "num_local_epochs": 9})
    builds.clear()
    site.result()
    assert builds[0] == "build_model"


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_minibatches_are_those_of_a_plain_loader(shuffle, drop_last):
    configs = TrainConfigs(
        train_batch_size=8, train_data_shuffle=shuffle, train_drop_last=drop_last
    )

    class Sampled(TensorDataset):
        """Asked for one sample at a time."""

    tensors = torch.arange(30).float().reshape(30, 1), torch.arange(30)
    plain = DataLoader(
        Sampled(*tensors),
        batch_size=8,
        shuffle=shuffle,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(5),
    )
    for kind in (TensorDataset, Sampled):
        batches = data.training_batches(kind(*tensors), configs, 5)
        assert len(batches) == len(plain)
        plain.generator.manual_seed(5)
        for _ in range(2):
            for ours, theirs in zip(batches, plain, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
