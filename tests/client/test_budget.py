import time

import pytest

from fl.client import budget, task
from fl.client.budget import BlockEnded, Countdown, block_end
from fl.errors import FederationError

ENDLESS = {"mode": "step", "num_local_steps": 10**9, "block_margin": 0.5}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return 5e6 + self.now

    moved = Clock()
    monkeypatch.setattr(budget, "time", moved)
    return moved


def run(clock, left, seconds):
    for took in seconds:
        assert left.stopped is None
        clock.now += took
        left.step()
    return left.stopped, left.done


def test_steps_and_seconds_are_budgets(clock):
    assert run(clock, Countdown(steps=3), [1, 1, 1]) == ("budget", 3)
    assert run(clock, Countdown(seconds=10.0), [4, 4, 4]) == ("budget", 3)
    assert run(clock, Countdown(seconds=1.0), [60]) == ("budget", 1)


def test_no_step_begins_that_the_block_would_cut_off(clock):
    def until(seconds):
        return clock.time() + seconds

    assert run(clock, Countdown(steps=99, until=until(10)), [3, 3, 3]) == ("block", 3)
    assert run(clock, Countdown(seconds=99.0, until=until(10)), [2, 3, 3]) == ("block", 3)
    assert run(clock, Countdown(steps=99, until=until(10)), [60]) == ("block", 1)
    # What the budget ends anyway is not cut short.
    assert run(clock, Countdown(steps=3, until=until(10)), [3, 3, 3]) == ("budget", 3)
    with pytest.raises(BlockEnded, match=r"too soon for a first step .* \(by 5 s\)"):
        Countdown(steps=1, until=until(-5))


def test_a_budget_of_seconds(site):
    site.result()  # the first step of a process takes longer
    result = site.result(train_configs={"mode": "seconds", "num_local_seconds": 0.3})
    assert result["seconds"]["train"] >= 0.3
    assert result["steps"] > 1
    assert result["stopped"] == "budget"


def test_a_block_that_ends_gets_what_was_done(site, monkeypatch):
    site.result()
    end = time.time() + 2.0
    monkeypatch.setenv("FL_BLOCK_END", str(end))
    result = site.result(train_configs=ENDLESS | {"do_validation": True})
    assert time.time() < end
    assert result["stopped"] == "block"
    assert result["steps"] > 1
    assert result["update"]["size"] > 0
    assert "val_loss" not in result["metrics"]  # no time is left for it


VALIDATION = """
from torch.utils.data import Dataset
from fl.client import budget
class Slow(Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        budget.time.now += 10
        return load()[0][index]
def load_slowly():
    return load()[0], Slow()
"""


@pytest.fixture
def slow_site(site, clock, monkeypatch):
    """A site whose validation takes 320 s; its block ends in 100 s, training in 70 s."""
    with (site.code / "data.py").open("a") as file:
        file.write(VALIDATION)
    monkeypatch.setenv("FL_BLOCK_END", str(clock.time() + 100))
    return site


def test_validation_ends_before_the_block_does(slow_site, clock):
    configs = {"do_validation": True, "val_batch_size": 1}
    result = slow_site.result(train_configs=configs, data=("load_slowly", {}))
    assert 1020 < clock.now <= 1070
    assert result["stopped"] == "budget"
    assert result["update"]["size"] > 0
    assert set(result["metrics"]) == {"train_loss"}


def test_no_time_is_left_for_training_by_what_comes_before_it(slow_site, clock):
    configs = {"do_pre_validation": True, "val_batch_size": 1}
    error = slow_site.answer(train_configs=configs, data=("load_slowly", {}))["error"]
    assert 1020 < clock.now <= 1070
    assert error["type"] == "BlockEnded"


def test_a_block_without_time_for_a_step_says_so(site, monkeypatch):
    monkeypatch.setenv("FL_BLOCK_END", str(time.time() + 5))
    error = site.answer(train_configs={})["error"]  # the margin is 30 s
    assert error["type"] == "BlockEnded"
    assert "too soon for a first step" in error["message"]


def test_the_margin_grows_with_what_the_models_way_takes(monkeypatch):
    monkeypatch.setenv("FL_BLOCK_END", "1000")
    assert task._until(30.0, 1.0) == 970
    assert task._until(30.0, 40.0) == 920


def test_where_the_end_is_told(monkeypatch):
    for name in ("FL_BLOCK_END", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert block_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert block_end() == 1.7e9
    monkeypatch.setenv("FL_BLOCK_END", "1600000000")
    assert block_end() == 1.6e9
    for value in ("10:00", "nan"):
        monkeypatch.setenv("FL_BLOCK_END", value)
        with pytest.raises(FederationError, match=f"FL_BLOCK_END is '{value}', unix seconds"):
            block_end()
