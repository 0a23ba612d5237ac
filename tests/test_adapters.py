"""A run of a model of which most is frozen: the rest alone travels, and all of it is kept."""

import gc
import json

import pytest
import yaml
from rich.console import Console

from fl import run
from fl.client import built
from fl.config_files import Files
from fl.errors import FederationError
from fl.plan import plan
from fl.server import federation
from fl.tensors import decode
from tests import experiment
from tests.in_process import InProcess

FROZEN = """
def Frozen(seeded=True):
    net = Net(width=512)
    net[0].requires_grad_(False)
    if not seeded:
        net[0].weight.data.mul_(2)
    return net
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    def change(server, clients):
        server["client_configs"]["model_configs"]["model_name"] = "Frozen"
        server["server_configs"]["scheduler_kwargs"] = {"deterministic": True}

    experiment.write(tmp_path, change)
    (tmp_path / "code.py").write_text(experiment.CODE + FROZEN)
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    return Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")


def test_only_what_is_trained_travels_and_the_whole_model_is_kept(files):
    outcome = run.run(files, Console(quiet=True))
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").open()]
    final = decode(outcome.model.read_bytes())
    start = built.build_model(files.load().client_configs.model_configs).state_dict()
    assert set(final) == set(start)
    assert (final["0.weight"] == start["0.weight"]).all()
    assert (final["2.weight"] != start["2.weight"]).any()
    assert set(decode((outcome.folder / "best.safetensors").read_bytes())) == set(start)
    trained = 4 * (2 * 512 + 2)
    for line in lines:
        assert 2 * trained < line["bytes_up"] < 2 * trained + 1000
        assert line["bytes_down"] == line["bytes_up"]
    assert plan(files).model_bytes == lines[0]["bytes_up"] / 2


def test_a_run_goes_on_to_the_same_bytes_unless_its_base_has_changed(files, monkeypatch, tmp_path):
    whole = run.run(files, Console(quiet=True))
    server = yaml.safe_load(files.server.read_text())
    server["server_configs"]["logging_output_filename"] = "broken-off"
    files.server.write_text(yaml.safe_dump(server))
    steps = []

    def stop(self, this, step=federation.Server._step):
        steps.append(this.number)  # a round holds the run's folder open
        if len(steps) == 2:
            raise FederationError("killed")
        return step(self, this)

    with monkeypatch.context() as patched:
        patched.setattr(federation.Server, "_step", stop)
        with pytest.raises(FederationError, match="killed"):
            run.run(files, Console(quiet=True))
    gc.collect()  # the run's folder is locked for as long as the traceback holds its frames
    (folder,) = (tmp_path / "runs").glob("broken-off-*")
    code = (tmp_path / "code.py").read_text()
    (tmp_path / "code.py").write_text(code.replace("seeded=True", "seeded=False"))
    with pytest.raises(FederationError, match="not those that the run began with"):
        run.resume(folder, Console(quiet=True))
    gc.collect()
    (tmp_path / "code.py").write_text(code.replace("Net(width=512)", "Net(width=512, classes=3)"))
    with pytest.raises(FederationError, match=r"2\.bias is torch.float32 \[2\] in its checkpoint"):
        run.resume(folder, Console(quiet=True))
    gc.collect()
    (tmp_path / "code.py").write_text(code)
    resumed = run.resume(folder, Console(quiet=True))
    assert resumed.model.read_bytes() == whole.model.read_bytes()
