"""The files of APPFL's tutorial over two deployed sites, with the real daemons."""

import json

import pytest
import yaml

from examples import leftovers
from tests.appfl_files import write_code, write_files

pytestmark = pytest.mark.daemons


@pytest.mark.parametrize("kind", ["", "_proxystore"])
def test_the_tutorials_files_run_with_the_sandboxs_ids(federation, tmp_path, kind):
    server = yaml.safe_load(federation.server_yaml.read_text())["server_configs"]["comm_configs"]
    clients = yaml.safe_load(federation.clients_yaml.read_text())["clients"]
    stores = server["proxystore_configs"]["connector_configs"]["endpoints"]
    write_files(tmp_path, tuple(client["endpoint_id"] for client in clients), tuple(stores))
    for folder in (
        tmp_path,
        *(federation.dir / name / "site_code" for name in ("site-a", "site-b")),
    ):
        write_code(folder)
    globus = json.dumps(server["globus_compute_configs"])
    done = federation.call(
        "env",
        f"FL_SITE_CODE={tmp_path}",
        "fl-run",
        f"--server={tmp_path}/server_fedavg{kind}.yaml",
        f"--clients={tmp_path}/clients{kind}.yaml",
        f"--set=server_configs.comm_configs.globus_compute_configs={globus}",
        f"--set=server_configs.logging_output_dirname={tmp_path}/output",
        "--set=client_configs.train_configs.num_local_steps=5",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "output").iterdir()
    assert run.name.startswith("result-")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {update["client_id"] for update in last["updates"]} == {"Client1", "Client2"}
    assert {"val_metric", "pre_val_metric"} <= set(last["updates"][0]["metrics"])
    assert (run / "model.safetensors").exists()
    assert leftovers.stores(federation.dir) == []
