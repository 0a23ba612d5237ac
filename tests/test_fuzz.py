"""Decoders under a coverage-guided fuzzer, 2,000 inputs each; `python -m tests.fuzz` does more."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import TOP

pytest.importorskip("atheris", reason="atheris has no wheel for this platform (see pyproject.toml)")


# So many inputs and not seconds, of any length: on a busy machine as much is reached.
BOUNDS = ["-runs=2000", "-seed=1", "-len_control=0"]


@pytest.mark.parametrize("kind", ["model", "header", "update", "log", "records"])
def test_nothing_crashes_hangs_or_takes_memory(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", kind, tmp_path, *BOUNDS],
        cwd=TOP,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reached = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    assert reached[-1] > reached[0], "no input reached more than the first ones did"
