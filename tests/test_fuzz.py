"""Decoders under a coverage-guided fuzzer for a few seconds; `python -m tests.fuzz` does longer."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import TOP

pytest.importorskip("atheris", reason="atheris has no wheel for this platform (see pyproject.toml)")


@pytest.mark.parametrize("kind", ["model", "header", "update", "log", "records"])
def test_nothing_crashes_hangs_or_takes_memory(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", kind, tmp_path, "-max_total_time=1"],
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
