"""APPFL's files as they are: every key is honoured, or refused with what to write instead."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fl import run as runs
from fl.appfl import AGGREGATOR, CLIENT, COMM, LOGGING, SCHEDULER, SERVER, TRAIN
from fl.cli import main, run_main
from fl.config import ConfigError
from fl.config_files import load_federation
from tests.appfl_files import CLIENT_YAML, FIRST, SECOND, SERVER_YAML, write_code, write_files
from tests.in_process import InProcess

DOCS = Path(__file__).parents[1] / "docs" / "appfl.md"
FUNCTION = f"server_configs.comm_configs.globus_compute_configs.function_id={FIRST}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """APPFL's `examples` folder: the files, the code that they name, and here is where it is."""
    write_files(tmp_path)
    write_code(tmp_path)
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder, server="server_fedavg.yaml", clients="clients.yaml", sets=()):
    return load_federation(folder / server, folder / clients, [FUNCTION, *sets])


@pytest.mark.parametrize("kind", ["", "_proxystore"])
def test_the_tutorials_files_are_read_as_they_are(folder, kind):
    federation = load(folder, f"server_fedavg{kind}.yaml", f"clients{kind}.yaml")
    configs = federation.train_configs(federation.clients[0])
    assert (configs.mode, configs.num_local_steps, configs.optim) == ("step", 100, "Adam")
    assert (configs.loss_fn_path, configs.metric_name) == ("./resources/loss/celoss.py", "accuracy")
    assert federation.server_configs.aggregator_kwargs == {"client_weights_mode": "equal"}
    assert [str(client.endpoint_id) for client in federation.clients] == [FIRST, SECOND]
    ways = [
        federation.server_configs.comm_configs.proxystore_configs,
        *(client.comm_configs.proxystore_configs for client in federation.clients),
    ]
    assert {way.enable_proxystore for way in ways} == {bool(kind)}
    assert len(federation.notes) == 4
    assert all("clients.yaml" in n or "clients_proxystore.yaml" in n for n in federation.notes)
    assert all("logging_output_" in note for note in federation.notes)


def test_without_the_functions_id_they_are_told_what_is_missing(folder):
    with pytest.raises(ConfigError, match="globus_compute_configs is missing"):
        load_federation(folder / "server_fedavg.yaml", folder / "clients.yaml")


def test_the_tutorials_experiment_runs(folder, monkeypatch):
    """The tutorial's fedavg files, its sites in this process."""
    monkeypatch.setattr(runs, "open_endpoints", lambda _federation: InProcess())
    few = ["--set", "client_configs.train_configs.num_local_steps=20"]
    files = ["--server", "server_fedavg.yaml", "--clients", "clients.yaml", "--set", FUNCTION]
    done = CliRunner().invoke(run_main, [*files, *few])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("note: clients.yaml") == 4
    (run,) = (folder / "output").iterdir()
    assert run.name.startswith("result-")
    first, last = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    before, after = (line["updates"][0]["metrics"] for line in (first, last))
    assert after["train_loss"] < before["train_loss"]
    for kind in ("val", "pre_val"):
        assert after[f"{kind}_metric"] == pytest.approx(100 * after[f"{kind}_accuracy"], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("client_configs.train_configs.use_dp=true", "use_dp: false"),
        ("clients.0.train_configs.use_dp=true", "use_dp: false"),
        ("client_configs.train_configs.val_data_shuffle=true", "leave it out"),
        ("client_configs.train_configs.optimize_memory=false", "leave it out"),
        ("client_configs.train_configs.send_gradient=often", "leave it out"),
        ("client_configs.train_configs.trainer_path=./trainer.py", "set trainer"),
        (
            "client_configs.comm_configs.compressor_configs.enable_compression=true",
            "lossy_compressor: bf16, fp16 or int8",
        ),
        (
            (
                "client_configs.comm_configs.compressor_configs="
                "{enable_compression: true, lossy_compressor: [bf16]}"
            ),
            "lossy_compressor: bf16, fp16 or int8",
        ),
        (
            "clients.0.comm_configs.compressor_configs.enable_compression=true",
            "client_configs.comm_configs.compressor_configs of the server's file",
        ),
        (
            "client_configs.comm_configs.s3_configs.enable_s3=true",
            "server_configs.comm_configs.s3_configs",
        ),
        ("client_configs.comm_configs.grpc_configs={port: 1}", "unknown key"),
        ("server_configs.scheduler_kwargs.same_init_model=false", "every client starts from"),
        ("server_configs.aggregator_kwargs.gradient_based=2", "leave it out"),
        ("server_configs.val_data_configs.batch_size=64", "server_validation: true"),
        ("server_configs.logging_output_filename=a/b", "logging_output_filename"),
        ("clients.0.wandb_configs={enable_wandb: true, entity: me}", "enable_wandb: false"),
        ("clients.0.mlflow_configs={enable_mlflow: true}", "leave it out"),
        (
            "clients.0.comm_configs.proxystore_configs={connector_type: GlobusConnector}",
            "connector_type: EndpointConnector",
        ),
        ("client_configs.train_configs.metric_path=null", "metric_path and metric_name"),
        ("client_configs.train_configs.loss_fn_name=null", "loss_fn_path and loss_fn_name"),
    ],
)
def test_what_is_not_done_here_is_refused_with_what_to_write(folder, text, instead):
    with pytest.raises(ConfigError) as caught:
        load(folder, sets=[text])
    message = str(caught.value)
    assert instead in message
    assert text.partition("=")[0].split(".")[-1].split("_")[0] in message


