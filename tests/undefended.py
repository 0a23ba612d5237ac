"""Takes each defence out of a copy of this checkout, and sees that its tests fail without it.

    python tests/private_loopback.py python -m tests.undefended [WORD ...]

Words choose rows: those whose attack or fault holds one of them; without, all are tried, which
takes twenty minutes. Defences of one `session` are taken out together, for each session
deploys a federation of its own. Ends with code 1 where a test passes that should not, and
with 2 where no row holds a word.
"""

import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tests.conftest import BIN, TOP, sandbox_environment
from tests.defences import DEFENCES, Change, Defence

LEFT = (
    ".git",
    ".venv",
    ".wheelhouse",
    ".peers",
    "build",
    "__pycache__",
    ".*_cache",
    "runs",
    ".sandbox",
)
"""What a copy does not need, or gets as a link."""
SHOWN = 110
"""Characters of what a failing test says."""
TAIL = 3000
"""Characters of a session of which a test did not fail."""
PASSES = "DID NOT FAIL WITHOUT IT"
"""Also of what could not be tried."""


def main(words: list[str]) -> int:
    """Try the rows that hold one of the words; print what each test says without its defence."""
    unknown = [word for word in words if not any(word in row.against for row in DEFENCES)]
    if unknown:
        print(f"no row has: {', '.join(unknown)}", file=sys.stderr)  # noqa: T201  (a script)
        return 2
    chosen = [row for row in DEFENCES if not words or any(word in row.against for word in words)]
    passing = 0
    for together in sessions(chosen):
        said = without_them(together)
        for row in together:
            its = {name: words for test in row.tests for name, words in said[test].items()}
            passing += list(its.values()).count(PASSES)
            lines = [row.against, *(f"    {name}: {words}" for name, words in its.items())]
            print(*lines, sep="\n", flush=True)  # noqa: T201  (a script)
    return 1 if passing else 0


def sessions(rows: Iterable[Defence]) -> Iterator[list[Defence]]:
    """Rows that are taken out together."""
    for name, group in groupby(rows, key=lambda row: row.session):
        together = list(group)
        yield from [together] if name else [[row] for row in together]


def without_them(rows: list[Defence]) -> dict[tuple[str, str], dict[str, str]]:
    """What tests say in a copy of this checkout without these defences.

    Args:
        rows: What is taken out together.

    Returns:
        For each of their tests, what each of its parameters says.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder, "fl"), Path(folder, "report.xml")
        shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*LEFT), symlinks=True)
        (copy / ".wheelhouse").symlink_to(BIN.parents[1] / ".wheelhouse")
        for change in (change for row in rows for change in row.changes):
            file = copy / change.file
            file.write_text(without(file.read_text(), change))
        tests = [test for row in rows for test in row.tests]
        names = " or ".join(sorted({name.partition("[")[0] for _, name in tests}))
        files = sorted({file for file, _ in tests})
        words = [BIN / "python", "-m", "pytest", *files, "-k", names, f"--junitxml={report}"]
        environment = sandbox_environment(copy / ".sandbox") | {"PYTHONPATH": str(copy)}
        done = subprocess.run(
            words, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        found = {test: told(report, test[1]) for test in tests}
    if PASSES in (words for its in found.values() for words in its.values()):
        print(done.stdout[-TAIL:])  # noqa: T201  (a script: why none failed, or was not tried)
    return found


def without(text: str, change: Change) -> str:
    """A file's text without a defence.

    Raises:
        ValueError: What is to be taken out does not stand in it once.
    """
    if text.count(change.text) != 1:
        raise ValueError(f"{change.file}: has {change.text!r} {text.count(change.text)} times")
    return text.replace(change.text, change.instead)


def told(report: Path, name: str) -> dict[str, str]:
    """The first words of each failure among the tests whose name begins so, by their names."""
    found = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  (pytest's own)
        full = str(case.get("name"))
        if full.startswith(f"test_{name}"):
            wrong = list(case.iter("failure"))
            words = " ".join(str(wrong[0].get("message")).split()) if wrong else PASSES
            found[full] = words[:SHOWN]
    return found or {f"test_{name}": PASSES}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
