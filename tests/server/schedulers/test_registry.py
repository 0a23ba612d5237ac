import pytest

from fl.config import ConfigError

PLUGIN = '''
from fl.config import Section
from fl.server.schedulers import Assignment, Decision

class Turns:
    """One site after the other."""

    keeps_late = False

    class Settings(Section):
        first: int = 0

    def __init__(self, settings, limits):
        self._next, self._limits = settings.first, limits

    def assign(self, view):
        name = view.clients[self._next % len(view.clients)]
        if view.busy or view.waiting or name not in view.idle:
            return []
        self._next += 1
        return [Assignment(name, 10)]

    def decide(self, view):
        return Decision(fold=view.waiting, close=bool(view.waiting))

    def wake(self, view):
        return view.began + self._limits.deadline

    def observe(self, answer):
        pass

    def state(self):
        return {"next": self._next}

    def restore(self, state):
        self._next = state["next"]
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package as pip installs it: a module, and a dist-info folder with its entry point."""
    info = tmp_path / "their_schedulers-1.0.dist-info"
    info.mkdir()
    (tmp_path / "their_scheduler.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-schedulers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fl.schedulers]\nTurnsScheduler = their_scheduler:Turns\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_users_package_adds_one_that_drives_the_loop(simulate, site):
    sites = {"a": site(5), "b": site(20)}
    trace = simulate(sites, 3, scheduler="TurnsScheduler", scheduler_kwargs={"first": 1})
    assert trace == [(30, "b0"), (45, "a0"), (75, "b0")]


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("TurnScheduler", {}, "scheduler: TurnScheduler is unknown; did you mean TurnsScheduler"),
        ("TurnsScheduler", {"frst": 1}, "scheduler_kwargs.frst: unknown key; did you mean first"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_mistake_with_it_is_one_line(simulate, site, name, kwargs, expected):
    with pytest.raises(ConfigError, match=expected):
        simulate({"a": site(5)}, 1, scheduler=name, scheduler_kwargs=kwargs)
