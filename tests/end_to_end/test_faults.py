"""fl-run killed over two deployed sites; benchmarks/faults.py kills the other parts."""

import json
import time

import psutil
import pytest

from examples import leftovers
from tests.end_to_end.test_fl_run import FL_RUN, fl_run, wait_for

__all__ = ["fl_run"]  # a fixture

pytestmark = pytest.mark.daemons


def long_rounds(number):
    """Rounds that are long enough to be hit."""

    def change(server, clients):
        server["server_configs"] |= {"num_global_epochs": number, "round_deadline": 200}
        server["client_configs"]["train_configs"] |= {"mode": "seconds", "num_local_seconds": 6}

    return change


def jobs(federation, site, turn):
    """Records of a site's tasks of a turn."""
    return list((federation.dir / site / "state" / "jobs").glob(f"*.{site}.{turn}.*.json"))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_folder(tmp_path):
    return next((tmp_path / "runs").iterdir())


@pytest.fixture
def started(fl_run, federation, tmp_path):
    """Start fl-run; it is killed at the end if it still runs."""
    processes = []

    def _started(change, *arguments):
        process = psutil.Popen(
            [FL_RUN, *(arguments or fl_run.files(change))],
            env=federation.environment,
        )
        processes.append(process)
        return process

    yield _started
    for process in processes:
        if process.is_running():
            process.kill()
            process.wait()


def test_a_server_that_is_killed_picks_its_answers_up(started, federation, tmp_path):
    """Both sites finish their tasks while no server is there to be told."""
    stored = leftovers.stores(federation.dir)
    process = started(long_rounds(3))
    wait_for(lambda: jobs(federation, "site-b", 2), seconds=90)
    process.kill()
    process.wait()
    wait_for(
        lambda: not jobs(federation, "site-a", 2) and not jobs(federation, "site-b", 2), seconds=60
    )
    run = run_folder(tmp_path)
    began = time.monotonic()
    resumed = started(None, "--resume", run)
    assert resumed.wait(120) == 0
    assert [len(line["updates"]) for line in lines(run / "metrics.jsonl")] == [2, 2, 2]
    tasks = lines(run / "tasks.jsonl")
    turns = [(task["client_id"], task["turn"]) for task in tasks]
    assert len(turns) == len(set(turns)), "a task was sent again whose answer was there"
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[1])["round"] == 2
    assert time.monotonic() - began < 60
    assert leftovers.stores(federation.dir) == stored
