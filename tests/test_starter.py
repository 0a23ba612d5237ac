"""`fl init`: what it writes runs at once, reads a person's own data, and goes over nothing."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fl import run
from fl.cli import main, run_main
from fl.client import site_code
from fl.starter import FORMATS
from tests.in_process import InProcess

TOP = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder to work in, and settings that no run of another test left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    return tmp_path


def init(*arguments):
    return CliRunner().invoke(main, ["init", *arguments])


def trained(*arguments):
    """The accuracy that fl-run says, over sites in this process."""
    done = CliRunner().invoke(run_main, list(arguments))
    assert done.exit_code == 0, done.stderr
    return float(done.stdout.split("test accuracy:")[1])


def test_data_of_ones_own_a_file_for_each_site(here):
    done = init("mine", "--model", "mlp")
    assert done.exit_code == 0, done.stderr
    assert "fl-run mine" in done.stdout
    numbers = np.random.default_rng(0)
    files = [here / f"{name}.csv" for name in ("a", "b", "test")]
    for file in files:
        columns = numbers.normal(size=(200, 3))
        table = np.column_stack([columns, columns.argmax(axis=1)])
        np.savetxt(file, table, delimiter=",", header="x,y,z,class")
    loaders = ["clients.site-a", "clients.site-b", "server_configs"]
    own = [
        f"--set={loader}.data_configs.dataset_kwargs.file={file}"
        for loader, file in zip(loaders, files, strict=True)
    ]
    shape = "--set=client_configs.model_configs.model_kwargs={inputs: 3, classes: 3}"
    assert trained("mine", shape, *own, "--set=server_configs.num_global_epochs=8") > 0.6


@pytest.mark.parametrize(
    ("model", "write"),
    [
        ("cnn", lambda file: np.savez(file, images=np.zeros((9, 3, 12, 10)), labels=[0, 1, 2] * 3)),
        ("text", lambda file: file.write_text("to be or not to be\n" * 99)),
    ],
)
def test_the_other_formats_are_read(here, model, write):
    init("mine", "--model", model)
    file = here / f"own.{FORMATS[model]}"
    write(file)
    train, test = site_code.load("mine/data.py", "load")(file=str(file), held_out=0.4)
    assert len(train) > 0
    assert len(test) > 0


def test_a_folder_with_anything_in_it_is_left_alone(here):
    (here / "mine").mkdir()
    (here / "mine" / "model.py").write_text("precious")
    done = init("mine", "--model", "cnn")
    assert done.exit_code == 1
    assert "mine has something in it" in done.stderr
    assert [file.name for file in (here / "mine").iterdir()] == ["model.py"]
    assert (here / "mine" / "model.py").read_text() == "precious"


def test_where_it_cannot_write_is_named(here):
    (here / "file").touch()
    done = init("file/mine", "--model", "cnn")
    assert done.exit_code == 1
    assert (
        done.stderr
        == "error: file/mine: cannot be written (Not a directory); take another folder\n"
    )


def test_no_name_is_taken_for_a_place_in_the_files(here):
    assert init("--model", "mlp", "FORMATS-EXPERIMENT").exit_code == 0
    assert "npzS" not in (here / "FORMATS-EXPERIMENT/experiment.yml").read_text()
    assert "csvS" not in (here / "FORMATS-EXPERIMENT/experiment.yml").read_text()
    assert "FORMATS-EXPERIMENT/" in (here / "FORMATS-EXPERIMENT/experiment.yml").read_text()


@pytest.mark.parametrize("name", ["my experiment", "-mine", "a'b"])
def test_a_name_that_cannot_stand_in_the_files_is_refused(here, name):
    done = init("--model", "cnn", "--", name)
    assert done.exit_code == 1
    assert "letters, digits" in done.stderr
    assert list(here.iterdir()) == []


def test_an_unknown_kind_of_model_names_those_that_are_known():
    done = init("mine", "--model", "resnet")
    assert done.exit_code == 2
    assert "'cnn', 'mlp', 'text'" in done.stderr


def test_a_fault_in_experiment_yml_is_named_there(here):
    init("mine", "--model", "cnn")
    file = here / "mine" / "experiment.yml"
    file.write_text(file.read_text().replace("dataset_name: load\n  dataset_kwargs: {}\n", ""))
    done = CliRunner().invoke(run_main, ["mine"])
    assert done.exit_code == 2
    assert "mine/experiment.yml: data_configs.dataset_name: missing" in done.stderr


def test_an_installed_wheel_has_the_files(here):
    shutil.copytree(TOP / "fl", here / "checkout" / "fl")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / file, here / "checkout")
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", here]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *offline, here / "checkout"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = here.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {f"fl/starters/{model}/{file}.py" for model in FORMATS for file in ("model", "data")}
    assert code | {"fl/starters/experiment.yml"} < names


def test_a_site_whose_last_minibatch_is_one_row_trains():
    """Of seven sites each has 65 rows, two minibatches and one row."""
    init("mine", "--model", "mlp")
    settings = ["num_clients=7", "num_global_epochs=1"]
    assert trained("mine", *(f"--set=server_configs.{setting}" for setting in settings)) > 0.3
