"""fl-run killed and resumed, with clients in processes on this machine."""

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from fl.errors import INTERRUPTED
from fl.tensors import digest
from tests.test_run import EXAMPLES, FL_RUN, files

__all__ = ["files"]  # a fixture

ENVIRONMENT = {"FL_SITE_CODE": str(EXAMPLES), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
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


def rounds(folder):
    text = "".join(file.read_text() for file in folder.glob("runs/*/metrics.jsonl"))
    return [json.loads(line)["round"] for line in text.splitlines()]


def wait_for_a_round(folder, process):
    before = rounds(folder)
    wait_for(lambda: process.poll() is not None or len(rounds(folder)) > len(before))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def long(files):
    """A run of many short rounds whose sums are in one order."""

    def _long(number=30):
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
            }

        return files(change)

    return _long


@pytest.mark.timeout(600)
def test_killed_at_ten_drawn_moments_it_ends_with_the_bytes_of_a_run_that_was_not(long, tmp_path):
    folder = long()
    finish(begin(folder))
    expected = model(folder)
    (folder / "runs").rename(folder / "whole")

    draw = random.Random(20261124)  # noqa: S311  (moments, no secrets)
    process, survived = begin(folder), 0
    wait_for(lambda: list((folder / "runs").glob("*/checkpoint.safetensors")))
    (run,) = (folder / "runs").iterdir()
    for _ in range(KILLS):
        # Moments of a round, and of the start: reading the checkpoint, sending tasks again.
        time.sleep(draw.uniform(0.0, 1.0))
        survived += process.poll() is None
        process.kill()
        process.communicate()
        process = start("--resume", run)
        if draw.random() < 0.7:
            wait_for_a_round(folder, process)
    finish(process)
    assert survived >= 5, "the run was over too soon to be killed"
    assert model(folder) == expected
    assert rounds(folder) == list(range(1, 31))


def test_a_killed_server_leaves_no_worker(long):
    folder = long(1000)
    process = begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/metrics.jsonl")))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_ctrl_c_once_ends_the_round_and_keeps_it(long):
    folder = long(1000)
    process = begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output = finish(process, code=INTERRUPTED)
    (run,) = (folder / "runs").iterdir()
    assert "stopping after this round" in output
    assert f"stopped: {run}" in output
    assert not (run / "model.safetensors").exists()


def test_ctrl_c_twice_stops_now_and_says_how_to_go_on(files):
    def endless(server, clients):
        server["client_configs"]["train_configs"]["num_local_epochs"] = 1_000_000

    folder = files(endless)
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


def test_a_run_that_goes_on_is_not_resumed_beside_itself(long):
    folder = long(1000)
    begin(folder)
    wait_for(lambda: list((folder / "runs").glob("*/metrics.jsonl")))
    (run,) = (folder / "runs").iterdir()
    assert "this run is still going on" in finish(start("--resume", run), code=1)


def test_a_killed_local_worker_is_replaced_and_its_task_sent_again(files):
    def change(server, clients):
        server["server_configs"]["num_global_epochs"] = 40
        server["client_configs"]["train_configs"] |= {"mode": "step", "num_local_steps": 100}

    folder = files(change)
    process = begin(folder)
    # One that is between two tasks would be replaced unnoticed: what is killed is at work.
    wait_for(lambda: list(folder.glob("runs/*/state/jobs/*.json")))
    record = next(folder.glob("runs/*/state/jobs/*.json"))
    psutil.Process(json.loads(record.read_text())["pid"]).kill()
    output = finish(process)
    assert "is lost (the local process failed" in output
    assert rounds(folder) == list(range(1, 41))


def test_neither_files_nor_a_run(tmp_path):
    done = subprocess.run([FL_RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "or --server and --clients, or --resume" in done.stderr
    assert "give a federation's or an experiment's folder" in done.stderr


def test_a_folder_that_is_no_run(tmp_path):
    done = subprocess.run(
        [FL_RUN, "--resume", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is no run's folder" in done.stderr
