"""Source that a server ships: what a site's tasks run, as it was when it was first read."""

import pytest

from fl.config import ConfigError
from fl.server.requests import evaluate_request, rehearse_request, train_request, training
from fl.server.sources import sources
from fl.transport.base import Ref

MODEL = Ref("inline", {}, 1, "0" * 64)
OWN = {"train_configs": {"metric_path": "own/metric.py", "metric_name": "f"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    (tmp_path / "own").mkdir()
    for name in ("m.py", "d.py", "own/metric.py"):
        (tmp_path / name).write_bytes(f"# {name}\r\n".encode())
    return tmp_path


def test_every_task_that_runs_code_brings_it(folder, federation):
    asked = federation(["a"], shared=OWN, ship_source=True)
    (client,) = asked.clients
    expected = {name: f"# {name}\r\n" for name in ("m.py", "d.py", "own/metric.py")}
    train = train_request(training(asked, client), MODEL, turn=1, job="j", run_id="r")
    (folder / "d.py").write_text("# of the second round\n")
    for request in (
        train,
        evaluate_request(asked, client, MODEL, job="j", run_id="r"),
        rehearse_request(asked, client, MODEL, until=0),
    ):
        assert request["sources"] == expected


def test_unless_asked_no_source_is_sent(folder, federation):
    asked = federation(["a"])
    request = train_request(training(asked, asked.clients[0]), MODEL, turn=1, job="j", run_id="r")
    assert "sources" not in request


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"d\.py cannot be read: .*No such file"),
        (b"\xff", r"d\.py cannot be read: 'utf-8' codec"),
        (b"#" * 256_001, r"d\.py has 256001 characters, 256000 at most"),
    ],
)
def test_what_cannot_be_shipped_is_named(folder, federation, content, expected):
    asked = federation(["a"], ship_source=True)
    (folder / "d.py").unlink()
    if content is not None:
        (folder / "d.py").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        sources(asked, asked.clients[0])
