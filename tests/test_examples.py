"""Examples and starters learn, at a size that tests can afford: few sites here, fewer rounds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fl import run
from fl.config_files import Files
from fl.starter import write_starter
from tests.in_process import InProcess

EXAMPLES = Path(__file__).parents[1] / "examples"
SITES = 3
LOADERS = ("data_configs", "server_configs.data_configs")


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train what a folder's experiment.yml says, at sites in this process."""
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FL_SITE_CODE", raising=False)
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())

    def _train(folder: Path, *overrides: str) -> run.Outcome:
        runs = f"server_configs.logging_output_dirname={tmp_path / 'runs'}"
        monkeypatch.delenv("FL_SITE_CODE", raising=False)
        return run.run(Files.of_folder(folder, (runs, *overrides)), Console(quiet=True))

    yield _train
    os.environ.pop("FL_SITE_CODE", None)  # a run's own, of this folder


@pytest.mark.parametrize(
    ("example", "rounds", "overrides", "accuracy"),
    [
        ("digits", 4, [], 0.8),
        ("breast_cancer", 8, [], 0.9),
        # the space alone, the most frequent: 0.19
        ("text", 3, [f"{data}.dataset_kwargs.share=0.15" for data in LOADERS], 0.22),
    ],
)
def test_an_example_learns(train, example, rounds, overrides, accuracy):
    sizes = [f"server_configs.num_clients={SITES}", f"server_configs.num_global_epochs={rounds}"]
    assert train(EXAMPLES / example, *sizes, *overrides).accuracy > accuracy


@pytest.mark.parametrize(
    ("model", "rounds", "accuracy"),
    [("cnn", 4, 0.8), ("mlp", 4, 0.85), ("text", 2, 0.22)],
)
def test_what_fl_init_writes_learns(train, tmp_path, model, rounds, accuracy):
    write_starter(tmp_path / "mine", model)
    rounds = f"server_configs.num_global_epochs={rounds}"
    assert train(tmp_path / "mine", rounds).accuracy > accuracy


def test_adapters_learn_what_the_base_has_not_read(train, tmp_path):
    shutil.copytree(EXAMPLES / "lora", tmp_path / "lora", ignore=lambda *_: ["base.safetensors"])
    subprocess.run([sys.executable, tmp_path / "lora" / "pretrain.py", "2", "0.1"], check=True)
    sizes = [f"server_configs.num_clients={SITES}", "server_configs.num_global_epochs=2"]
    shares = [f"{data}.dataset_kwargs.share=0.1" for data in LOADERS]
    outcome = train(tmp_path / "lora", *sizes, *shares)
    first, last = map(json.loads, (outcome.folder / "metrics.jsonl").open())
    whole = outcome.model.stat().st_size
    assert last["loss"] < first["loss"] < 3.5  # 4.6 is a guess
    assert last["bytes_up"] / SITES < 0.06 * whole
