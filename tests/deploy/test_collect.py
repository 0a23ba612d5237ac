"""What leaves a site in a bug report, and what must not."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import TOP, sandbox_environment

SECRET = "s3cret/with+odd=characters"


@pytest.fixture
def site(tmp_path) -> Path:
    for name in ("bin", "secrets", "logs", "globus_compute/alpha", "globus_compute/uep.1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin/collect").write_bytes((TOP / "templates/site/collect.py").read_bytes())
    (tmp_path / "secrets/credentials.env").write_text(
        f"GLOBUS_COMPUTE_CLIENT_ID=11111111\nGLOBUS_COMPUTE_CLIENT_SECRET='{SECRET}'\n"
    )
    (tmp_path / "logs/compute.log").write_text(
        f"started\nwith {SECRET} in a traceback\nAuthorization: Bearer abc.DEF-123==\n"
        "amqps://endpoint:hunter2@broker:5671/%2F\n{'access_token': 'tok-456'}\nended\n"
    )
    (tmp_path / "globus_compute/uep.1/endpoint.log").write_text("sbatch: error: no account\n")
    (tmp_path / "globus_compute/storage.db").write_text("tok-456")
    (tmp_path / "logs/link.log").symlink_to(tmp_path / "secrets/credentials.env")
    return tmp_path


def collect(site: Path) -> tuple[bytes, dict[str, str]]:
    archive = site.parent / f"{site.name}.tar.gz"
    subprocess.run([sys.executable, site / "bin/collect", archive], check=True, timeout=60)
    with tarfile.open(archive) as packed:
        return archive.read_bytes(), {
            member.name.removeprefix(f"{site.name}/"): packed.extractfile(member).read().decode()
            for member in packed
        }


def test_logs_are_packed_without_secrets(site):
    _, files = collect(site)
    assert sorted(files) == ["globus_compute/uep.1/endpoint.log", "logs/compute.log"]
    assert files["globus_compute/uep.1/endpoint.log"] == "sbatch: error: no account\n"
    assert files["logs/compute.log"] == (
        "started\nwith [redacted] in a traceback\nAuthorization: Bearer [redacted]\n"
        "amqps://endpoint:[redacted]@broker:5671/%2F\n{'access_token': '[redacted]'}\nended\n"
    )


def test_a_url_of_the_hub_is_packed_without_its_signature(site):
    """nginx writes the request into its error log where the disk is full, for one."""
    (site / "logs/hub.log").write_text(
        '[crit] 1#1: *1 pwrite() failed (28: No space left on device), request: "PUT /fl/0f/0'
        '?e=1764439800&s=mtwpz-1Y_gl8AGOc7Qf9kw HTTP/1.1", host: "hub:8443"\n'
    )
    log = collect(site)[1]["logs/hub.log"]
    assert '/fl/0f/0?e=1764439800&s=[redacted] HTTP/1.1", host' in log
    assert "mtwpz" not in log


def test_unchanged_logs_give_the_same_archive(site):
    assert collect(site)[0] == collect(site)[0]


def test_of_a_large_log_the_end(site):
    (site / "logs/compute.log").write_text("first\n" + "x" * 1_000_000 + "\nlast\n")
    log = collect(site)[1]["logs/compute.log"]
    assert len(log) == 1_000_000
    assert log.endswith("\nlast\n")


def test_a_site_without_its_environment_is_asked_all_the_same(site, tmp_path_factory):
    federation = tmp_path_factory.mktemp("federation")
    (federation / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={site}\n"
    )
    variables = {
        "ansible_python_interpreter": sys.executable,
        "fl_client_id": "11111111-2222-4333-8444-555555555555",
        "fl_federation_dir": str(federation),
    }
    command = ["ansible-playbook", "-i", federation / "sites.ini", "-e", json.dumps(variables)]
    done = subprocess.run(
        [*command, "playbooks/collect-logs.yml"],
        cwd=TOP,
        env=sandbox_environment(federation),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(federation / "logs/home.tar.gz") as packed:
        assert f"{site.name}/logs/compute.log" in packed.getnames()
