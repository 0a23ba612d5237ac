"""fl-run over processes on this machine: the loop, the task and the files, without a service."""

import gc
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from rich.console import Console

from fl import run
from fl.cli import run_main
from fl.config_files import Files
from fl.errors import INTERRUPTED, FederationError
from fl.tensors import decode
from fl.transport.inline import LIMIT_BYTES
from tests import experiment
from tests.in_process import InProcess
from tests.transport import nginx

EXAMPLES = Path(__file__).parents[1] / "examples"
FL_RUN = Path(sys.executable).with_name("fl-run")


@pytest.fixture
def files(tmp_path):
    """server.yaml and clients.yaml for the digits experiment with two local clients."""

    def _files(change=lambda server, clients: None):
        experiment = yaml.safe_load((EXAMPLES / "digits" / "experiment.yml").read_text())
        data = experiment.pop("data_configs")
        experiment["server_configs"] |= {
            "num_clients": 2,
            "num_global_epochs": 2,
            "round_deadline": 60,
            "logging_output_dirname": str(tmp_path / "runs"),
        }
        clients = {
            "clients": [
                {
                    "endpoint_id": "local",
                    "client_id": f"site-{index}",
                    "data_configs": {
                        **data,
                        "dataset_kwargs": {
                            **data["dataset_kwargs"],
                            "num_clients": 2,
                            "client_id": index,
                        },
                    },
                }
                for index in range(2)
            ]
        }
        change(experiment, clients)
        (tmp_path / "server.yaml").write_text(yaml.safe_dump(experiment))
        (tmp_path / "clients.yaml").write_text(yaml.safe_dump(clients))
        return tmp_path

    return _files


def fl_run(folder, site_code=EXAMPLES):
    command = [FL_RUN, "--server", folder / "server.yaml", "--clients", folder / "clients.yaml"]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={"FL_SITE_CODE": str(site_code), "PATH": "/usr/bin:/bin"},
        check=False,
    )


def test_a_run_leaves_model_metrics_configuration_and_versions(files):
    folder = files()
    done = fl_run(folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    assert f"model: {run / 'model.safetensors'}" in done.stdout
    assert "test accuracy: 0." in done.stdout
    assert "layers.0.weight" in decode((run / "model.safetensors").read_bytes())
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1, 2]
    assert {"loss", "accuracy", "bytes_down", "bytes_up", "seconds"} <= set(rounds[0])
    assert rounds[1]["loss"] < rounds[0]["loss"]
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["server_configs"]["min_clients"] is None
    assert "torch" in json.loads((run / "versions.json").read_text())


def test_a_loss_that_no_longer_falls_ends_the_run(tmp_path, monkeypatch):
    def change(server, clients):
        server["server_configs"] |= {
            "num_global_epochs": 9,
            "early_stopping": {"patience": 1, "min_delta": 100.0},
        }

    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    done = CliRunner().invoke(run_main, [str(experiment.write(tmp_path, change))])
    assert done.exit_code == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"model: {folder / 'model.safetensors'}" in done.stdout
    kept = (folder / "metrics.jsonl").read_text()
    assert len(kept.splitlines()) == 2
    gc.collect()  # its record holds the lock until then
    resumed = CliRunner().invoke(run_main, ["--resume", str(folder)])
    assert f"model: {folder / 'model.safetensors'}" in resumed.stdout
    assert (folder / "metrics.jsonl").read_text() == kept


def test_a_mistake_is_one_line_and_an_exit_code(files):
    def too_large(server, clients):
        server["client_configs"]["model_configs"]["model_kwargs"]["width"] = 2000

    done = fl_run(files(too_large))
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert "enable_proxystore" in errors[0]


def test_sites_that_are_down_are_named_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    experiment.write(tmp_path)
    endpoints = InProcess(offline=["site-b"])
    monkeypatch.setattr(run, "open_endpoints", lambda _federation: endpoints)

    def start(*overrides):
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml", overrides)
        return run.run(files, Console(quiet=True))

    down = r"^1 of 2 sites are down \(2 needed\): site-b: endpoint is offline$"
    with pytest.raises(FederationError, match=down):
        start()
    assert endpoints.asked == []
    assert not list(tmp_path.rglob("checkpoint.safetensors"))
    assert start("server_configs.min_clients=1").model.exists()


