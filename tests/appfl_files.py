"""The files of APPFL's Globus Compute tutorial, with other ids, and code of the kind they name.

server_fedavg.yaml and clients.yaml, and both with ProxyStore; the code is small, and ours.
"""

from pathlib import Path

FIRST = "0b9f4c3e-98a1-4a58-9f6d-1c6f0b7a2d11"
SECOND = "5d0e7c52-3c1b-4b0e-8a57-6f5c4f1e9a22"
PROXYSTORE = """
    proxystore_configs:
      enable_proxystore: True
      connector_type: "EndpointConnector"
      connector_configs:
        endpoints: [{stores}]
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


def write_code(folder: Path) -> None:
    """Write the code below a folder that the files' paths begin in."""
    for name, text in CODE.items():
        (folder / "resources" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "resources" / name).write_text(text)


def write_files(
    folder: Path, endpoints: tuple[str, ...] = (FIRST, SECOND), stores: tuple[str, ...] = (FIRST,)
) -> None:
    """Write the four files.

    Args:
        folder: Where to.
        endpoints: The two clients' Globus Compute endpoints.
        stores: The ProxyStore endpoints.
    """
    clients = [
        CLIENT_YAML.format(endpoint=endpoint, name=f"Client{number + 1}", number=number)
        for number, endpoint in enumerate(endpoints)
    ]
    way = PROXYSTORE.format(stores=", ".join(f'"{store}"' for store in stores))
    of_client = "    comm_configs:" + way.replace("\n", "\n  ").rstrip() + "\n"
    files = {
        "server_fedavg.yaml": SERVER_YAML,
        "clients.yaml": "clients:" + "".join(clients),
        "server_fedavg_proxystore.yaml": SERVER_YAML + "  comm_configs:" + way,
        "clients_proxystore.yaml": "clients:" + "".join(client + of_client for client in clients),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
