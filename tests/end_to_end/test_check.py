"""`fl check` over two deployed sites, with the real daemons."""

import json

import pytest

from examples import leftovers

pytestmark = pytest.mark.daemons


def check(federation, *arguments):
    done = federation.call("fl", "check", str(federation.federation_dir), "--json", *arguments)
    assert done.stderr == ""
    rows = json.loads(done.stdout)
    return done.returncode, {(row["client_id"], row["check"]): row for row in rows}


def test_a_deployed_federation_passes_and_nothing_is_left(federation):
    stored = leftovers.stores(federation.dir)
    code, rows = check(federation)
    assert [row for row in rows.values() if not row["ok"]] == []
    assert code == 0
    for site in ("site-a", "site-b"):
        assert rows[site, "way"]["message"] == "models travel by ProxyStore"
        assert "to the server" in rows[site, "upload"]["message"]
        assert "10 classes (0 to 9)" in rows[site, "data"]["message"]
        assert rows[site, "step"]["message"].startswith("one step of training, loss 2.3")
    assert leftovers.stores(federation.dir) == stored


def test_one_sites_fault_is_found_at_its_worker(federation):
    stored = leftovers.stores(federation.dir)
    code, rows = check(federation, "--set=clients.site-b.data_configs.dataset_path=digits/mine.py")
    assert code == 1
    (fault,) = [row for row in rows.values() if not row["ok"]]
    assert (fault["client_id"], fault["check"]) == ("site-b", "site code")
    assert "digits/mine.py: not in this site's code folder" in fault["message"]
    assert "playbooks/environment.yml -i INVENTORY --limit site-b" in fault["remedy"]
    assert leftovers.stores(federation.dir) == stored
