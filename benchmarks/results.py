"""Run the benchmarks, and write what each claimed and printed to `benchmarks/RESULTS.md`.

    python -m benchmarks.results [script ...]

Without arguments all of them run; with some, only their sections change. A section says when it was
measured, and how busy the machine was before: figures of a busy machine are worth their ratios. A
script that fails, or takes longer than it may, leaves its section as it was; the others still run,
and at the end it is named.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
PRIVATE = ("tests/private_loopback.py", sys.executable)
"""Before scripts that start daemons: a loopback of their own."""

ARGUMENTS = {
    "big_rounds": ("100", "400", "1000"),
    "daemon_rounds": ("100", "400", "1000"),
    "small_rounds": (),
    "growth": ("docs/pictures/growth.svg",),
    "round_overhead": (),
    "updates": ("100", "64"),
    "sums": (),
    "robust": ("100", "16"),
    "formats": (),
    "auto_format": (),
    "hub": (),
    "secure_sums": (),
    "deploy_time": (),
}
"""Scripts that take minutes, in the order of their sections."""
DAEMONS = ("daemon_rounds", "growth", "round_overhead", "hub", "deploy_time")
MOST_SECONDS = 3600
"""What a script may take; the peers of `big_rounds`, and ten sites to deploy, take longest."""
CLEAN_UP_SECONDS = 300
"""What it has then to take down what it has started."""
HEAD = """# Measured

Written by `make bench`: each script's claim, and what it printed. Ratios are against a peer or a
limit measured in the same run. Peers are of the versions in `peers.txt`.
"""


def main(names: list[str]) -> None:
    """Run the scripts named, or all, and replace their sections."""
    sections, failed = read(RESULTS), []
    for name in names or ARGUMENTS:
        try:
            sections[name] = measure(name)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            failed.append(name)
        body = "".join(f"\n## {key}\n\n{sections[key]}" for key in ARGUMENTS if key in sections)
        RESULTS.write_text(HEAD + body)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def read(file: Path) -> dict[str, str]:
    """Sections by name; none where there is no file yet."""
    text = file.read_text() if file.exists() else ""
    parts = re.split(r"^## (\w+)\n\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.rstrip() + "\n" for part in parts[1::2]), strict=True))


def measure(name: str) -> str:
    """One section: the claim, the machine, the command and its output."""
    before = PRIVATE if name in DAEMONS else ()
    command = (*before, "-m", f"benchmarks.{name}", *ARGUMENTS[name])
    load = os.getloadavg()[0]
    print(f"{name} ...", flush=True)
    output = call((sys.executable, *command))
    shown = " ".join("python" if word == sys.executable else word for word in command)
    return (
        f"{claim(FOLDER / f'{name}.py')}\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {platform.machine()}, "
        f"load {load:.1f} before.\n\n"
        f"```console\n$ python {shown}\n{output.rstrip()}\n```\n"
    )


def call(command: tuple[str, ...]) -> str:
    """What a command printed, within its time.

    Raises:
        subprocess.CalledProcessError: It failed.
        subprocess.TimeoutExpired: It took too long, and was ended.
    """
    with subprocess.Popen(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True) as script:
        try:
            output, _ = script.communicate(timeout=MOST_SECONDS)
        except BaseException:  # Ctrl-C too
            script.terminate()
            try:
                script.wait(CLEAN_UP_SECONDS)
            finally:
                script.kill()
            raise
    if script.returncode:
        raise subprocess.CalledProcessError(script.returncode, command)
    return output


def claim(script: Path) -> str:
    """The paragraph of a script's docstring that says what it is to prove."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    return next(part for part in text.split("\n\n") if part.startswith("Claim")).replace("\n", " ")


if __name__ == "__main__":
    main(sys.argv[1:])
