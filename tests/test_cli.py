"""What a person types: a folder or two files, `--set`, `--dry-run`, completion."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fl import run
from fl.cli import main, run_main
from fl.config_files import Files
from fl.plan import plan
from tests import experiment
from tests.in_process import InProcess


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    return experiment.write(tmp_path)


def fl_run(*arguments):
    return CliRunner().invoke(run_main, [str(argument) for argument in arguments])


def test_an_experiment_is_a_folder_and_set_is_recorded(folder):
    done = fl_run(
        folder,
        "--set=server_configs.num_global_epochs=1",
        "--set=clients.site-b.train_configs={num_local_epochs: 3}",
    )
    assert done.exit_code == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["server_configs"]["num_global_epochs"] == 1
    assert recorded["clients"][1]["train_configs"] == {"num_local_epochs": 3}
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_command_that_starts_loads_no_servers_and_no_sdk():
    """Those of the sandbox alone took 20 MB of every run, and most of a second."""
    heavy = ("quart", "hypercorn", "globus_sdk", "torch")
    program = f"import sys, fl.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server_configs.num_globl_epochs=1", "unknown key; did you mean num_global_epochs?"),
        ("server_config.num_global_epochs=1", "unknown key; did you mean server_configs?"),
        ("server_configs.num_global_epochs=many", "should be a valid integer"),
        ("server_configs.num_clients.few=2", "num_clients holds 2, which has no keys"),
        ("server_configs.device=[1", "the value is not YAML"),
        ("server_configs.device", "should be KEY=VALUE, such as"),
        ("clients.site-c.client_id=x", "site-c is none of the 2 that are listed (site-a, site-b)"),
        ("clients.0.train_configs.devise=cpu", "unknown key; did you mean device?"),
    ],
)
def test_what_set_cannot_mean_is_explained(folder, text, expected):
    done = fl_run(folder, "--set", text)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert text in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (7, "7 is none of the 2 that are listed (site-b)"),
        (1, "clients.0.client_id: should be a valid string, not 1"),
    ],
)
def test_a_number_is_no_sites_name(folder, number, expected):
    sets = (f"clients.0.client_id={number}", f"clients.{number}.train_configs.device=cpu")
    done = fl_run(folder, *(f"--set={text}" for text in sets))
    assert done.exit_code == 2
    assert expected in done.stderr


NEEDED = "give a federation's or an experiment's folder, or --server and --clients"
RESUMED = "--resume goes on with the files that its run began with"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], f"{NEEDED}, or --resume"),
        (["--server", "server.yaml"], NEEDED),
        (["--set", "a=b"], NEEDED),
        (
            [".", "--server", "server.yaml"],
            "give an experiment's folder, or --server and --clients",
        ),
        ([".", "--resume", "."], RESUMED),
        (["--dry-run", "--resume", "."], RESUMED),
        (["--set", "a=b", "--resume", "."], RESUMED),
        (["--server", "server.yaml", "--resume", "."], RESUMED),
    ],
)
def test_a_command_that_cannot_be_meant_ends_with_2(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    done = fl_run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.endswith(f"Error: {said}\n")


def test_a_site_whose_name_has_dots_is_set_by_its_name(folder):
    clients = yaml.safe_load((folder / "clients.yaml").read_text())
    for client, name in zip(clients["clients"], ["node1", "node1.hpc.edu"], strict=True):
        client["client_id"] = name
    (folder / "clients.yaml").write_text(yaml.safe_dump(clients))
    overrides = (
        "clients.node1.hpc.edu.train_configs.device=cuda:1",
        "clients.node1.train_configs.device=cuda:2",
    )
    federation = Files.of_folder(folder, overrides).load()
    devices = [federation.train_configs(client).device for client in federation.clients]
    assert devices == ["cuda:2", "cuda:1"]


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(folder):
    done = fl_run(folder, "--dry-run", "--set", "clients.1.train_configs={device: cuda}")
    assert done.exit_code == 0, done.stderr
    site_a, site_b = (line.split() for line in done.stdout.splitlines() if "site-" in line)
    assert site_a[:3] == ["site-a", "local", "cpu"]
    assert site_b[:3] == ["site-b", "local", "cuda"]
    assert "2 rounds of 2 sites, a model of 58 parameters: " in done.stdout
    assert "0.0 MB" not in done.stdout
    assert "nothing was sent" in done.stdout
    assert not (folder / "runs").exists()


def test_a_dry_run_names_the_source_that_would_travel(folder):
    done = fl_run(folder, "--dry-run", "--set", "server_configs.ship_source=true")
    assert done.exit_code == 0, done.stderr
    digest = hashlib.sha256((folder / "code.py").read_bytes()).hexdigest()
    assert f"ships code.py, sha256 {digest}\n" in done.stdout


def test_a_dry_run_finds_a_model_that_is_too_large_for_its_way(folder):
    wide = ["--set", "client_configs.model_configs.model_kwargs={width: 1000000}"]
    done = fl_run(folder, "--dry-run", *wide)
    assert done.exit_code == 1
    assert "enable_proxystore" in done.stderr
    endpoints = "connector_configs: {endpoints: [3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11]}"
    everywhere = [
        f"--set={who}.comm_configs.proxystore_configs={{enable_proxystore: true, {endpoints}}}"
        for who in ("server_configs", "clients.0", "clients.1")
    ]
    done = fl_run(folder, "--dry-run", *wide, *everywhere)
    assert done.exit_code == 0, done.stderr
    assert "by ProxyStore" in done.stdout
    assert "28.0 MB each way" in done.stdout
    hub = "{enable_hub: true, hub_url: 'https://h:8443', hub_secret_file: never-read}"
    done = fl_run(
        folder, "--dry-run", *wide, f"--set=server_configs.comm_configs.hub_configs={hub}"
    )
    assert done.exit_code == 0, done.stderr
    assert "through the hub" in done.stdout


@pytest.mark.parametrize(
    ("program", "command", "typed", "completed"),
    [("fl", main, "hea", "plain,health"), ("fl-run", run_main, "--dr", "plain,--dry-run")],
)
def test_shells_complete_commands_and_options(program, command, typed, completed):
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    shell = {variable: "bash_complete", "COMP_WORDS": f"{program} {typed}", "COMP_CWORD": "1"}
    done = CliRunner().invoke(command, [], prog_name=program, env=shell)
    assert done.stdout.split() == [completed]


def test_a_dry_run_counts_the_updates_that_a_step_is_made_of(folder):
    by_arrival = ["server_configs.scheduler=AsyncScheduler"]
    by_arrival += ["server_configs.aggregator=FedAsyncAggregator"]
    files = (folder / "server.yaml", folder / "clients.yaml")
    one, all_of_them = plan(Files(*files, by_arrival)), plan(Files(*files))
    assert one.total_bytes == 2 * (one.model_bytes + one.update_bytes)
    assert all_of_them.total_bytes == 2 * one.total_bytes
    done = fl_run(folder, "--dry-run", *(f"--set={setting}" for setting in by_arrival))
    assert "2 rounds of 1 updates of 2 sites" in done.stdout


def test_a_dry_run_says_what_it_does_not_know(folder):
    top_k = "{enable_compression: true, lossy_compressor: bf16}"
    key = "client_configs.comm_configs.compressor_configs"
    done = fl_run(folder, "--dry-run", f"--set={key}={top_k}")
    assert " back before compression, " in done.stdout


def test_what_the_locale_has_no_letters_for_ends_no_command(folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    where = "--set=server_configs.logging_output_dirname=läufe"
    command = [Path(sys.executable).with_name("fl-run"), folder, "--dry-run", where]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "would write to l?ufe/" in done.stdout