@pytest.mark.parametrize(
    "text",
    [
        "client_configs.train_configs.send_gradient=true",
        "client_configs.train_configs.optimize_memory=true",
        "client_configs.train_configs.dp_config={noise_multiplier: 1, max_grad_norm: 1}",
        "client_configs.train_configs.dp_mechanism=laplace",
        "client_configs.train_configs.num_workers=0",
        "client_configs.train_configs.train_drop_last=false",
        "client_configs.comm_configs.s3_configs=null",
        "clients.0.wandb_configs={enable_wandb: false, project: p}",
        "clients.0.mlflow_configs={enable_mlflow: false}",
    ],
)
def test_what_is_done_here_in_any_case_is_taken(folder, text):
    assert load(folder, sets=[text]).notes == load(folder).notes


def test_a_client_without_a_name_has_its_endpoints(folder):
    text = (folder / "clients.yaml").read_text().replace('    client_id: "Client1"\n', "")
    (folder / "clients.yaml").write_text(text)
    assert load(folder).clients[0].client_id == FIRST


def test_numbers_are_read_as_people_write_them(folder):
    """YAML 1.1 takes 1e-3 for a text; APPFL does not."""
    assert yaml.safe_load("1e-3") == "1e-3"
    federation = load(folder, sets=["client_configs.train_configs.optim_args.lr=1e-3"])
    assert federation.client_configs.train_configs.optim_args["lr"] == 0.001


def test_the_check_says_what_has_no_effect(folder):
    local = [f"--set=clients.{number}.endpoint_id=local" for number in (0, 1)]
    files = ["--server=server_fedavg.yaml", "--clients=clients.yaml"]
    done = CliRunner().invoke(main, ["check", "--quick", "--json", *files, *local])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)[0]
    assert (row["check"], row["ok"]) == ("files", True)
    assert "clients.1.train_configs.logging_output_filename has no effect" in row["message"]
    assert "docs/appfl.md" in row["remedy"]


def test_the_docs_have_every_key():
    text = DOCS.read_text()
    ours = (*yaml.safe_load(SERVER_YAML).values(), yaml.safe_load("a:" + CLIENT_YAML)["a"][0])
    names = {*TRAIN, *LOGGING, *COMM, *SERVER, *CLIENT, *SCHEDULER, *AGGREGATOR}
    names |= {key for section in ours for key in _keys(section)}
    missing = sorted(name for name in names if not re.search(rf"[`.]{name}[`:]", text))
    assert missing == []


def _keys(section):
    for key, value in section.items():
        yield key
        if isinstance(value, dict) and not key.endswith(("_kwargs", "_args")):
            yield from _keys(value)
