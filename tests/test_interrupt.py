"""What a benchmark or a test session that is terminated leaves."""

import subprocess
import sys
import time

from tests.conftest import TOP

BENCHMARK = """
import time
import benchmarks
try:
    print("started", flush=True)
    time.sleep(60)
finally:
    print("taking down", flush=True)
    time.sleep(0.5)
    print("taken down", flush=True)
"""


def test_a_benchmark_that_is_terminated_twice_takes_down_what_it_started_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK], cwd=TOP, stdout=subprocess.PIPE, text=True
    )
    for line in ("started\n", "taking down\n"):
        assert process.stdout.readline() == line
        process.terminate()
    assert process.communicate(timeout=30)[0] == "taken down\n"


SESSION = """
import pathlib
import time
import pytest

HERE = pathlib.Path(__file__).parent

@pytest.fixture(scope="session")
def daemon():
    (HERE / "started").touch()
    yield
    (HERE / "taken down").touch()

def test_it(daemon):
    time.sleep(60)
"""


def test_a_test_session_that_is_terminated_takes_down_what_it_started(tmp_path):
    (tmp_path / "test_session.py").write_text(SESSION)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", tmp_path]
    process = subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[0]
    assert (tmp_path / "taken down").exists()
