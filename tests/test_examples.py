"""Every example learns, at a size that tests can afford: three sites here, fewer rounds."""

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fl import run
from fl.config import Files
from tests.in_process import InProcess

EXAMPLES = Path(__file__).parents[1] / "examples"
SITES = 3


def write(folder: Path, example: str, rounds: int, **kwargs: object) -> Files:
    """What playbooks/federation.yml writes of an experiment, for sites in this process."""
    server = yaml.safe_load((EXAMPLES / example / "experiment.yml").read_text())
    data = server.pop("data_configs")
    held_out = server["server_configs"]["data_configs"]
    held_out["dataset_kwargs"] = held_out.get("dataset_kwargs", {}) | kwargs
    server["server_configs"] |= {
        "num_clients": SITES,
        "num_global_epochs": rounds,
        "logging_output_dirname": str(folder / "runs"),
    }

    def client(index: int) -> dict[str, object]:
        own = data.get("dataset_kwargs", {}) | kwargs | {"num_clients": SITES, "client_id": index}
        return {
            "endpoint_id": "local",
            "client_id": f"site-{index}",
            "data_configs": data | {"dataset_kwargs": own},
        }

    (folder / "server.yaml").write_text(yaml.safe_dump(server))
    clients = [client(index) for index in range(SITES)]
    (folder / "clients.yaml").write_text(yaml.safe_dump({"clients": clients}))
    return Files(folder / "server.yaml", folder / "clients.yaml")


@pytest.mark.parametrize(
    ("example", "rounds", "kwargs", "accuracy"),
    [
        ("digits", 4, {}, 0.8),
        ("breast_cancer", 8, {}, 0.9),
        ("text", 3, {"share": 0.15}, 0.22),  # the space alone, the most frequent: 0.19
    ],
)
def test_an_example_learns(tmp_path, monkeypatch, example, rounds, kwargs, accuracy):
    monkeypatch.setenv("FL_SITE_CODE", str(EXAMPLES))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    outcome = run.run(write(tmp_path, example, rounds, **kwargs), Console(quiet=True))
    assert outcome.accuracy > accuracy
