"""fl-run killed and resumed, with clients in processes on this machine."""

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from click.testing import CliRunner

from fl.cli import run_main
from fl.errors import INTERRUPTED
from fl.tensors import digest
from tests import experiment
from tests.test_run import FL_RUN

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
KILLS = 10


STARTED = []


@pytest.fixture(autouse=True)
def none_goes_on():
    """A run has a session of its own, so nothing else ends one that a failed test leaves."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(*arguments):
    process = subprocess.Popen(
        [FL_RUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def begin(folder):
    return start("--server", folder / "server.yaml", "--clients", folder / "clients.yaml")


def finish(process, code=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def model(folder):
    (run,) = (folder / "runs").iterdir()
    return digest((run / "model.safetensors").read_bytes())


def lines(folder, name):
    """Of a file of its run."""
    text = "".join(file.read_text() for file in folder.glob(f"runs/*/{name}"))
    return text.splitlines()


def rounds(folder):
    return [json.loads(line)["round"] for line in lines(folder, "metrics.jsonl")]


def wait_for_another(name, folder, process):
    """Line of a file of its run."""
    before = lines(folder, name)
    wait_for(lambda: process.poll() is not None or len(lines(folder, name)) > len(before))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def long(tmp_path):
    """A run of many short rounds whose sums are in one order."""

    def _long(number):
        def change(server, clients):
            server["server_configs"] |= {
                "num_global_epochs": number,
                "aggregator": "FedAvgMAggregator",
                "scheduler_kwargs": {"deterministic": True},
            }
            server["client_configs"]["train_configs"] |= {
                "mode": "step",
                "num_local_steps": 3,
                "optim_args": {"lr": 0.01},
                "train_batch_size": 8,
            }
            clients["clients"][1]["data_configs"]["dataset_kwargs"] = {"samples": 48}

        return experiment.write(tmp_path, change)

    return _long


@pytest.mark.timeout(600)
def test_killed_at_ten_drawn_moments_it_ends_with_the_bytes_of_a_run_that_was_not(long):
    folder = long(100)
    finish(begin(folder))
    expected = model(folder)
    (folder / "runs").rename(folder / "whole")

    draw = random.Random(20261124)  # noqa: S311  (moments, no secrets)
    process, survived = begin(folder), 0
    wait_for(lambda: list((folder / "runs").glob("*/checkpoint.safetensors")))
    (run,) = (folder / "runs").iterdir()
    for _ in range(KILLS):
        # Moments of a round, of tasks that are sent again, and of the start before.
        match draw.choices(["metrics.jsonl", "tasks.jsonl", None], [5, 3, 2]):
            case [None]:
                time.sleep(draw.uniform(0.0, 1.0))
            case [name]:
                wait_for_another(name, folder, process)
                time.sleep(draw.uniform(0.0, 0.2))
        survived += process.poll() is None
        process.kill()
        process.communicate()
        process = start("--resume", run)
    finish(process)
    assert survived >= 5, "the run was over too soon to be killed"
    assert model(folder) == expected
    assert rounds(folder) == list(range(1, 101))


def test_a_run_that_goes_on_is_not_resumed_beside_itself_and_leaves_no_worker_when_killed(long):
    folder = long(100_000)
    process = begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/metrics.jsonl")))
    (run,) = (folder / "runs").iterdir()
    beside = CliRunner().invoke(run_main, ["--resume", str(run)])
    assert (beside.exit_code, process.poll()) == (1, None)
    assert "this run is still going on" in beside.stderr
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_ctrl_c_once_ends_the_round_and_keeps_it(long):
    folder = long(100_000)
    process = begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output = finish(process, code=INTERRUPTED)
    (run,) = (folder / "runs").iterdir()
    assert "stopping after this round" in output
    assert f"stopped: {run}" in output
    assert not (run / "model.safetensors").exists()


def test_ctrl_c_twice_stops_now_and_says_how_to_go_on(tmp_path):
    def endless(server, clients):
        server["client_configs"]["train_configs"]["num_local_epochs"] = 100_000_000

    folder = experiment.write(tmp_path, endless)
    process = begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/tasks.jsonl")))
    os.killpg(process.pid, signal.SIGINT)
    heard = next(line for line in process.stdout if "stopping after this round" in line)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    (run,) = (folder / "runs").iterdir()
    assert process.returncode == INTERRUPTED
    assert f"to go on with it: fl-run --resume {run}" in output
    assert "Traceback" not in heard + output


def test_a_killed_local_worker_is_replaced_and_its_task_sent_again(tmp_path):
    def change(server, clients):
        server["client_configs"]["train_configs"] |= {"mode": "step", "num_local_steps": 5000}

    folder = experiment.write(tmp_path, change)
    process = begin(folder)
    # One that is between two tasks would be replaced unnoticed: what is killed is at work.
    wait_for(lambda: list(folder.glob("runs/*/state/jobs/*.json")))
    record = next(folder.glob("runs/*/state/jobs/*.json"))
    psutil.Process(json.loads(record.read_text())["pid"]).kill()
    output = finish(process)
    assert "is lost (the local process failed" in output
    assert rounds(folder) == [1, 2]


def test_neither_files_nor_a_run():
    done = CliRunner().invoke(run_main, [])
    assert done.exit_code == 2
    assert "or --server and --clients, or --resume" in done.stderr
    assert "give a federation's or an experiment's folder" in done.stderr


def test_a_folder_that_is_no_run(tmp_path):
    done = CliRunner().invoke(run_main, ["--resume", str(tmp_path)])
    assert done.exit_code == 1
    assert "is no run's folder" in done.stderr
