"""The files of APPFL's tutorial over two deployed sites, with the real daemons."""

import json

import pytest
import yaml

from examples import leftovers
from tests.appfl_files import write_code, write_files

pytestmark = pytest.mark.daemons


@pytest.fixture
def tutorial(federation, tmp_path):
    """Writes the tutorial's files with this federation's ids; returns how to run them."""
    server = yaml.safe_load(federation.server_yaml.read_text())["server_configs"]["comm_configs"]
    clients = yaml.safe_load(federation.clients_yaml.read_text())["clients"]
    stores = server["proxystore_configs"]["connector_configs"]["endpoints"]
    write_files(tmp_path, tuple(client["endpoint_id"] for client in clients), tuple(stores))
    write_code(tmp_path)
    globus = json.dumps(server["globus_compute_configs"])
    own = [
        f"--set=clients.Client{number}.comm_configs.globus_compute_configs={json.dumps(configs)}"
        for number, client in enumerate(clients, start=1)
        if (configs := client["comm_configs"].get("globus_compute_configs"))
    ]

    def run(kind, *sets):
        return federation.call(
            "env",
            f"FL_SITE_CODE={tmp_path}",
            "fl-run",
            f"--server={tmp_path}/server_fedavg{kind}.yaml",
            f"--clients={tmp_path}/clients{kind}.yaml",
            f"--set=server_configs.comm_configs.globus_compute_configs={globus}",
            f"--set=server_configs.logging_output_dirname={tmp_path}/output",
            "--set=client_configs.train_configs.num_local_steps=5",
            *own,
            *sets,
        )

    return run


@pytest.fixture
def owners(federation):
    """Lets every site's owner add rules to the policy; they take them back in the end."""
    files = [federation.dir / site / "site-policy.yaml" for site in ("site-a", "site-b")]
    before = [file.read_text() for file in files]

    def add(**rules):
        for file, text in zip(files, before, strict=True):
            file.write_text(yaml.safe_dump((yaml.safe_load(text) or {}) | rules))

    yield add
    for file, text in zip(files, before, strict=True):
        file.write_text(text)


@pytest.fixture(scope="module")
def copied(federation, tmp_path_factory):
    """The tutorial's code is in the sites' code folders."""
    folder = tmp_path_factory.mktemp("code")
    write_code(folder)
    done = federation.call(
        *("ansible", "sites", "-i", str(federation.inventory), "-m", "copy", "-a"),
        f"src={folder}/resources dest={{{{ fl_site_dir }}}}/site_code/ "
        "mode=0600 directory_mode=0700",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_source_is_shipped_to_sites_that_let_it_in_alone(federation, tutorial, owners, tmp_path):
    audit = federation.dir / "site-a" / "audit.jsonl"
    before = len(audit.read_text()) if audit.exists() else 0
    ship = "--set=server_configs.ship_source=true"
    refused = tutorial("", ship)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "this site's policy refuses the task: shipped_source: " in refused.stderr
    owners(shipped_source="all")
    done = tutorial("", ship, "--set=server_configs.num_global_epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (federation.dir / "site-a" / "site_code" / "resources").exists()
    assert '"shipped"' in audit.read_text()[before:]
    assert len(list((tmp_path / "output").iterdir())) == 2


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("kind", ["", "_proxystore"])
def test_the_tutorials_files_run_with_the_sandboxs_ids(federation, tutorial, tmp_path, kind):
    stored = leftovers.stores(federation.dir)
    done = tutorial(kind)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "output").iterdir()
    assert run.name.startswith("result-")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {update["client_id"] for update in last["updates"]} == {"Client1", "Client2"}
    assert {"val_metric", "pre_val_metric"} <= set(last["updates"][0]["metrics"])
    assert (run / "model.safetensors").exists()
    assert leftovers.stores(federation.dir) == stored
