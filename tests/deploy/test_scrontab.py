"""`fl_keep_up: scrontab` and `cron`, with stand-ins for their commands: Debian has no scrontab."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import BIN, TOP, sandbox_environment
from tests.deploy.sleeper import lay_out

DAEMON = ["sh", "-c", "echo $$ > pid; exec sleep 603"]
OTHERS = "# somebody's\n#SCRON --qos=cron\n0 5 * * * backup 100%\n"
COMMANDS = {
    # Keeps the text, as slurmctld does.
    "scrontab": """#!/bin/sh
table="${0%/*}/table"
case "$1" in
-l) cat "$table" 2> /dev/null || { echo "no crontab for $(id -un)"; exit 1; } ;;
-) cat > "$table" ;;
esac
""",
    # Reads a file, as cron's does, and keeps another text.
    "crontab": """#!/bin/sh
table="${0%/*}/crons"
case "$1" in
-l) cat "$table" 2> /dev/null || { echo "no crontab for $(id -un)" >&2; exit 1; } ;;
*) cat "$1" > "$table" ;;
esac
""",
    # The login node is this machine, and its login shells know no `2>`.
    "ssh": """#!/bin/sh
[ "$1 $2 $3" = "-o BatchMode=yes $(uname -n)" ] || exit 255
shift 3
case "$*" in "sh -c "*) ;; *) echo "Ambiguous output redirect." >&2; exit 1 ;; esac
exec sh -c "$*"
""",
}


def sleepers(folder: Path) -> list[psutil.Process]:
    """The daemon of a site, whoever has started it."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cmdline"] == ["sleep", "603"] and process.info["cwd"] == str(folder)
    ]


class Site:
    """A site, and commands of its login node, which has Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "100% a site"
        self.commands = folder / "commands"
        self.commands.mkdir()
        self.table = self.commands / "table"
        for name, text in COMMANDS.items():
            (self.commands / name).write_text(text)
        for program in self.commands.iterdir():
            program.chmod(0o700)
        lay_out(self.folder, DAEMON)
        self.inventory = folder / "sites.ini"
        self.inventory.write_text("[server]\nhome ansible_connection=local\n")
        self.environment = sandbox_environment(folder)
        self.environment["PATH"] = f"{self.commands}:{self.environment['PATH']}"

    def play(self, verb: str, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "fl_environment_prefix": str(BIN.parent),
            "fl_client_id": "11111111-2222-4333-8444-555555555555",
            "fl_site_dir": str(self.folder),
            "fl_compute_engine": "slurm",
            "fl_keep_up": "scrontab",
            "fl_scrontab_options": ["--qos=cron", "--account=physics"],
            "fl_daemon_verb": verb,
        }
        command = ["ansible-playbook", "-i", str(self.inventory), "tests/deploy/keep_up.yml"]
        done = subprocess.run(
            [*command, "-e", json.dumps(variables | more), *words],
            cwd=TOP,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def fire(self) -> None:
        """Run what the scrontab says, as a job with a bare environment would."""
        lines = [line for line in self.table.read_text().splitlines() if "BatchMode" in line]
        (line,) = lines
        bare = {"PATH": f"{self.commands}:/usr/bin:/bin"}
        subprocess.run(["sh", "-c", line.split(" ", 5)[5]], env=bare, check=True, timeout=60)

    def sleepers(self) -> list[psutil.Process]:
        return sleepers(self.folder)


def changed(done: subprocess.CompletedProcess[str]) -> str:
    return re.search(r"changed=\d+", done.stdout)[0]


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    for folder in tmp_path.iterdir():
        for process in sleepers(folder):
            process.kill()


def test_a_job_starts_what_was_killed_and_a_stop_takes_its_lines_out(site):
    site.table.write_text(OTHERS)
    site.play("ensure", "--check")
    assert site.table.read_text() == OTHERS
    assert changed(site.play("ensure")) != "changed=0"
    lines = site.table.read_text().removeprefix(OTHERS).splitlines()
    assert lines[1:3] == ["#SCRON --qos=cron", "#SCRON --account=physics"]
    (killed,) = site.sleepers()
    killed.kill()
    killed.wait()
    site.fire()
    assert len(site.sleepers()) == 1
    assert changed(site.play("ensure")) == "changed=0"
    # A restart leaves it in; a site that has changed its mind is restarted to be rid of it.
    site.play("stop", fl_daemon_kept=True)
    assert site.table.read_text().removeprefix(OTHERS).splitlines() == lines
    site.play("stop", fl_keep_up="none", fl_daemon_kept=True)
    assert site.table.read_text() == OTHERS
    assert site.sleepers() == []


def test_where_there_is_no_scrontab_a_line_says_what_that_means(site):
    (site.commands / "scrontab").write_text("#!/bin/sh\necho scrontab: disabled >&2\nexit 1\n")
    said = " ".join(site.play("ensure").stdout.split())
    assert "scrontab cannot be used (scrontab: disabled), so nothing starts the sleeper" in said


def test_where_there_is_no_crontab_a_line_says_what_that_means(site, tmp_path):
    (site.commands / "crontab").unlink()
    others = tmp_path / "others"
    others.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "crontab":
            (others / program.name).symlink_to(program)
    site.environment["PATH"] = f"{site.commands}:{BIN}:{others}"
    said = " ".join(site.play("ensure", fl_keep_up="cron").stdout.split())
    assert "cron cannot be used (no crontab command), so nothing starts the sleeper" in said


@pytest.mark.parametrize("kept_by", ["scrontab", "cron"])
def test_two_sites_of_one_account_leave_each_others_lines(site, tmp_path, kept_by):
    """Their plays run at the same time, and the table is one."""
    other = tmp_path / "another"
    lay_out(other, DAEMON)
    site.inventory.write_text(f"{site.inventory.read_text()}[sites]\nb ansible_connection=local\n")
    folders = f"{{{{ {str(other)!r} if inventory_hostname == 'b' else {str(site.folder)!r} }}}}"
    table = site.table if kept_by == "scrontab" else site.commands / "crons"
    table.write_text(OTHERS)
    try:
        site.play("ensure", fl_keep_up=kept_by, fl_site_dir=folders)
        for folder in (site.folder, other):
            assert f"fl: keep sleeper of {folder} up," in table.read_text()
    finally:
        site.play("stop", fl_keep_up=kept_by, fl_site_dir=folders)
    assert table.read_text() == OTHERS


@pytest.mark.parametrize("kept_by", ["scrontab", "cron"])
def test_a_restart_keeps_nothing_up_that_is_not_there(site, kept_by):
    """A machine of the relay's own has no ProxyStore endpoint, and a new site nothing yet."""
    (site.folder / "daemons/sleeper.json").unlink()
    assert changed(site.play("stop", fl_keep_up=kept_by, fl_daemon_kept=True)) == "changed=0"
    assert not site.table.exists()
    assert not (site.commands / "crons").exists()
