import json
import struct
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from fl import run
from fl.config import ConfigError
from fl.config_files import Files
from fl.errors import FederationError
from fl.history import read_history
from fl.server import registry
from fl.server.events import RoundEnded, SiteEvaluation, SitesEvaluated, UpdateReceived, Warned
from fl.trackers import Trackers, numbers_of, open_trackers
from tests import experiment
from tests.in_process import InProcess

UPDATE = UpdateReceived(1, "site-a", 8, 2, 0, {"train_loss": 0.5}, {}, 100, 0.0, 1.0, 1.0)
ENDED = RoundEnded(1, 0.25, None, [UPDATE], [], 200, 100, {"total": 2.0}, {"epsilon": None})


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What event files hold: records of a length, its checksum, an event, its checksum."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + length :]
    return found


def test_a_round_as_numbers():
    assert numbers_of(ENDED) == {
        "loss": 0.25,
        "bytes/up": 100.0,
        "bytes/down": 200.0,
        "updates": 1.0,
        "failures": 0.0,
        "seconds/total": 2.0,
        "sites/site-a/train_loss": 0.5,
    }


def test_a_name_that_a_site_makes_up_is_one_that_trackers_take():
    metrics = {"a?b": 1.0, "../../x": 2.0, "": 3.0, "val_loss": 4.0}
    found = numbers_of(replace(ENDED, updates=[replace(UPDATE, metrics=metrics)]))
    of_site = {name: number for name, number in found.items() if name.startswith("sites/")}
    assert of_site == {
        "sites/site-a/a_b": 1.0,
        "sites/site-a/______x": 2.0,
        "sites/site-a/_": 3.0,
        "sites/site-a/val_loss": 4.0,
    }


