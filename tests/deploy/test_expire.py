"""What a deployment removes of jobs that are long over, and what it leaves."""

import os
import subprocess
import sys
import time

from tests.conftest import BIN, TOP, sandbox_environment
from tests.deploy.test_teardown import lay_out

EXPIRED = [
    "block-1/uep.1/submit_scripts/parsl.block-0.sh",
    "block-1/uep.1/GlobusComputeEngine/block-12/3f2a/manager.log",
]
KEPT = [
    "block-1/config.yaml",
    "block-1/endpoint.json",
    "block-1/uep.1/endpoint.log",
    "block-1/uep.1/GlobusComputeEngine/interchange.log",
]
AT_WORK = "block-1/uep.1/GlobusComputeEngine/block-13/3f2b/manager.log"


def test_files_of_jobs_that_are_long_over_go_and_nothing_else(tmp_path):
    """Whatever the endpoint, or a folder above it, is called."""
    site = tmp_path / "block-0/submit_scripts/site"
    folder = site / "globus_compute"
    lay_out(folder, *EXPIRED, *KEPT, AT_WORK)
    long_ago = time.time() - 32 * 24 * 3600
    for name in (*EXPIRED, *KEPT):
        os.utime(folder / name, (long_ago, long_ago))
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={site}\n[all:vars]\n"
        f"ansible_python_interpreter={sys.executable}\n"
        "fl_client_id=11111111-2222-4333-8444-555555555555\n"
    )
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", tmp_path / "sites.ini", "tests/deploy/expire.yml"],
        cwd=TOP,
        env=sandbox_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == {*KEPT, AT_WORK}
