"""Broken configurations and experiments: each is told in words that say what to do.

`fl check` finds every one of them that can be known before a run, and `fl-run` ends with the same
words. Nobody sees a traceback of ours.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl import check as checks
from fl import run as runs
from fl.cli import main, run_main
from tests import experiment
from tests.in_process import InProcess

ENDPOINT = "3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"


@dataclass(frozen=True)
class Broken:
    """An experiment with one fault, and what must be said of it.

    Attributes:
        sets: What goes over server.yaml and clients.yaml, by `--set`.
        says: What both commands say.
        row: Who (the server or a site) and which check finds it; None if the files themselves
            cannot be meant, and so nothing can be checked.
        remedy: What the check says to do.
        files: Files of the experiment that are written (or, by None, removed).
        site_b: Files that site-b has of its own, its `code.py` say.
        quick: Whether it takes no worker to find it.
        code: The exit code, where the files cannot be meant.
    """

    sets: tuple[str, ...] = ()
    says: str = ""
    row: tuple[str, str] | None = None
    remedy: str = ""
    files: dict[str, str | None] = field(default_factory=dict)
    site_b: dict[str, str] = field(default_factory=dict)
    quick: bool = False
    code: int = 2


def train(setting):
    return (f"client_configs.train_configs.{setting}",)


def loader(name, **kwargs):
    return (
        f"clients.site-a.data_configs.dataset_name={name}",
        f"clients.site-a.data_configs.dataset_kwargs={json.dumps(kwargs)}",
    )


PROXYSTORE = (
    "comm_configs.proxystore_configs={enable_proxystore: true, connector_configs: "
    f"{{endpoints: [{ENDPOINT}]}}}}"
)

GLOBUS = "server_configs.comm_configs.globus_compute_configs"

BROKEN = {
    # The files cannot be meant.
    "a typo in a key": Broken(
        ("server_configs.num_globl_epochs=3",), "unknown key; did you mean num_global_epochs?"
    ),
    "a typo in a client's key": Broken(
        ("clients.site-a.train_configs.devise=cpu",), "unknown key; did you mean device?"
    ),
    "a key in the wrong place": Broken(
        ("num_global_epochs=3",), "unknown key; did you mean server_configs.num_global_epochs?"
    ),
    "a client's key in the wrong place": Broken(
        ("clients.site-b.dataset_name=load",),
        "unknown key; did you mean clients.1.data_configs.dataset_name?",
    ),
    "a folder of something else": Broken(
        says=".: has neither server.yaml and clients.yaml, which deploy.yml writes, nor an "
        "experiment.yml, which fl init writes",
        files={"server.yaml": None, "clients.yaml": None},
    ),
    "a wrong type": Broken(
        ("server_configs.num_global_epochs=many",), 'should be a valid integer, not "many"'
    ),
    "a number out of range": Broken(
        ("client_configs.train_configs.train_batch_size=0",), "should be greater than 0, not 0"
    ),
    "a missing file": Broken(
        says="clients.yaml: cannot be read (No such file or directory)",
        files={"clients.yaml": None},
    ),
    "bad YAML": Broken(says="server.yaml: is not YAML", files={"server.yaml": "a: [1,"}),
    "tabs": Broken(says="server.yaml: is not YAML", files={"server.yaml": "a:\n\tb: 1"}),
    "an empty file": Broken(says="server.yaml: is empty", files={"server.yaml": "# later\n"}),
    "a key twice": Broken(
        says="clients.yaml: is not YAML (line 2, column 1: clients stands twice)",
        files={"clients.yaml": "clients: []\nclients: []\n"},
    ),
    "the two files exchanged": Broken(
        says="server.yaml: clients belongs into clients.yaml; are the two files exchanged?",
        files={"server.yaml": "clients: []\n"},
    ),
    "a text for a mapping": Broken(
        ("server_configs=many",), 'server_configs: should be a mapping, KEY: VALUE, not "many"'
    ),
    "a name that no folder can have": Broken(
        ("clients.site-a.client_id=Zürich",),
        "should have letters, digits, _, . and - alone, and begin with a letter or a digit, not",
    ),
    "two clients of one name": Broken(
        ("clients.site-b.client_id=site-a",), "client_id 'site-a' stands twice"
    ),
    "an endpoint id that is none": Broken(
        ("clients.site-a.endpoint_id=polaris",), "should be a valid UUID or 'local', not"
    ),
    "a missing endpoint id": Broken(
        says="clients.0.endpoint_id: missing",
        files={
            "clients.yaml": "clients: [{client_id: a, data_configs: {dataset_path: a, "
            "dataset_name: b}}]"
        },
    ),
    "another number of clients": Broken(("server_configs.num_clients=3",), "num_clients is 3, but"),
    "more updates needed than clients": Broken(
        ("server_configs.min_clients=3",), "min_clients must be at most num_clients (2)"
    ),
    "no function id": Broken(
        (f"clients.site-a.endpoint_id={ENDPOINT}",), "globus_compute_configs is missing"
    ),
    "ProxyStore at the server alone": Broken(
        (f"server_configs.{PROXYSTORE}",),
        "clients.0.comm_configs.proxystore_configs.enable_proxystore is false, but the server's",
    ),
    "no environment file": Broken(
        (
            f"clients.site-a.endpoint_id={ENDPOINT}",
            f"{GLOBUS}={{function_id: {ENDPOINT}, environment_files: [none.env]}}",
        ),
        "none.env: cannot be read (No such file or directory); deploy.yml writes it",
        code=1,
    ),
    # The server finds it.
    "an unknown aggregator": Broken(
        ("server_configs.aggregator=FedAvgAgregator",),
        "FedAvgAgregator is unknown; did you mean FedAvgAggregator?",
        ("server", "algorithm"),
        "--set",
        quick=True,
    ),
    "an unknown setting of the aggregator": Broken(
        ("server_configs.aggregator_kwargs.client_weight_mode=equal",),
        "unknown key; did you mean client_weights_mode?",
        ("server", "algorithm"),
        quick=True,
    ),
    "an unknown scheduler": Broken(
        ("server_configs.scheduler=SynchScheduler",),
        "SynchScheduler is unknown; did you mean SyncScheduler?",
        ("server", "algorithm"),
        quick=True,
    ),
    "SCAFFOLD at the server alone": Broken(
        ("server_configs.aggregator=ScaffoldAggregator",),
        "ScaffoldAggregator and ScaffoldTrainer need each other",
        ("server", "algorithm"),
        quick=True,
    ),
    "a wrong loss": Broken(
        train("loss_fn=CrossEntropy"),
        "torch.nn has no class 'CrossEntropy'; did you mean CrossEntropyLoss?",
        ("server", "training"),
        quick=True,
    ),
    "a loss that takes no such argument": Broken(
        train("loss_fn_kwargs={smoothing: 0.1}"),
        "loss_fn_kwargs do not fit CrossEntropyLoss",
        ("server", "training"),
        quick=True,
    ),
    "a wrong optimizer": Broken(
        train("optim=Adamm"),
        "torch.optim has no class 'Adamm'; did you mean Adam?",
        ("server", "training"),
        quick=True,
    ),
    "an optimizer's argument of another": Broken(
        train("optim_args={lr: 0.1, betas: [0.9, 0.99]}"),
        "optim_args do not fit SGD",
        ("server", "training"),
        quick=True,
    ),
    "one site's wrong schedule": Broken(
        ("clients.site-b.train_configs.lr_scheduler=Cosine",),
        "site-b: train_configs.lr_scheduler: torch.optim.lr_scheduler has no class 'Cosine'; "
        "did you mean CosineAnnealingLR?",
        ("server", "training"),
        quick=True,
    ),
    "a model function that is missing": Broken(
        ("client_configs.model_configs.model_name=Nett",),
        "code.py: defines no function or class 'Nett'; did you mean Net?",
        ("server", "model"),
        "client_configs.model_configs",
        quick=True,
    ),
    "a model file that is missing": Broken(
        ("client_configs.model_configs.model_path=cod.py",),
        "cod.py: not in this site's code folder",
        ("server", "model"),
        "FL_SITE_CODE",
        quick=True,
    ),
    "a model file of wrong Python": Broken(
        ("client_configs.model_configs.model_path=bad.py",),
        "bad.py cannot be imported: SyntaxError: invalid syntax (bad.py, line 2)",
        ("server", "model"),
        "bad.py",
        files={"bad.py": "import torch\ndef Net(:\n"},
        quick=True,
    ),
    "a model file that reads a command line": Broken(
        ("client_configs.model_configs.model_path=script.py",),
        "script.py cannot be imported: SystemExit: 2 (script.py, line 3)",
        ("server", "model"),
        "script.py",
        files={"script.py": "import sys\n\nsys.exit(2)\n"},
        quick=True,
    ),
    "an argument that the model does not take": Broken(
        ("client_configs.model_configs.model_kwargs={depth: 3}",),
        "Net raised TypeError: Net() got an unexpected keyword argument 'depth'",
        ("server", "model"),
        "client_configs.model_configs",
        quick=True,
    ),
    "a model in place of what makes one": Broken(
        ("client_configs.model_configs.model_name=net",),
        "code.py: net is a model; name the function or class that makes it",
        ("server", "model"),
        quick=True,
    ),
    "a loss that is a function of outputs and labels": Broken(
        train("loss_fn_path=code.py") + train("loss_fn_name=loss"),
        "it is called with loss_fn_kwargs to make the loss, as a class of torch.nn is",
        ("server", "training"),
        quick=True,
    ),
    "something that is no model": Broken(
        ("client_configs.model_configs.model_name=load",),
        "load is no torch.nn.Module",
        ("server", "model"),
        quick=True,
    ),
    "no held-out set": Broken(
        ("server_configs.data_configs.dataset_kwargs={validation: false}",),
        "server_validation needs a second data set, the loader returned None",
        ("server", "held-out set"),
        quick=True,
    ),
    "a device that the server has not": Broken(
        ("server_configs.device=cuda:99",),
        "device 'cuda:99' is not here",
        ("server", "held-out set"),
        "--set server_configs.device=cpu",
        quick=True,
    ),
    "a run folder that cannot be written": Broken(
        ("server_configs.logging_output_dirname=code.py/runs",),
        "code.py/runs",
        ("server", "run folder"),
        "--set server_configs.logging_output_dirname=",
        quick=True,
    ),
    "a model too large for its way": Broken(
        ("client_configs.model_configs.model_kwargs={width: 1000000}",),
        "set comm_configs.proxystore_configs.enable_proxystore in server.yaml and clients.yaml",
        ("server", "ways"),
        quick=True,
    ),
    # A worker finds it.
    "a loader that raises": Broken(
        loader("load_badly"),
        "code.py: load_badly raised OSError: disk gone (code.py, line 17)",
        ("site-a", "data"),
        "code.py",
    ),
    "a loader without samples": Broken(
        loader("load", samples=0),
        "load returned no training samples",
        ("site-a", "data"),
        "code.py",
    ),
    "a loader that gives one set": Broken(
        loader("load_one_set"),
        "must return a training set and a validation set (or None)",
        ("site-a", "data"),
    ),
    "a loader that gives minibatches": Broken(
        loader("load_batches"),
        "load_batches returned a DataLoader; return its data set alone",
        ("site-a", "data"),
    ),
    "a loader that gives paths": Broken(
        loader("load_paths"),
        "load_paths returned PosixPath, a data set with __len__ and __getitem__ was expected",
        ("site-a", "data"),
    ),
    "a loader that ends the program": Broken(
        loader("load_by_arguments"),
        "load_by_arguments raised SystemExit: 2 (code.py, line",
        ("site-a", "data"),
    ),
    "inputs that are not finite": Broken(
        loader("load_nan"),
        "loss became nan at step 1; are the inputs finite?",
        ("site-a", "step"),
        "where inputs are not finite",
    ),
    "a loss that gives a number a sample": Broken(
        (
            "clients.site-a.train_configs.loss_fn_kwargs={reduction: none}",
            "server_configs.server_validation=false",
        ),
        "the loss gives [32] float32; one number for a minibatch was expected",
        ("site-a", "step"),
        "--set client_configs.train_configs.loss_fn_kwargs={}",
    ),
    "a loader that is not there": Broken(
        ("clients.site-a.data_configs.dataset_path=sites/data.py",),
        "sites/data.py: not in this site's code folder",
        ("site-a", "site code"),
        "point clients.site-a.data_configs to another file",
    ),
    "a loader that imports what the site lacks": Broken(
        ("clients.site-a.data_configs.dataset_path=needs.py",),
        "needs.py cannot be imported: ModuleNotFoundError: No module named 'pandaz' "
        "(needs.py, line 1)",
        ("site-a", "data"),
        files={"needs.py": "import pandaz\n"},
    ),
    "an argument that the loader does not take": Broken(
        loader("load", root="/data"),
        "load raised TypeError: load() got an unexpected keyword argument 'root'",
        ("site-a", "data"),
        "clients.site-a.data_configs",
    ),
    "another model at a site": Broken(
        says="0.weight is torch.float32 [8, 4], the model's is torch.float32 [9, 4]",
        row=("site-b", "model"),
        site_b={"code.py": experiment.CODE.replace("width=8", "width=9")},
    ),
    "samples that the model does not take": Broken(
        loader("load", inputs=5),
        "mat1 and mat2 shapes cannot be multiplied (32x5 and 4x8) on a minibatch of inputs [32, 5] "
        "float32 and labels [32] int64",
        ("site-a", "step"),
        "--set client_configs.model_configs.model_kwargs=",
    ),
    "more classes than outputs": Broken(
        loader("load", classes=5),
        "is out of bounds",
        ("site-a", "step"),
        "--set client_configs.model_configs.model_kwargs=",
    ),
    "labels that the loss does not take": Broken(
        loader("load_numbers"),
        "Long",
        ("site-a", "step"),
        "--set client_configs.model_configs.model_kwargs=",
    ),
    "samples without labels": Broken(
        loader("load_inputs"),
        "a sample is tuple of 1, a pair of input and label was expected",
        ("site-a", "data"),
    ),
    "inputs that are no tensor": Broken(
        loader("load_pairs"),
        "'list' object has no attribute 'to' on a minibatch of inputs that are a list, no tensor",
        ("site-a", "step"),
    ),
    "a first sample that raises": Broken(
        loader("load_lazily"),
        "load_lazily: its first sample raised FileNotFoundError: 0.png (code.py, line",
        ("site-a", "data"),
    ),
    "a batch larger than the data, and the last one dropped": Broken(
        ("clients.site-a.train_configs={train_batch_size: 64, train_drop_last: true}",),
        "train_drop_last leaves no minibatch: train_batch_size is too large",
        ("site-a", "step"),
        "--set clients.site-a.train_configs.train_batch_size=",
    ),
    "CUDA where none is": Broken(
        ("clients.site-a.train_configs.device=cuda:99",),
        "device 'cuda:99' is not here",
        ("site-a", "device"),
        "--set clients.site-a.train_configs.device=auto",
    ),
    "a device that nobody knows": Broken(
        ("clients.site-a.train_configs.device=gpu",),
        "device 'gpu' is none that torch knows; cpu, cuda, cuda:0, xpu, mps or auto",
        ("site-a", "device"),
        "--set clients.site-a.train_configs.device=auto",
    ),
}


@pytest.fixture(params=BROKEN.values(), ids=BROKEN.keys())
def broken(request, tmp_path, monkeypatch):
    """A broken experiment in the current folder, over sites in this process."""
    case = request.param
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    experiment.write(tmp_path)
    for name, text in case.files.items():
        (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    for name, text in case.site_b.items():
        (tmp_path / "site-b").mkdir(exist_ok=True)
        (tmp_path / "site-b" / name).write_text(text)
    code = {"site-b": tmp_path / "site-b"} if case.site_b else {}
    for module in (checks, runs):
        monkeypatch.setattr(module, "open_endpoints", lambda _federation: InProcess(code=code))
    return case


def call(command, *arguments, sets):
    options = [f"--set={text}" for text in sets]
    done = CliRunner().invoke(command, [*arguments, ".", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


def test_a_check_finds_it(broken):
    done = call(main, "check", "--json", *["--quick"] * broken.quick, sets=broken.sets)
    if broken.row is None:
        assert done.exit_code == broken.code
        assert done.stderr.startswith("error: ")
        assert broken.says in done.stderr
        return
    assert done.exit_code == 1, done.output
    failed = [row for row in json.loads(done.stdout) if not row["ok"]]
    assert (failed[0]["client_id"], failed[0]["check"]) == broken.row, failed
    assert broken.says in failed[0]["message"]
    assert "\n" not in failed[0]["message"]
    assert failed[0]["remedy"]
    assert broken.remedy in failed[0]["remedy"]


def test_a_run_ends_with_the_same_words(broken):
    done = call(run_main, sets=broken.sets)
    assert done.exit_code in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert broken.says in line
    who, check = broken.row or ("server", "files")
    if who != "server":
        assert who in line
        (log,) = Path("runs").glob("*/log.jsonl")
        assert f"what sites said, with their tracebacks: {log.absolute()}" in done.stdout
        assert "what to do about it: fl check" in done.stdout
        lines = [json.loads(text) for text in log.read_text().splitlines()]
        traces = [one["traceback"] for one in lines if one["client_id"] == who]
        assert "Traceback" in traces[0]
    elif check != "ways":
        assert not Path("runs").exists(), "it began before it looked"
