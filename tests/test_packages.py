"""Packages are installed by one process at a time; what was not tested is named at the end."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import packages
from tests.conftest import TOP

NEEDED = {"fl-test-program": "fl-test-package"}
# As apt-get does, it ends where another is at work.
APT_GET = """#!/bin/sh
here="${0%/*}"
mkdir "$here/lock" || { echo "E: Could not get lock" >&2; exit 100; }
sleep 0.2
if [ "$1" = install ]; then
    echo "$@" >> "$here/installed"
    printf '#!/bin/sh\\n' > "$here/fl-test-program"
    chmod +x "$here/fl-test-program"
fi
rmdir "$here/lock"
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder whose commands come first, and which is locked in place of dpkg's."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "DATABASE", tmp_path)
    return tmp_path


def put(folder, text):
    (folder / "apt-get").write_text(text)
    (folder / "apt-get").chmod(0o700)


def test_of_two_that_need_a_package_at_once_one_installs_it_and_both_have_it(commands):
    put(commands, APT_GET)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(packages.install, [NEEDED, NEEDED])) == ["", ""]
    (said,) = (commands / "installed").read_text().splitlines()
    assert "DPkg::Lock::Timeout=" in said, "an apt-get that others have started is waited for"


def test_what_apt_get_does_not_have_is_named_in_its_words(commands):
    put(commands, "#!/bin/sh\n[ $1 = update ] || { echo E: Unable to locate it >&2; exit 100; }\n")
    said = packages.install(NEEDED)
    assert said == "apt-get could not install fl-test-package: E: Unable to locate it"


def test_one_line_at_the_end_says_what_was_not_tested_and_why(tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(n):\n    pytest.skip('no broker here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", f"--rootdir={tmp_path}", file],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "\nNOT TESTED: test_it.py (no broker here)\n" in done.stdout, done.stdout
