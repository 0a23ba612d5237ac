import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from fl.client import jobs

UNKNOWN = {
    "recorded": True,
    "phase": "unknown",
    "step": None,
    "age_seconds": None,
    "alive": False,
}


@pytest.fixture
def quick(monkeypatch):
    """Records are renewed every 20 ms, by a thread that has not begun to wait for longer."""
    monkeypatch.setattr(jobs, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "_beat", threading.Thread())


def write(site, **changes):
    """A record, as another process of this host would have left it: this one's, in fact."""
    state = {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "start_time": jobs._start_time(os.getpid()),
        "phase": "train",
        "step": 12,
        "updated": time.time() - 20,
        **changes,
    }
    (site.state / "jobs").mkdir(parents=True, exist_ok=True)
    (site.state / "jobs" / "j.json").write_text(json.dumps(state))
    return jobs.progress("j")


def test_a_task_is_seen_while_it_runs_and_gone_afterwards(site):
    (site.code / "data.py").write_text(
        (site.code / "data.py").read_text()
        + "\nfrom fl.client import jobs"
        + "\nseen = []"
        + "\ndef load_and_look():"
        + "\n    seen.append(jobs.progress('run-1.7'))"
        + "\n    return load()"
    )
    site.result(job="run-1.7", data=("load_and_look", {}))
    seen = sys.modules[_module("seen")].seen[0]
    assert (seen["phase"], seen["step"], seen["alive"]) == ("start", 0, True)
    assert 0 <= seen["age_seconds"] < 5
    assert site.result(operation="progress", job="run-1.7") == UNKNOWN
    assert list((site.state / "jobs").iterdir()) == []
    site.answer(job="run-1.7", data=("load_badly", {"fault": "raises"}))
    assert list((site.state / "jobs").iterdir()) == []


def _module(name):
    return next(
        m for m in sys.modules if m.startswith("fl_site_code") and name in vars(sys.modules[m])
    )


def until_renewed(job, step):
    deadline = time.monotonic() + 5
    while jobs.progress(job)["step"] != step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_record_is_renewed_while_its_task_is_busy(site, quick):
    with jobs.Record("j") as record:
        first = json.loads((site.state / "jobs" / "j.json").read_text())
        record.phase = "train"
        record.count(5)
        until_renewed("j", 5)
        now = json.loads((site.state / "jobs" / "j.json").read_text())
        mode = (site.state / "jobs" / "j.json").stat().st_mode
    assert now["phase"] == "train"
    assert now["updated"] > first["updated"]
    assert stat.S_IMODE(mode) == 0o600


def test_the_next_task_of_a_process_is_renewed_by_the_same_thread(site, quick):
    threads = []
    for step in (1, 2):
        with jobs.Record("j") as record:
            record.count(step)
            until_renewed("j", step)
            threads.append(jobs._beat)
    assert threads[0] is threads[1]


def test_a_record_that_was_removed_does_not_come_back(site):
    with jobs.Record("j") as record:
        pass
    record.renew()
    assert list((site.state / "jobs").iterdir()) == []


def test_a_file_system_that_hangs_while_a_record_is_renewed_holds_no_answer(
    site, quick, monkeypatch
):
    hangs, ends = threading.Event(), threading.Event()

    def hang(*_args, **_options):
        hangs.set()
        ends.wait(30)

    with jobs.Record("j"):
        monkeypatch.setattr(jobs.site_state, "write", hang)
        assert hangs.wait(5)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    ends.set()


def _forked(job, left_alone):
    with jobs.Record(job) as record:
        assert left_alone not in jobs._live
        record.count(5)
        until_renewed(job, 5)


def test_a_fork_renews_its_own_record_and_not_its_parents(site, quick):
    with jobs.Record("j") as record:
        args = ("fork", record)
        fork = multiprocessing.get_context("fork").Process(target=_forked, args=args)
        fork.start()
        fork.join(30)
        assert fork.exitcode == 0
        assert json.loads((site.state / "jobs" / "j.json").read_text())["pid"] == os.getpid()


def test_a_record_is_renewed_at_most_once_a_second():
    assert jobs.BEAT_SECONDS >= 1
    assert jobs.STALE_SECONDS > 3 * jobs.BEAT_SECONDS


def test_a_folder_that_cannot_be_written_costs_the_record_alone(site):
    site.state.write_text("no folder")
    assert site.result(job="j")["steps"] == 1
    found = site.result(operation="progress", job="j")
    assert found == UNKNOWN | {"recorded": False}  # which proves nothing


def test_a_killed_process_is_seen_to_be_dead(site):
    script = (
        "import time; from fl.client import jobs\n"
        "with jobs.Record('j'): print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        assert jobs.progress("j")["alive"]
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while jobs.progress("j")["alive"]:  # dead as a zombie, before it is waited for
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait(timeout=10)
    process.stdout.close()
    last = jobs.progress("j")
    assert (last["phase"], last["alive"]) == ("start", False)


def test_the_same_host_is_asked_for_the_process(site):
    assert write(site)["alive"]
    assert write(site, updated=time.time() - 1e6)["alive"]  # a process may be stopped for long
    assert not write(site, start_time="1")["alive"]  # its number is another's by now
    assert not write(site, pid=2**22 + 1)["alive"]


def test_without_proc_the_number_alone_counts(site, monkeypatch):
    monkeypatch.setattr(jobs, "_start_time", lambda _pid: None)
    assert write(site)["alive"]
    assert not write(site, pid=2**22 + 1)["alive"]


def test_another_host_is_believed_while_its_record_is_young(site):
    young, old = (write(site, host="other", updated=time.time() - age) for age in (20, 90))
    assert young["alive"] and young["age_seconds"] == pytest.approx(20, abs=2)
    assert not old["alive"]
    assert old["step"] == 12


@pytest.mark.parametrize("text", ["", "[1]", '{"host": "x"}', '{"updated": "now"}', "\x00"])
def test_a_damaged_record_is_unknown(site, text):
    write(site)
    (site.state / "jobs" / "j.json").write_text(text)
    assert jobs.progress("j") == UNKNOWN


def test_a_job_is_no_path(site):
    write(site)
    (site.state / "j.json").write_text((site.state / "jobs" / "j.json").read_text())
    answer = site.answer(operation="progress", job="../j")
    assert "is no name for a file" in answer["error"]["message"]


def test_what_killed_tasks_left_is_removed_in_time(site):
    write(site)
    folder = site.state / "jobs"
    (folder / ".j.json.77").write_text("torn off")
    for file in folder.iterdir():
        os.utime(file, (time.time() - 8 * 24 * 3600,) * 2)
    with jobs.Record("other"):
        assert [file.name for file in folder.iterdir()] == ["other.json"]
