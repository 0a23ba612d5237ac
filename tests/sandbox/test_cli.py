from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fl.sandbox import daemon
from fl.sandbox.cli import sandbox
from fl.sandbox.folder import Folder, ProcessRecord
from fl.sandbox.ports import free_port


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "box"
    daemon.down(Folder(tmp_path / "box"))


def run(*arguments: str, box: Path) -> Result:
    return CliRunner().invoke(sandbox, [*arguments, "--dir", str(box)])


def test_help_says_what_it_is_for() -> None:
    said = " ".join(CliRunner().invoke(sandbox, ["--help"]).output.split())
    assert "For laptops and tests, never for production" in said


def test_a_day_with_a_sandbox(box: Path) -> None:
    port = str(free_port())
    assert (down := run("status", box=box)).exit_code == 1 and down.output == "down\n"
    assert (up := run("up", "--web-port", port, box=box)).exit_code == 0, up.output
    assert up.output == f"up: http://localhost:{port} ({box})\n"
    assert (again := run("up", "--web-port", port, box=box)).exit_code == 0
    assert again.output.startswith("already up: ")
    status = run("status", box=box)
    assert status.exit_code == 0
    assert "web service: answers" in status.output and "relay: answers" in status.output
    assert run("down", box=box).output == "down\n"
    assert (gone := run("down", box=box)).exit_code == 0 and gone.output == "was down\n"


def test_env_is_for_eval_and_holds_the_secret(box: Path) -> None:
    run("up", "--web-port", str(free_port()), box=box)
    lines = run("env", box=box).output.splitlines()
    assert all(line.startswith("export ") for line in lines)
    told = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    record = json.loads((box / "service.json").read_text())
    secret = told.pop("GLOBUS_COMPUTE_CLIENT_SECRET")
    assert secret == (box / "client_secret").read_text().strip()
    assert told == {**record["environment"], "GLOBUS_COMPUTE_CLIENT_ID": record["client_id"]}
    assert secret not in json.dumps(record)


def test_a_site_gets_a_client_of_its_own_once(box: Path) -> None:
    made, again = (run("client", "site-b", box=box) for _ in range(2))
    assert made.exit_code == 0, made.output
    assert again.output == made.output
    folder = Folder(box)
    folder.identity()
    accepted = folder.accepted("shared")
    assert accepted.keys() == {"shared", made.output.strip()}
    (secret,) = accepted[made.output.strip()]
    assert secret not in folder.secrets()
    assert (box / "clients" / "site-b.json").stat().st_mode & 0o777 == 0o600
    assert run("client", "../site", box=box).exit_code == 1


def test_clients_are_made_one_at_a_time(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands would write one file, and know each other's site under two ids."""
    write, held = Folder.write, list[bool]()

    def watched(folder: Folder, path: Path, text: str) -> None:
        with folder.lock.open() as another:
            try:
                fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
        write(folder, path, text)

    monkeypatch.setattr(Folder, "write", watched)
    assert run("client", "site-b", box=box).exit_code == 0
    assert held


@pytest.mark.parametrize("secret", ["secret", None])
def test_a_sandbox_that_does_not_list_its_endpoints_is_said_to(
    box: Path, monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    """Nobody listens where it is asked; or its secret was lost."""
    folder, known = Folder(box), ProcessRecord.of(os.getpid())
    folder.prepare()
    content = {**asdict(known), "compute": f"http://127.0.0.1:{free_port()}"}
    folder.record.write_text(json.dumps(content))
    if secret:
        folder.secret.write_text(secret)
    monkeypatch.setattr(daemon, "answers", lambda _: True)
    result = run("status", box=box)
    folder.record.unlink()  # this process is no sandbox to take down
    assert result.exit_code == 1
    assert "cannot ask the sandbox" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["env"], "no sandbox is up"),
        (["up", "--broker", "amqps://guest:hunter2@localhost"], "is not an amqp:// URL"),
        (["up", "--broker", "http://localhost"], "is not an amqp:// URL"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    box: Path, arguments: list[str], said: str
) -> None:
    result = run(*arguments, box=box)
    assert result.exit_code == 1
    assert said in result.output
    assert "hunter2" not in result.output
    assert result.output.count("\n") == 1


def test_the_folder_comes_from_the_environment_too(box: Path) -> None:
    result = CliRunner(env={"FL_SANDBOX_DIR": str(box)}).invoke(sandbox, ["env"])
    assert str(box) in result.output


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("up", box=tmp_path / "file" / "box")
    assert result.exit_code == 1
    assert "cannot make the folder" in result.output
