"""One deployed federation for every test that needs the real daemons."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from examples import leftovers
from fl.endpoints.credentials import read_environment
from tests.interrupt import take_sigterm_as_ctrl_c

# As for the sandbox's workers (inventory/group_vars/sandbox.yml): tests run beside daemons.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOP = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
OWN = "site-b"
"""The site with a Globus client of its own; the others have the shared one."""
CALL_SECONDS = 600
"""For a command; a deployment to new sites takes a slow machine of two cores five minutes."""


@dataclass(frozen=True)
class Federation:
    """The sandbox with two sites on this machine, deployed by deploy.yml.

    Attributes:
        dir: The sandbox's folder, with a folder for each site in it.
        inventory: The inventory that was deployed.
        environment: For commands of this checkout: where the sandbox is, and nothing secret.
        variables: Extra variables that every play gets.
    """

    dir: Path
    inventory: Path
    environment: dict[str, str]
    variables: dict[str, object]

    @property
    def federation_dir(self) -> Path:
        return Path(str(self.variables["fl_federation_dir"]))

    @property
    def server_yaml(self) -> Path:
        return self.federation_dir / "server.yaml"

    @property
    def clients_yaml(self) -> Path:
        return self.federation_dir / "clients.yaml"

    @property
    def credentials(self) -> dict[str, str]:
        """What a program needs to speak as the federation's client, its secret included."""
        return self.credentials_of("home")

    def credentials_of(self, site: str) -> dict[str, str]:
        """What a program needs to speak as a site's client, its secret included."""
        folder = self.dir / site
        return read_environment(folder / "site.env") | read_environment(
            folder / "secrets" / "credentials.env"
        )

    def play(
        self, *arguments: str, check: bool = True, **variables: object
    ) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook; unless `check` is false, a failure fails the test."""
        done = self.call(*self.playbook(*arguments, **variables))
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def playbook(self, *arguments: str, **variables: object) -> list[str]:
        """The command that runs ansible-playbook over this federation."""
        given = json.dumps(self.variables | variables)
        return ["ansible-playbook", "-i", str(self.inventory), "-e", given, *arguments]

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this checkout's environment; a test that fails shows what it said."""
        with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
            try:
                done = subprocess.run(
                    command,
                    cwd=TOP,
                    env=self.environment,
                    stdout=output,
                    stderr=errors,
                    timeout=CALL_SECONDS,
                    check=False,
                )
            finally:  # also of what was still running when the test's time was up
                for file in (output, errors):
                    file.seek(0)
                said = [output.read(), errors.read()]
                sys.stdout.write("".join(said))
        return subprocess.CompletedProcess(command, done.returncode, *said)


def sandbox_environment(folder: Path) -> dict[str, str]:
    """This process's environment, without Globus's variables, for a sandbox in a folder.

    Nor with the one of Python's by which every process of a site would compile what it imports.
    """
    dropped = ("GLOBUS_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FL_SANDBOX_DIR": str(folder),
        "ANSIBLE_NOCOLOR": "1",
    }


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Deploy once for the session; take down at its end, and see that nothing is left."""
    folder = tmp_path_factory.mktemp("sandbox")
    folder.chmod(0o700)
    deployed = Federation(
        dir=folder,
        inventory=TOP / "inventory" / "sandbox.ini",
        environment=sandbox_environment(folder),
        variables={"fl_federation_dir": str(folder / "federation")},
    )
    up = deployed.call("fl", "sandbox", "up")
    if up.returncode:
        pytest.fail(f"fl sandbox up: {up.stdout}{up.stderr}", pytrace=False)
    try:
        assert deployed.call("fl", "sandbox", "client", OWN).returncode == 0
        deployed.play("deploy.yml")
        yield deployed
    finally:
        down = [
            deployed.play("playbooks/teardown.yml", check=False),
            deployed.call("fl", "sandbox", "down"),
        ]
        left = leftovers.processes(folder)
        for process in left:
            process.kill()
    assert [done.returncode for done in down] == [0, 0], "".join(
        done.stdout + done.stderr for done in down
    )
    assert left == [], "left running after teardown and `fl sandbox down`"


def pytest_configure() -> None:
    """A session that is terminated takes down what it has started."""
    take_sigterm_as_ctrl_c()


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Say in one line which files have what was not tested, and why."""
    files: dict[str, set[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        files.setdefault(reason, set()).add(report.nodeid.partition("::")[0])
    if files:
        told = (f"{', '.join(sorted(names))} ({reason})" for reason, names in files.items())
        terminalreporter.write_line(f"NOT TESTED: {'; '.join(told)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the deployed federation last: it holds Globus's one port to the session's end."""
    items.sort(key=_needs_the_federation)


def _needs_the_federation(item: pytest.Item) -> bool:
    deployed = item.get_closest_marker("daemons") is not None
    return deployed and "federation" in getattr(item, "fixturenames", ())