def test_what_sites_found_as_numbers():
    found = {"site-a": SiteEvaluation(0.5, 0.75, 8)}
    assert numbers_of(SitesEvaluated(1, 2, 0.5, 0.75, 8, found)) == {
        "at_sites/loss": 0.5,
        "at_sites/accuracy": 0.75,
        "at_sites/site-a/loss": 0.5,
        "at_sites/site-a/accuracy": 0.75,
    }


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Runs an experiment whose server names a tracker."""

    def train(name, *overrides):
        experiment.write(
            tmp_path, lambda server, _: server["server_configs"].update(trackers=[name])
        )
        monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
        monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
        monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml", overrides)
        outcome = run.run(files, Console(quiet=True))
        warned = [one for one in read_history(outcome.folder).log if one.event == "warned"]
        assert warned == []
        return outcome

    return train


def of_another_environment(package):
    """A package that this environment leaves out: see pyproject.toml."""
    return pytest.importorskip(
        package, reason=f"{package} is not installed here, pip install {package}"
    )


def test_a_runs_event_files_hold_its_numbers(tracked):
    outcome = tracked("tensorboard")
    found = scalars(outcome.folder)
    assert found["accuracy", 2] == pytest.approx(outcome.accuracy)
    assert {("loss", 1), ("sites/site-b/val_loss", 2), ("seconds/wait", 1)} <= set(found)


def test_mlflow_has_a_runs_numbers(tracked, tmp_path, monkeypatch):
    mlflow = of_another_environment("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    outcome = tracked("mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("fl").experiment_id])
    assert (found.info.run_name, found.info.status) == (outcome.folder.name, "FINISHED")
    assert found.data.metrics["accuracy"] == pytest.approx(outcome.accuracy)
    history = client.get_metric_history(found.info.run_id, "sites/site-b/val_loss")
    assert [point.step for point in history] == [1, 2]


def test_a_resumed_run_goes_on_in_mlflow(tmp_path, monkeypatch):
    mlflow = of_another_environment("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (1, 2):
        (tracker,) = open_trackers(["mlflow"]).values()
        tracker.begin(tmp_path / "the-run")
        tracker.log({"loss": 1.0 / step}, step)
        tracker.close()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("fl").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2]


def test_weights_and_biases_has_a_runs_numbers(tracked, monkeypatch, capfd):
    of_another_environment("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = tracked("wandb")
    assert capfd.readouterr() == ("", "")
    (file,) = outcome.folder.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert json.dumps(outcome.accuracy).encode() in written
    assert b"sites/site-b/val_loss" in written


@pytest.fixture
def mlflow_stands_in(monkeypatch):
    """What an MLflow server was told of how runs ended."""
    told = []

    class Client:
        def search_runs(self, *_arguments, **_how):
            return [SimpleNamespace(info=SimpleNamespace(run_id="1"))]

        def set_terminated(self, run, status):
            told.append(status)

        def __getattr__(self, _name):
            return lambda *_arguments, **_how: None

    client = Client()
    client.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id=name)
    module = ModuleType("mlflow")
    module.MlflowClient, module.exceptions = (
        lambda: client,
        SimpleNamespace(MlflowException=OSError),
    )
    module.entities = SimpleNamespace(Metric=lambda *_: None)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return told


def test_a_run_that_failed_is_not_finished_in_mlflow(tracked, mlflow_stands_in):
    tracked("mlflow")
    assert mlflow_stands_in == ["FINISHED"]
    with pytest.raises(FederationError):
        tracked("mlflow", "clients.site-b.data_configs.dataset_name=load_badly")
    assert mlflow_stands_in == ["FINISHED", "FAILED"]


def test_a_run_that_failed_has_no_exit_code_0_at_weights_and_biases(tmp_path, monkeypatch):
    codes = []
    run = SimpleNamespace(
        define_metric=lambda *_, **_how: None, finish=lambda exit_code: codes.append(exit_code)
    )
    module = ModuleType("wandb")
    module.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    module.Settings, module.init = dict, lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", module)
    for finished in (True, False):
        trackers = Trackers(open_trackers(["wandb"]), pytest.fail)
        trackers.begin(tmp_path)
        trackers.close(finished=finished)
    assert codes == [0, 1]


def test_nobody_is_logged_in_at_weights_and_biases(tmp_path, monkeypatch):
    of_another_environment("wandb").teardown()  # forgets the mode of a test before
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="wandb: nobody is logged in: wandb login, or export"):
        open_trackers(["wandb"])


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_package_is_told_before_the_run(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        open_trackers([name])
    assert str(error.value).startswith(f"server.yaml: server_configs.trackers: {name}: it needs")
    assert f"pip install 'fl-hpc[{name}]'" in str(error.value)


def test_an_unknown_tracker_is_named():
    with pytest.raises(ConfigError, match="tensorbord is unknown; did you mean tensorboard"):
        open_trackers(["tensorbord"])


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A tracker of another package."""

    def install(code):
        (tmp_path / "their_tracker.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "their_tracker", raising=False)
        point = EntryPoint("theirs", "their_tracker:Their", "fl.trackers")
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])

    return install


def test_another_packages_tracker_is_told_everything(theirs, tmp_path):
    theirs(
        "class Their:\n"
        "    told = []\n"
        "    def begin(self, folder): self.told.append(folder)\n"
        "    def log(self, numbers, step): self.told.append(([*numbers][0], step))\n"
        "    def close(self): self.told.append('closed')\n"
    )
    opened = open_trackers(["theirs"])
    trackers = Trackers(opened, pytest.fail)
    trackers.begin(tmp_path)
    trackers(ENDED)
    trackers(Warned("not a round"))
    trackers(SitesEvaluated(1, 2, 0.5, 0.75, 8, {}))
    trackers.close(finished=False)
    assert opened["theirs"].told == [tmp_path, ("loss", 1), ("at_sites/loss", 1), "closed"]


def test_a_tracker_that_cannot_be_built_is_told_in_a_line(theirs):
    theirs("class Their:\n    def __init__(self): raise OSError('no\\nserver')\n")
    with pytest.raises(ConfigError, match=r"trackers: theirs: OSError: no server$"):
        open_trackers(["theirs"])


def test_a_tracker_that_fails_costs_itself_alone(tmp_path):
    class Failing:
        def begin(self, folder):
            pass

        def log(self, numbers, step):
            raise OSError("disk full")

    class Good(Failing):
        def __init__(self):
            self.steps = []

        def log(self, numbers, step):
            self.steps.append(step)

    told, good = [], Good()
    trackers = Trackers({"failing": Failing(), "good": good}, told.append)
    trackers(ENDED)
    trackers(replace(ENDED, round=2))
    assert good.steps == [1, 2]
    assert told == [Warned("tracker failing is told no more: OSError: disk full")]
