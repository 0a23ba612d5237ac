"""Every fault that a check can find comes with something to do."""

import pytest

from fl.client.check import Item
from fl.config import Federation
from fl.remedies import remedy
from tests import experiment

ENDPOINT = "3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"


@pytest.fixture
def federation(tmp_path):
    files = experiment.server_file(tmp_path) | experiment.clients_file()
    files["clients"][0]["endpoint_id"] = ENDPOINT
    return Federation.model_validate(files, strict=False)


@pytest.mark.parametrize(
    ("check", "message", "command"),
    [
        ("endpoint", "endpoint is offline", "playbooks/restart.yml -i INVENTORY --limit site-a"),
        (
            "endpoint",
            "Globus refused the client credentials (401 invalid_client)",
            "playbooks/rotate-credentials.yml -i INVENTORY --limit site-a",
        ),
        ("worker", "no worker answered", "playbooks/health.yml -i INVENTORY --limit site-a"),
        ("versions", "torch 1.0", "playbooks/upgrade.yml -i INVENTORY --limit site-a"),
        ("clock", "9 s or more ahead", "chronyc tracking"),
        ("disk", "1 kB free", "FL_SITE_STATE"),
        ("device", "is not here", "--set clients.site-a.train_configs.device=auto"),
        ("model", "raised", "playbooks/environment.yml -i INVENTORY --limit site-a"),
        ("data", "raised", "playbooks/environment.yml -i INVENTORY --limit site-a"),
        ("step", "shapes", "--set client_configs.model_configs.model_kwargs="),
        ("step", "CUDA out of memory", "--set clients.site-a.train_configs.train_batch_size="),
        ("validation", "CUDA out of memory", "--set clients.site-a.train_configs.val_batch_size="),
        ("validation", "returns no validation set", "leave out do_validation"),
        (
            "device",
            "nnodes asks for 4 nodes, and this worker's job has 1",
            "--set clients.site-a.train_configs.nnodes=",
        ),
        (
            "device",
            "nproc_per_node asks for 4 cuda devices or more, and this worker has 1",
            "--set clients.site-a.train_configs.nproc_per_node=",
        ),
        (
            "device",
            "the launcher 'srunn' of FL_NODE_LAUNCHER is not on this node's path",
            "playbooks/compute.yml -i INVENTORY --limit site-a",
        ),
        ("device", "nproc_per_node takes device: cuda, not one of them", "train_configs.device="),
        ("step", "needs packages: pip install 'fl-hpc[privacy]'", "fl_environment_extras"),
        ("way", "no ProxyStore endpoint of this federation answers", "fl_proxy: unset"),
        (
            "download",
            "ProxyStore get failed: Failed to establish a new connection",
            "playbooks/restart.yml -i INVENTORY --limit site-a",
        ),
        ("download", "ProxyStore get failed: 500", "playbooks/health.yml"),
        ("download", "hub GET of h/fl/0 failed: ProxyError: 403 Filtered", "CONNECT to the hub"),
        ("download", "hub GET of h/fl/0 failed: CERTIFICATE_VERIFY_FAILED", "hub_ca_file"),
        ("download", "hub GET of h/fl/0 failed: 410 Gone: the URL has expired", "--resume"),
        ("upload", "hub PUT of h/fl/0 failed: ConnectionError", "playbooks/hub.yml -i INVENTORY"),
        ("upload", "Redis at redis:6379: Error 111 connecting: refused", "is it up, and reached"),
        ("upload", "something new", "the endpoint's log"),
        ("policy", "refuses the task: shipped_source: data.py is not", "list that digest"),
        ("policy", "lets in 4 rounds a run, and the run has 5", "num_global_epochs=NUMBER, or ask"),
        (
            "step",
            "loss became nan at step 1; are the inputs finite?",
            "where inputs are not finite",
        ),
        ("validation", "the loss gives [32] float32", "loss_fn_kwargs={}, or mend the loss"),
    ],
)
def test_at_a_site(federation, check, message, command):
    item = Item(check, "failed", message, 0.0)
    assert command in remedy(item, federation.clients[0], federation)


def test_what_a_process_here_lacks_is_installed_here(federation):
    item = Item("step", "failed", "dp_sgd: pip install 'fl-hpc[privacy]'", 0.0)
    assert remedy(item, federation.clients[1], federation).startswith("pip install")


def test_a_process_here_has_no_queue(federation):
    item = Item("worker", "failed", "no worker answered", 0.0)
    assert "--deadline" in remedy(item, federation.clients[1], federation)


@pytest.mark.parametrize(
    ("check", "message", "command"),
    [
        ("files", "has no effect", "docs/appfl.md"),
        ("source", "cannot be read", "FL_SITE_CODE"),
        ("model", "not in this site's code folder", "FL_SITE_CODE"),
        ("model", "raised", "code.py"),
        ("training", "no class", "--set KEY=VALUE"),
        ("algorithm", "unknown", "--set KEY=VALUE"),
        ("held-out set", "raised", "leave out server_validation"),
        ("run folder", "cannot be written", "--set server_configs.logging_output_dirname="),
        ("ways", "no ProxyStore endpoint", "playbooks/proxystore.yml -i INVENTORY --limit server"),
        ("ways", "too large to travel", "ProxyStore"),
        ("ways", "Globus refused the client credentials", "playbooks/credentials.yml"),
    ],
)
def test_at_the_server(federation, check, message, command):
    assert command in remedy(Item(check, "failed", message, 0.0), None, federation)
