"""The quickstart, typed as it stands, in a fresh clone and an empty home folder.

    python -m benchmarks.quickstart

Claim: from a clone to an own model on own data over two sites in under 15 minutes. Every command
and file of `docs/quickstart.md` is typed in its order; the first that fails ends it. What is not
committed is not cloned. Installing asks a package index, the rest runs in a private loopback.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

from benchmarks import verdict
from examples import leftovers

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "quickstart.md"
CLONE = "fl-hpc"
PRIVATE = [sys.executable, str(TOP / "tests" / "private_loopback.py")]
NOT_A_NEWCOMERS = ("PYTHONPATH", "VIRTUAL_ENV", "FL_SANDBOX_DIR", "FL_SITE_CODE")


def main() -> None:
    """Type everything, then say how long each command took."""
    lines = [line.replace("THE-ADDRESS-OF-THIS-PROJECT", shlex.quote(str(TOP))) for line in typed()]
    installed = next(index for index, line in enumerate(lines) if line.startswith(". ")) + 1
    with tempfile.TemporaryDirectory(prefix="fl-quickstart.") as folder:
        home = Path(folder, "home")
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if k not in NOT_A_NEWCOMERS}
        environment = {**kept, "HOME": str(home), "TIMES": str(home / "times")}
        began = time.time()
        type_out(lines[:installed], Path(folder), [], environment)
        here = Path(folder, CLONE)
        activate = lines[installed - 1]
        try:
            type_out([activate, *lines[installed:]], here, PRIVATE, environment)
        finally:
            seconds = report(home / "times", began)
            for process in leftovers.processes(Path(folder)):
                print(f"left running, and killed: {process}")
                process.kill()
        verdict("minutes from a clone to an own model", seconds / 60, at_most=15)


def typed() -> Iterator[str]:
    """What the page says to type: commands, and files as what writes them."""
    for token in MarkdownIt().parse(PAGE.read_text()):
        if token.type == "fence" and token.info == "python":
            name = token.content.partition("\n")[0].removeprefix("# ")
            yield f"cat > {name} <<'END'\n{token.content}END"
        elif token.type == "code_block":
            yield from token.content.replace("\\\n", "").splitlines()


def type_out(lines: list[str], here: Path, where: list[str], environment: dict[str, str]) -> None:
    """Type lines into one shell, which notes when each is done and ends where one fails."""
    script = "set -eo pipefail\n"
    for line in filter(None, lines):
        noted = shlex.quote(line.splitlines()[0])
        script += f"echo; echo '$' {noted}\n{line}\n"
        script += f'printf "%s\\t%s\\n" "$EPOCHREALTIME" {noted} >> "$TIMES"\n'
    subprocess.run([*where, "bash", "-c", script], cwd=here, env=environment, check=True)


def report(times: Path, began: float) -> float:
    """Print seconds by command, and return all together."""
    print()
    before = began
    for line in times.read_text().splitlines():
        at, _, command = line.partition("\t")
        print(f"{float(at) - before:7.1f} s  {command}")
        before = float(at)
    print(f"{before - began:7.1f} s  in all")
    return before - began


if __name__ == "__main__":
    main()