@pytest.fixture
def bucket():
    """An S3 bucket of moto's, over HTTP."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="models")
    yield url, client
    client.close()
    server.stop()


def test_narrow_updates_go_through_a_bucket_that_only_the_server_has_keys_of(files, bucket):
    url, client = bucket

    def change(server, clients):
        server["server_configs"] |= {"num_global_epochs": 1}
        server["server_configs"]["comm_configs"] = {
            "s3_configs": {
                "enable_s3": True,
                "s3_bucket": "models",
                "s3_creds_file": str(keys),
                "s3_endpoint_url": url,
            }
        }
        server["client_configs"]["comm_configs"] = {
            "compressor_configs": {
                "enable_compression": True,
                "lossy_compressor": "bf16",
                "lossless_compressor": "zstd",
            }
        }

    keys = files().joinpath("keys.csv")
    keys.write_text("us-east-1,key,secret\n")
    folder = files(change)
    done = fl_run(folder)
    assert done.returncode == 0, done.stderr
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    (line,) = [json.loads(text) for text in metrics.read_text().splitlines()]
    assert len(line["updates"]) == 2
    assert line["bytes_up"] < 0.6 * line["bytes_down"]
    assert client.list_objects_v2(Bucket="models")["KeyCount"] == 0
    assert "Uploads" not in client.list_multipart_uploads(Bucket="models")


@pytest.fixture
def hub(tmp_path):
    nginx.need()
    made = nginx.Hub(tmp_path / "hub")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_models_go_through_a_hub_that_only_the_server_can_sign_for(files, hub):
    configs = hub.configs.model_dump()

    def change(server, clients):
        server["server_configs"] |= {
            "num_global_epochs": 1,
            "comm_configs": {"hub_configs": configs},
        }

    folder = files(change)
    done = fl_run(folder)
    assert done.returncode == 0, done.stderr
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    (line,) = [json.loads(text) for text in metrics.read_text().splitlines()]
    assert len(line["updates"]) == 2
    assert hub.left() == []


def test_models_too_large_for_a_task_go_through_a_folder(files, tmp_path):
    def change(server, clients):
        server["client_configs"]["model_configs"]["model_kwargs"]["width"] = 320
        server["client_configs"]["train_configs"] |= {
            "mode": "step",
            "num_local_steps": 1,
            "do_validation": False,
        }
        server["server_configs"] |= {"num_global_epochs": 1, "server_validation": False}
        way = {
            "enable_proxystore": True,
            "connector_type": "FileConnector",
            "connector_configs": {"store_dir": str(tmp_path / "models")},
        }
        for configs in (server["server_configs"], *clients["clients"]):
            configs["comm_configs"] = {"proxystore_configs": way}

    done = fl_run(files(change))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model.safetensors").stat().st_size > LIMIT_BYTES
    assert list((tmp_path / "models").iterdir()) == []


BAD_LOADERS = """
import os
import signal

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def stopped():
    raise KeyboardInterrupt("no data today")
"""


def test_a_site_that_kills_its_worker_takes_no_other_sites_task_with_it(files, tmp_path):
    def change(server, clients):
        server["server_configs"] |= {
            "num_clients": 4,
            "min_clients": 2,
            "num_global_epochs": 1,
        }
        clients["clients"] += [
            {
                "endpoint_id": "local",
                "client_id": name,
                "data_configs": {"dataset_path": "bad.py", "dataset_name": name},
            }
            for name in ("killed", "stopped")
        ]

    code = shutil.copytree(EXAMPLES / "digits", tmp_path / "code" / "digits").parent
    (code / "bad.py").write_text(BAD_LOADERS)
    done = fl_run(files(change), code)
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    assert [len(json.loads(line)["updates"]) for line in metrics.read_text().splitlines()] == [2]
    assert "killed is lost (the local process failed: one was killed" in done.stdout
    assert "stopped is lost (the local process failed (KeyboardInterrupt: no data" in done.stdout
    assert "site-0 is lost" not in done.stdout and "site-1 is lost" not in done.stdout


STOPPED_TWICE = """
import os, signal, sys
from pathlib import Path
from fl.run import _interruptible
with _interruptible(lambda: None, Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_stopped_at_once_a_run_gives_the_cursor_back_and_names_a_command_that_can_be_typed(
    tmp_path,
):
    """The table is on standard output, wherever errors go."""
    ours, theirs = pty.openpty()
    folder = tmp_path / "my runs"
    command = [sys.executable, "-c", STOPPED_TWICE, folder]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert done.returncode == INTERRUPTED
    assert os.read(ours, 100) == b"\x1b[?25h"
    os.close(ours)
    told = done.stderr.splitlines()[-1].removeprefix("to go on with it: ")
    assert shlex.split(told) == ["fl-run", "--resume", str(folder)]
