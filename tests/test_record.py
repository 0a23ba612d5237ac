import errno
import fcntl
import json
import math
import os
import resource
import threading
from concurrent.futures import Future
from datetime import datetime
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from fl.errors import FederationError
from fl.history import find_run, read_history
from fl.record import Record
from fl.server import checkpoint
from fl.server.checkpoint import SiteMemory, Snapshot
from fl.server.events import RoundEnded
from fl.server.sites import Task
from fl.tensors import decode
from fl.transport import Ref
from tests.recorded import federation


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path)


def sent(record, client_id, turn, job, transport="proxystore"):
    task = Task(client_id, turn - 1, turn, job, 0.0, Future())
    record.sent(task, "group", Ref(transport, {"object": f"model-{turn}"}, 10, "0" * 64))


def snapshot(**sites):
    return Snapshot(1, {}, {}, {}, sites)


def test_what_a_snapshot_does_not_hold_is_outstanding(record):
    for name in "abc":
        sent(record, name, 1, f"{name}1")
    sent(record, "b", 2, "b2")
    kept = snapshot(
        a=SiteMemory(turn=1, answered=True),
        b=SiteMemory(turn=1, answered=True),
        c=SiteMemory(turn=1, answered=False),
    )
    assert [task.job for task in record.outstanding(kept)] == ["b2", "c1"]


def test_a_site_that_the_snapshot_has_nothing_of_is_outstanding(record):
    sent(record, "a", 1, "a1")
    assert [task.job for task in record.outstanding(snapshot())] == ["a1"]


def test_models_that_may_be_left_are_named_once(record):
    sent(record, "a", 1, "a1")
    sent(record, "a", 2, "a2")
    sent(record, "b", 2, "b2")
    assert [ref.key["object"] for ref in record.left()] == ["model-2"]


def test_a_model_that_travels_inside_its_task_is_not_kept_in_the_journal(record, tmp_path):
    sent(record, "a", 1, "a1", transport="inline")
    assert record.left() == []
    assert json.loads((tmp_path / "tasks.jsonl").read_text())["model"] == {}


@pytest.mark.parametrize("torn", ['{"client_id": "a"', '{"client_id": "a", "model": {}', ""])
def test_a_torn_line_is_left_out(record, tmp_path, torn):
    sent(record, "a", 1, "a1")
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write(torn)
    assert [task.job for task in record.outstanding(snapshot())] == ["a1"]


@pytest.mark.parametrize("line", ["[]", "{}", '{"round": 1}'])
def test_lines_of_another_version_are_named(record, tmp_path, line):
    record.keep(snapshot())
    for name in ("metrics", "tasks"):
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n")
    with pytest.raises(FederationError, match=r"metrics.jsonl: a line has not .*another version"):
        record.snapshot()
    with pytest.raises(FederationError, match=r"tasks.jsonl: a line has not .*another version"):
        record.left()


def test_a_diverged_models_loss_is_null_and_no_crash(record, tmp_path):
    event = RoundEnded(1, math.nan, 0.1, [], [], 0, 0, {}, {"epsilon": math.inf, "delta": 0.1})
    record(event)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["loss"] is None
    assert line["aggregator"] == {"epsilon": None, "delta": 0.1}
    assert read_history(tmp_path).rounds[0].aggregator == line["aggregator"]
    assert record.losses() == [None]


def test_what_an_aggregator_told_of_a_step_is_on_the_disk_with_it(record, monkeypatch):
    """After a power cut too: what was seen of a step is counted, saved or not."""
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    record(RoundEnded(1, 0.5, 0.9, [], [], 0, 0, {}, {}))
    assert synced == []
    record(RoundEnded(2, 0.5, 0.9, [], [], 0, 0, {}, {"epsilon": 0.1}))
    assert len(synced) == 1


def test_a_step_that_is_taken_back_is_on_the_disk_as_lost_before_its_line_goes(
    record, tmp_path, monkeypatch
):
    """A power cut between would leave nothing of what it cost."""
    record.keep(snapshot())  # of a first step
    for number in (1, 2):
        record(RoundEnded(number, 0.5, 0.9, [], [], 0, 0, {}, {"epsilon": 0.1}))
    on_disk = []

    def sync(descriptor):
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "log.jsonl").stat())
        events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").open()]
        on_disk.append((events, len((tmp_path / "metrics.jsonl").read_text().splitlines())))

    monkeypatch.setattr("os.fsync", sync)
    assert record.snapshot().lost == 1
    assert on_disk == [(["lost"], 2)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_disk_that_is_full_as_a_step_is_told_of_is_named(record, monkeypatch):
    """Where files are cached at another machine, it is full at `fsync` and not before."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("os.fsync", Mock(side_effect=full))
    with pytest.raises(FederationError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        record(RoundEnded(1, 0.5, 0.9, [], [], 0, 0, {}, {"epsilon": 0.1}))


def test_runs_that_one_process_begins_in_one_second_have_folders_of_their_own(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("fl.record.datetime", SimpleNamespace(now=lambda _: datetime(2026, 1, 2)))
    folders = [Record.begin(federation(["a"], tmp_path), "code", {}).folder for _ in range(3)]
    first = f"20260102T000000Z-{os.getpid()}"
    assert [folder.name for folder in folders] == [first, f"{first}-2", f"{first}-3"]
    assert find_run(tmp_path) == folders[-1]


def test_the_best_model_is_there_whenever_a_checkpoint_says_so(record, tmp_path, monkeypatch):
    record(RoundEnded(1, 0.5, 0.9, [], [], 0, 0, {}, {}))
    weights = {"w": torch.ones(3)}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        record.keep(Snapshot(1, weights, {}, {}, {}))
    assert torch.equal(decode((tmp_path / "best.safetensors").read_bytes())["w"], weights["w"])


@pytest.mark.parametrize("again", [False, True])
def test_of_equal_accuracies_the_lowest_loss_is_the_best(record, tmp_path, again):
    """Of a regression no accuracy is ever above 0."""
    for number, loss in enumerate([0.5, math.nan, 0.2, 0.3], start=1):
        record(RoundEnded(number, loss, 0.0, [], [], 0, 0, {}, {}))
        record.keep(Snapshot(number, {"w": torch.tensor([number])}, {}, {}, {}))
        if again:
            record.snapshot()
    assert decode((tmp_path / "best.safetensors").read_bytes())["w"] == 3


def test_a_model_that_the_disk_has_no_room_for_leaves_nothing(record, tmp_path):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(FederationError, match=r"model\.safetensors.*(large|space)"):
            record.save({"w": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not list(tmp_path.glob("model*"))


def test_bytes_that_are_no_text_cost_their_line_alone(record, tmp_path):
    sent(record, "a", 1, "a1")
    with (tmp_path / "tasks.jsonl").open("ab") as file:
        file.write(b'{"client_id": "\xff\n')
    sent(record, "b", 1, "b1")
    assert [task.job for task in record.outstanding(snapshot())] == ["a1", "b1"]


def test_who_looks_at_a_run_for_a_moment_keeps_nobody_from_going_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fl.record.LOOKING_SECONDS", 30.0)
    looks = (tmp_path / "lock").open("a")
    fcntl.flock(looks, fcntl.LOCK_SH)
    threading.Timer(0.2, looks.close).start()
    assert Record(tmp_path).folder == tmp_path


def test_who_has_a_run_open_keeps_others_from_it(record, tmp_path, monkeypatch):
    monkeypatch.setattr("fl.record.LOOKING_SECONDS", 0.1)
    with pytest.raises(FederationError, match="this run is still going on"):
        Record(tmp_path)
