"""A client secret that has leaked: changed while a run goes on, and of no use from then on."""

import json
import secrets
import signal

import pytest

from fl.endpoints.credentials import read_environment
from tests.conftest import OWN
from tests.end_to_end.test_attacks import attack, train_request
from tests.end_to_end.test_faults import jobs, lines, run_folder, started
from tests.end_to_end.test_fl_run import fl_run, wait_for
from tests.end_to_end.test_secrecy import SITES

__all__ = ["fl_run", "started"]  # fixtures

pytestmark = pytest.mark.daemons


def know(federation, *known):
    """Have the service take these secrets of the client's alone, from now on."""
    replace(federation.dir / "client_secret", "\n".join(known))


def know_own(federation, *known):
    """As `know`, of the client that one site has for itself."""
    file = federation.dir / "clients" / f"{OWN}.json"
    replace(file, json.dumps(json.loads(file.read_text()) | {"secrets": known}))


def replace(file, text):
    """Write a secret as a whole, for nobody else's eyes."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(file)


def many_short_rounds(server, clients):
    """So many that the run goes on when everything else is done."""
    server["server_configs"] |= {"num_global_epochs": 500, "round_deadline": 200}
    server["client_configs"]["train_configs"] |= {"mode": "seconds", "num_local_seconds": 2}


def test_a_secret_is_changed_with_no_round_lost_and_the_old_one_refused_at_once(
    federation, started, tmp_path, monkeypatch
):
    """As at Globus, both are good for a while; the thief has tokens of the old one, or asks."""
    leaked = federation.credentials | {"GLOBUS_COMPUTE_USER_DIR": str(tmp_path / "tokens")}
    monkeypatch.setattr(type(federation), "credentials", leaked)

    def tried():
        asked = train_request(client_id="thief")
        return attack(federation, "foreign request", tmp_path / "marker", asked)

    assert "not a reference to a model" in tried(), "the secret did not open what it should"
    old, new = leaked["GLOBUS_COMPUTE_CLIENT_SECRET"], secrets.token_urlsafe(32)
    know(federation, new, old)
    run = started(many_short_rounds)
    wait_for(lambda: run.poll() is not None or jobs(federation, "site-b", 1), seconds=90)
    federation.play("playbooks/rotate-credentials.yml")
    assert {held(federation, site) for site in SITES if site != OWN} == {new}
    done = len(rounds(tmp_path))
    wait_for(lambda: run.poll() is not None or len(rounds(tmp_path)) > done, seconds=150)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    run.wait(60)
    numbers = range(1, len(rounds(tmp_path)) + 1)
    assert [(line["round"], len(line["updates"])) for line in rounds(tmp_path)] == [
        (number, 2) for number in numbers
    ]

    know(federation, new)
    assert "401" in (with_tokens := tried()), with_tokens
    leaked["GLOBUS_COMPUTE_USER_DIR"] = str(tmp_path / "none")
    assert "invalid_client" in (without := tried()) or "401" in without, without


def test_one_sites_secret_is_changed_and_revoked_alone(federation):
    """A refused one reaches nobody, the new one site and server; a revoked one is told of."""
    before = {site: held(federation, site) for site in SITES}
    new = secrets.token_urlsafe(32)
    limited = ("playbooks/rotate-credentials.yml", "--limit", OWN)
    wrong = federation.play(*limited, check=False, fl_client_secret="wrong")
    assert wrong.returncode == 2
    said = " ".join((wrong.stdout + wrong.stderr).split())
    assert "Globus refused the secret (401" in said
    assert f"Check that fl_client_secret of {OWN} holds the new secret" in said
    assert {site: held(federation, site) for site in SITES} == before
    know_own(federation, new, before[OWN])
    right = federation.play(*limited)
    assert new not in right.stdout + right.stderr
    assert {site: held(federation, site) for site in SITES} == before | {OWN: new}
    assert told_by_server(federation) == new
    know_own(federation, "another")
    try:
        found = checks(federation)
        assert found["site-a"]["ok"]
        assert "Globus refused the client credentials (401" in found[OWN]["message"]
        assert (
            "playbooks/rotate-credentials.yml -i INVENTORY --limit site-b" in found[OWN]["remedy"]
        )
    finally:
        know_own(federation, new)
    assert all(row["ok"] for row in checks(federation).values())


def checks(federation):
    """What `fl check` finds of each site's endpoint."""
    done = federation.call("fl", "check", str(federation.federation_dir), "--quick", "--json")
    rows = json.loads(done.stdout)
    return {row["client_id"]: row for row in rows if row["check"] == "endpoint"}


def told_by_server(federation):
    """The secret by which the server acts at the site that has its own."""
    file = federation.dir / "home" / "secrets" / "clients" / f"{OWN}.env"
    return read_environment(file)["GLOBUS_COMPUTE_CLIENT_SECRET"]


def held(federation, site):
    """The secret that a site's daemons get."""
    file = federation.dir / site / "secrets" / "credentials.env"
    return read_environment(file)["GLOBUS_COMPUTE_CLIENT_SECRET"]


def rounds(tmp_path):
    """What a run has noted of its rounds so far."""
    file = run_folder(tmp_path) / "metrics.jsonl"
    return lines(file) if file.exists() else []
