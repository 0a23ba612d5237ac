import json
import time

import pytest
import torch

from fl.client import built, data, task
from fl.client.frozen import base_digest, frozen, travelling
from fl.client.request import CheckRequest
from fl.config import ModelConfigs
from fl.tensors import decode, encode
from fl.transport.base import Ref
from fl.transport.inline import InlineTransport

MODEL = """
import torch
from torch import nn
built = []
class Net(nn.Module):
    def __init__(self, dtype="float32", frozen=False, drop=0.0):
        super().__init__()
        built.append(dtype)
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(drop), nn.Linear(8, 2)
        ).to(getattr(torch, dtype))
        self.layers[0].weight.requires_grad_(not frozen)
    def forward(self, inputs):
        return self.layers(inputs.to(self.layers[0].weight.dtype))
def Linear():
    return nn.Linear(4, 2)
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
    def forward(self, inputs):
        return self.last(self.first(inputs))
"""
DATA = """
import torch
from torch.utils.data import TensorDataset
calls = []
def load(n=32, validation=True, held_out=None):
    calls.append(n)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    samples = TensorDataset(x, (x[:, 0] > 0).long())
    return samples, TensorDataset(*samples[:held_out]) if validation else None
def load_badly(fault):
    if fault == "raises":
        raise OSError("disk gone")
    return {"one": 1, "empty": (TensorDataset(torch.zeros(0, 4)), None)}[fault]
"""


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small for two threads: they would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def site_code(tmp_path, monkeypatch):
    """An empty site_code folder."""
    folder = tmp_path / "site_code"
    folder.mkdir()
    monkeypatch.setenv("FL_SITE_CODE", str(folder))
    return folder


class Site:
    """A site with a model and a loader, and the requests of a server that has its model."""

    def __init__(self, code, state):
        self.code, self.state = code, state
        self.weights, self.sent_base = self.build("Net"), None

    @staticmethod
    def build(name, **kwargs):
        configs = ModelConfigs(model_path="model.py", model_name=name, model_kwargs=kwargs)
        return travelling(built.build_model(configs))

    @staticmethod
    def base(name, **kwargs):
        configs = ModelConfigs(model_path="model.py", model_name=name, model_kwargs=kwargs)
        return base_digest(frozen(built.build_model(configs)))

    def request(self, weights=None, model=("Net", {}), data=("load", {}), **changes):
        request = {
            "operation": "train",
            "round": 1,
            "client_id": "a",
            "run_id": "run-1",
            "model": InlineTransport().put(encode(weights or self.weights)).to_json(),
            "base": self.sent_base,
            "train_configs": {},
            "model_configs": {
                "model_path": "model.py",
                "model_name": model[0],
                "model_kwargs": model[1],
            },
            "data_configs": {
                "dataset_path": "data.py",
                "dataset_name": data[0],
                "dataset_kwargs": data[1],
            },
            "proxystore_configs": {},
            **changes,
        }
        if request["operation"] in ("check", "rehearse"):
            del request["round"]
            request.setdefault("until", time.time() + 60)
            request.setdefault("rounds", 2)
        if request["operation"] == "check":
            request = {key: request[key] for key in CheckRequest.model_fields if key in request}
        return request

    def answer(self, **changes):
        """Both ways through JSON, as Globus Compute carries it."""
        request = json.loads(json.dumps(self.request(**changes)))
        return json.loads(json.dumps(task.run(request)))

    def result(self, **changes):
        answer = self.answer(**changes)
        assert "result" in answer, answer
        return answer["result"]

    def update(self, **changes):
        return self.tensors_of(self.result(**changes))

    @staticmethod
    def tensors_of(result):
        return decode(InlineTransport().get(Ref.from_json(result["update"])))

    @staticmethod
    def cool():
        """What a new worker has built: nothing."""
        built.forget()
        for kept in (data._loaded, data._training, data._validation):
            kept.forget()


@pytest.fixture
def site(site_code, tmp_path, monkeypatch):
    for name in ("FL_BLOCK_END", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    (site_code / "model.py").write_text(MODEL)
    (site_code / "data.py").write_text(DATA)
    yield Site(site_code, tmp_path / "state")
    Site.cool()
