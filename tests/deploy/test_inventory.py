"""Inventories that cannot work: each is refused before the first change, saying what to write."""

import json
import subprocess

import pytest

from tests.conftest import TOP, sandbox_environment


@pytest.fixture
def play(tmp_path):
    """Run a playbook over a sandbox folder that looks alive, with variables put in."""
    (tmp_path / "service.json").write_text(
        json.dumps(
            {
                "client_id": "11111111-2222-4333-8444-555555555555",
                "relay": "ws://127.0.0.1:1",
                "environment": {},
            }
        )
    )
    (tmp_path / "client_secret").write_text("hush\n")

    def _play(playbook="playbooks/environment.yml", **variables):
        done = subprocess.run(
            [
                "ansible-playbook",
                "-i",
                "inventory/sandbox.ini",
                "-e",
                json.dumps({"fl_federation_dir": str(tmp_path / "federation")} | variables),
                playbook,
            ],
            cwd=TOP,
            env=sandbox_environment(tmp_path) | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not any((tmp_path / site).exists() for site in ("home", "site-a", "site-b"))
        return done

    return _play


def require_named(done, told):
    """See that a play was refused, each variable by its name and in its own words."""
    assert done.returncode == 2
    for name, message in told.items():
        assert name in done.stdout + done.stderr
        assert message in done.stdout + done.stderr


def test_values_that_are_none_of_a_kind_are_refused_by_name(play):
    done = play(fl_environment_kind="pixi", fl_keep_up="at", fl_proxystore_port="eighty")
    told = {
        "fl_environment_kind": "must be one of: venv, conda, existing, got: pixi",
        "fl_keep_up": "must be one of: cron, systemd, scrontab, none, got: at",
        "fl_proxystore_port": "'eighty'",
    }
    require_named(done, told)


def test_bad_values_are_named_at_once(play):
    done = play(
        fl_environment_kind="conda",
        fl_proxystore_max_object_size=10**10,
        fl_python_archive="/nowhere.tar",
        fl_python_archive_sha256="12ab",
        fl_proxystore_relay="http://relay",
        fl_compute_walltime=3600,
        fl_client_id="me",
        fl_compute_engine="cobalt",
        fl_site_dir="fl",
        fl_audit_log="audit",
        fl_experiment="/nowhere",
    )
    told = {
        "fl_environment_kind": "fl_environment_lock must be a file",
        "fl_proxystore_max_object_size": "has no effect any more, since models go",
        "fl_python_archive": "fl_python_archive must be a file",
        "fl_python_archive_sha256": "fl_python_archive_sha256 must be its SHA-256",
        "fl_proxystore_relay": "must begin with ws:// or wss://",
        "fl_compute_walltime": "in quotes, not 3600",
        "fl_client_id": "fl_client_id must be the UUID of your Globus application",
        "fl_compute_engine": "(local, pbspro, slurm), not cobalt",
        "fl_site_dir": "fl_site_dir must be an absolute path, not fl",
        "fl_audit_log": "fl_audit_log must be an absolute path or empty",
        "fl_experiment": "fl_experiment must be a folder with an experiment.yml",
    }
    require_named(done, told)


def test_more_bad_values_are_named_at_once(play):
    """Those of rules that hold for another environment, and of a relay with a password."""
    done = play(
        fl_environment_kind="existing",
        fl_environment_site_packages=["torch"],
        fl_compute_heartbeat_period=1,
        fl_proxystore_name="a b",
        fl_proxystore_relay="wss://me:hunter2@relay",
        fl_proxystore_relay_auth="password",
        fl_relay_certificate="cert.pem",
        fl_compute_multi_node=True,
        fl_compute_multi_node_launcher="srun",
        fl_compute_max_workers_per_node=4,
    )
    assert "fl_environment_site_packages is for fl_environment_kind venv, not" in done.stdout
    assert "fl_compute_heartbeat_period must be 5 at least" in done.stdout
    assert "fl_proxystore_name may hold letters" in done.stdout
    assert "hold no password, not wss://[redacted]@relay" in done.stdout
    assert "the inventory has no group [relay]" in done.stdout
    assert "fl_relay_certificate and fl_relay_certificate_key need each other" in done.stdout
    assert "fl_compute_multi_node_launcher, a command with {nodes} in it" in done.stdout
    assert "needs fl_compute_multi_node_interface" in done.stdout
    assert "set fl_compute_max_workers_per_node to 1" in done.stdout
    assert "hunter2" not in done.stdout


def test_a_site_with_a_client_of_its_own_is_refused_the_hosted_relay(play, tmp_path):
    """It lets only endpoints of one identity meet."""
    (tmp_path / "clients").mkdir()
    own = {"site": "site-b", "client_id": "22222222-2222-4333-8444-555555555555"}
    (tmp_path / "clients" / "site-b.json").write_text(json.dumps(own | {"secrets": ["hush"]}))
    done = play(fl_proxystore_relay_auth="globus")
    assert done.returncode == 2
    assert "fl_client_id of site-b is another than the server's, and ProxyStore's" in done.stdout
    assert "add a group [relay] to the inventory" in done.stdout


def test_a_missing_sandbox_says_to_start_it(play, tmp_path):
    (tmp_path / "service.json").unlink()
    done = play()
    assert done.returncode == 2
    assert "Run `fl sandbox up` first" in done.stdout


def test_two_endpoints_on_one_port_are_refused(play):
    done = play("playbooks/proxystore.yml", fl_proxystore_port=23456)
    assert done.returncode == 2
    assert (
        "home and site-a and site-b are both configured on port 23456 on this machine"
        in done.stdout
    )


def test_an_empty_secret_is_refused(play):
    done = play("playbooks/credentials.yml", fl_client_secret="")
    assert done.returncode == 2
    assert "fl_client_secret is empty" in done.stdout
