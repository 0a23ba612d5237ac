"""APPFL's files as they are: every key is honoured, or refused with what to write instead.

The four files are those of its Globus Compute tutorial, with other ids: server_fedavg.yaml and
clients.yaml, and both with ProxyStore.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fl import run as runs
from fl.appfl import AGGREGATOR, CLIENT, COMM, LOGGING, SCHEDULER, SERVER, TRAIN
from fl.cli import main, run_main
from fl.config import ConfigError, load_federation
from tests.in_process import InProcess

DOCS = Path(__file__).parents[1] / "docs" / "appfl.md"
FIRST = "0b9f4c3e-98a1-4a58-9f6d-1c6f0b7a2d11"
SECOND = "5d0e7c52-3c1b-4b0e-8a57-6f5c4f1e9a22"
PROXYSTORE = f"""
    proxystore_configs:
      enable_proxystore: True
      connector_type: "EndpointConnector"
      connector_configs:
        endpoints: ["{FIRST}", "{SECOND}"]
"""
SERVER_YAML = """
client_configs:
  train_configs:
    trainer: "VanillaTrainer"
    mode: "step"
    num_local_steps: 100
    optim: "Adam"
    optim_args:
      lr: 0.001
    loss_fn_path: "./resources/loss/celoss.py"
    loss_fn_name: "CELoss"
    do_validation: True
    do_pre_validation: True
    metric_path: "./resources/metric/acc.py"
    metric_name: "accuracy"
    use_dp: False
    epsilon: 1
    clip_grad: False
    clip_value: 1
    clip_norm: 1
    train_batch_size: 64
    val_batch_size: 64
    train_data_shuffle: True
    val_data_shuffle: False
  model_configs:
    model_path: "./resources/model/cnn.py"
    model_name: "CNN"
    model_kwargs:
      num_channel: 1
      num_classes: 10
      num_pixel: 28
  comm_configs:
    compressor_configs:
      enable_compression: False
      lossy_compressor: "SZ2Compressor"
      lossless_compressor: "blosc"
      error_bounding_mode: "REL"
      error_bound: 1e-3
      param_cutoff: 1024
    s3_configs:
      enable_s3: False
      s3_bucket: "models"
      s3_creds_file: "./resources/creds/credential.csv"
server_configs:
  num_clients: 2
  scheduler: "SyncScheduler"
  scheduler_kwargs:
    same_init_model: True
  aggregator: "FedAvgAggregator"
  aggregator_kwargs:
    client_weights_mode: "equal"
  device: "cpu"
  num_global_epochs: 2
  server_validation: False
  logging_output_dirname: "./output"
  logging_output_filename: "result"
"""
CLIENT_YAML = """
  - endpoint_id: "{endpoint}"
    client_id: "{name}"
    train_configs:
      device: "cpu"
      logging_output_dirname: "./output"
      logging_output_filename: "result"
    data_configs:
      dataset_path: "./resources/dataset/mnist_dataset.py"
      dataset_name: "get_mnist"
      dataset_kwargs:
        num_clients: 2
        client_id: {number}
        partition_strategy: "class_noniid"
        visualization: False
"""
FUNCTION = f"server_configs.comm_configs.globus_compute_configs.function_id={FIRST}"

CODE = {
    "loss/celoss.py": """
from torch import nn
class CELoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()
    def forward(self, prediction, target):
        return self.criterion(prediction, target)
""",
    "metric/acc.py": """
def accuracy(y_true, y_pred):
    return 100 * (y_pred.argmax(axis=1) == y_true).sum() / y_pred.shape[0]
""",
    "model/cnn.py": """
from torch import nn
class CNN(nn.Module):
    def __init__(self, num_channel, num_classes, num_pixel):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_channel, 4, 4, stride=4), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * (num_pixel // 4) ** 2, num_classes),
        )
    def forward(self, x):
        return self.layers(x)
""",
    "dataset/mnist_dataset.py": """
import torch
from torch.utils.data import TensorDataset
def get_mnist(num_clients, client_id, partition_strategy="iid", visualization=False):
    numbers = torch.Generator().manual_seed(client_id)
    def images(count):
        labels = torch.arange(count) % 10
        noise = torch.rand(count, 1, 28, 28, generator=numbers)
        return TensorDataset(noise + labels.view(-1, 1, 1, 1), labels)
    return images(128), images(40)
""",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """APPFL's `examples` folder: the files, the code that they name, and here is where it is."""
    clients = [
        CLIENT_YAML.format(endpoint=endpoint, name=f"Client{number + 1}", number=number)
        for number, endpoint in enumerate((FIRST, SECOND))
    ]
    ways = "    comm_configs:" + PROXYSTORE.replace("\n", "\n  ").rstrip() + "\n"
    files = {
        "server_fedavg.yaml": SERVER_YAML,
        "clients.yaml": "clients:" + "".join(clients),
        "server_fedavg_proxystore.yaml": SERVER_YAML + "  comm_configs:" + PROXYSTORE,
        "clients_proxystore.yaml": "clients:" + "".join(client + ways for client in clients),
    }
    for name, text in {
        **files,
        **{f"resources/{name}": text for name, text in CODE.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
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
            "enable_compression: false",
        ),
        (
            "client_configs.comm_configs.compressor_configs.enable_compresion=true",
            "enable_compression: false",
        ),
        (
            "client_configs.comm_configs.s3_configs.enable_s3=true",
            "comm_configs.proxystore_configs in both files",
        ),
        ("client_configs.comm_configs.grpc_configs={port: 1}", "unknown key"),
        ("server_configs.scheduler_kwargs.same_init_model=false", "every client starts from"),
        ("server_configs.aggregator_kwargs.gradient_based=2", "leave it out"),
        ("server_configs.val_data_configs.batch_size=64", "server_validation: true"),
        ("server_configs.logging_output_filename=a/b", "logging_output_filename"),
        ("clients.0.wandb_configs={enable_wandb: true, entity: me}", "enable_wandb: false"),
        ("clients.0.mlflow_configs={enable_mlflow: true}", "leave it out"),
        (
            "server_configs.comm_configs.proxystore_configs={connector_type: RedisConnector}",
            "connector_type: EndpointConnector",
        ),
        (
            "clients.0.comm_configs.proxystore_configs={connector_type: FileConnector}",
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
