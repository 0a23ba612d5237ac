"""A small experiment of two sites in processes of this machine, for tests to run or to break."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CODE = """
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset

def Net(inputs=4, classes=2, width=8):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))

def load(samples=32, inputs=4, classes=2, validation=True):
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(samples, inputs, generator=numbers)
    data = TensorDataset(x, torch.arange(samples) % classes)
    return data, data if validation else None

def load_badly():
    raise OSError("disk gone")

def load_one_set():
    return load()[0]

def load_numbers():
    return TensorDataset(torch.rand(8, 4), torch.rand(8)), None

def load_pairs():
    return [((torch.rand(4), torch.rand(4)), 0)] * 8, None

class Lazy:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        raise FileNotFoundError(f"{index}.png")

def load_lazily():
    return Lazy(), None

def load_inputs():
    return TensorDataset(torch.rand(8, 4)), None

def load_nan():
    return TensorDataset(torch.full((8, 4), torch.nan), torch.zeros(8).long()), None

def load_batches():
    return torch.utils.data.DataLoader(load()[0], batch_size=4), None

def load_paths():
    return Path("train"), Path("test")

def load_by_arguments():
    raise SystemExit(2)

def loss(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels)

net = Net()

"""


def server_file(folder: Path) -> dict[str, Any]:
    return {
        "client_configs": {
            "train_configs": {"optim_args": {"lr": 0.1}, "do_validation": True},
            "model_configs": {"model_path": "code.py", "model_name": "Net"},
        },
        "server_configs": {
            "num_clients": 2,
            "num_global_epochs": 2,
            "round_deadline": 60,
            "server_validation": True,
            "data_configs": {"dataset_path": "code.py", "dataset_name": "load"},
            "logging_output_dirname": str(folder / "runs"),
        },
    }


def clients_file() -> dict[str, Any]:
    def client(name: str) -> dict[str, Any]:
        data = {"dataset_path": "code.py", "dataset_name": "load", "dataset_kwargs": {}}
        return {"endpoint_id": "local", "client_id": name, "data_configs": data}

    return {"clients": [client("site-a"), client("site-b")]}


def write(
    folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda *_: None
) -> Path:
    """Write server.yaml and clients.yaml, changed by a function, and the code that they name."""
    server, clients = server_file(folder), clients_file()
    change(server, clients)
    (folder / "server.yaml").write_text(yaml.safe_dump(server))
    (folder / "clients.yaml").write_text(yaml.safe_dump(clients))
    (folder / "code.py").write_text(CODE)
    return folder
