"""`fl_keep_up: systemd`, with a real systemd of the user's on a machine of namespaces."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import packages
from tests.conftest import BIN, TOP, sandbox_environment
from tests.deploy import namespaces
from tests.deploy.namespaces import Machine
from tests.deploy.sleeper import lay_out

pytestmark = pytest.mark.daemons
SYSTEMD = "/lib/systemd/systemd"
RUNTIME = "/run/user/0"
SECONDS = 20.0
# The deployed timer's own times would have the test wait for a minute.
AT_ONCE = "[Timer]\nAccuracySec=100ms\nOnStartupSec=1s\nOnUnitInactiveSec=500ms\n"
DAEMON = ["sh", "-c", "echo $$ > pid; exec sleep 602"]


def remove_control_groups() -> None:
    """Remove what a systemd that was killed leaves below the control group that it began in."""
    top, own = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text()
    below = re.search(r"^0::/(.*)$", own, re.MULTILINE)
    for mount in [top, *filter(Path.is_mount, top.iterdir())] if below else []:
        for made in (mount / below[1] / name for name in ("app.slice", "init.scope")):
            inside = [found for found in made.rglob("*") if found.is_dir()]
            for folder in [*sorted(inside, reverse=True), made]:
                with contextlib.suppress(OSError):  # it is not there, or somebody's
                    folder.rmdir()


class Site:
    """A site's folder on a machine where root has a systemd that outlives a login."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "systemd.log"
        self.machine = Machine.make("login")
        (folder / "home/.config/systemd/user").mkdir(parents=True)
        lay_out(folder, DAEMON)

    @property
    def environment(self) -> dict[str, str]:
        return sandbox_environment(self.folder) | {"HOME": str(self.folder / "home")}

    def boot(self) -> str:
        """Start the user's systemd; answers with why there is none, or nothing."""
        for folder in ("/run/user", "/run/systemd", "/var/lib/systemd"):
            self.machine.call("mount", "-t", "tmpfs", "tmpfs", folder)
        # What it goes by, to believe that this machine was booted by it and that root lingers.
        linger = "/var/lib/systemd/linger"
        self.machine.call("mkdir", "-p", "-m", "700", RUNTIME, "/run/systemd/system", linger)
        self.machine.call("touch", f"{linger}/root")
        variables = [f"XDG_RUNTIME_DIR={RUNTIME}", f"HOME={self.folder / 'home'}"]
        self.machine.start("env", *variables, SYSTEMD, "--user", log=self.log)
        deadline = time.monotonic() + SECONDS
        while self.systemctl("show-environment").returncode:
            if self.machine.started[0].poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text().strip().splitlines()
                return f"systemd --user does not run: {said[-1] if said else 'it says nothing'}"
            time.sleep(0.1)
        return ""

    def systemctl(self, *words: str):
        environment = self.environment | {"XDG_RUNTIME_DIR": RUNTIME}
        return self.machine.run("systemctl", "--user", *words, env=environment)

    def play(self, verb: str) -> str:
        """Bring the daemon to a state by the play's own tasks; answers with the host's recap."""
        variables = {
            "ansible_python_interpreter": sys.executable,
            "fl_environment_prefix": str(BIN.parent),
            "fl_client_id": "11111111-2222-4333-8444-555555555555",
            "fl_site_dir": str(self.folder),
            "fl_keep_up": "systemd",
            "fl_daemon_verb": verb,
        }
        inventory = self.folder / "sites.ini"
        inventory.write_text("[server]\nhome ansible_connection=local\n")
        words = ["ansible-playbook", "-i", str(inventory), "-e", json.dumps(variables)]
        done = self.machine.run(*words, "tests/deploy/keep_up.yml", env=self.environment, cwd=TOP)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.search(r"changed=\d+", done.stdout)[0]

    def sleepers(self) -> list[psutil.Process]:
        """The daemon, whoever has started it: each knows by its folder whose it is."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "cwd"])
            if process.info["cmdline"] == DAEMON[-1].partition("exec ")[2].split()
            and process.info["cwd"] == str(self.folder)
        ]

    def said(self) -> str:
        """What systemd says of its timer, and what that runs."""
        found = self.systemctl("status", "--no-pager", "fl-keep-*").stdout
        return f"{found}\n{self.log.read_text()[-2000:]}"

    def units(self) -> list[Path]:
        """What the play has written for systemd, without the test's own drop-in."""
        return sorted((self.folder / "home/.config/systemd/user").glob("fl-keep-*.[st]*"))


@pytest.fixture
def site(tmp_path):
    reason = namespaces.refusal() or packages.install({SYSTEMD: "systemd"})
    if reason:
        pytest.skip(f"no systemd on a machine of namespaces here: {reason}")
    made = Site(tmp_path)
    try:
        if reason := made.boot():
            pytest.skip(reason)
        yield made
    finally:
        made.machine.end()
        remove_control_groups()


def test_a_timer_starts_what_was_killed_and_a_stop_takes_it_out(site):
    assert site.play("ensure") != "changed=0"
    timer = next(unit.name for unit in site.units() if unit.suffix == ".timer")
    assert site.systemctl("is-enabled", timer).stdout.strip() == "enabled"
    drop_in = site.folder / "home/.config/systemd/user" / f"{timer}.d"
    drop_in.mkdir()
    (drop_in / "at-once.conf").write_text(AT_ONCE)
    site.systemctl("daemon-reload")
    site.systemctl("restart", timer)
    (killed,) = site.sleepers()
    killed.kill()
    deadline = time.monotonic() + SECONDS
    while not [found for found in site.sleepers() if found != killed]:
        assert time.monotonic() < deadline, site.said()
        time.sleep(0.1)
    assert site.play("ensure") == "changed=0"
    # Another login node with the same home starts nothing.
    site.machine.call("hostname", "login02")
    site.systemctl("restart", timer)
    assert site.systemctl("is-active", timer).stdout.strip() == "inactive"
    site.machine.call("hostname", "login")
    site.systemctl("restart", timer)
    assert site.systemctl("is-active", timer).stdout.strip() == "active"
    assert site.play("stop") != "changed=0"
    assert [unit for unit in site.units() if unit.is_file()] == []
    assert site.systemctl("is-active", timer).stdout.strip() == "inactive"
    assert site.sleepers() == []
