"""fl-run with secure sums, with clients in processes on this machine; and what it refuses."""

import json

import pytest
from rich.console import Console

from fl.algorithm import Algorithm
from fl.client.audit import verify
from fl.config import ConfigError
from fl.config_files import Files
from fl.endpoints.credentials import prepare_environment
from fl.plan import plan
from fl.run import run
from tests import experiment
from tests.test_run import EXAMPLES, files

__all__ = ["files"]  # a fixture

SECURE = {"aggregator": "SecureFedAvgAggregator", "aggregator_kwargs": {"clip_norm": 10.0}}


def test_a_run_of_secure_sums_learns_and_its_sites_show_no_update(files, tmp_path, monkeypatch):
    def change(server, clients):
        server["server_configs"] |= {**SECURE, "num_global_epochs": 2}
        server["server_configs"].setdefault("comm_configs", {})["sealing"] = True

    folder = files(change)
    rules = "secure_aggregation: {min_sites: 2}\nsealed_updates: true\n"
    (tmp_path / "policy.yaml").write_text(rules)
    monkeypatch.setenv("FL_SITE_CODE", str(EXAMPLES))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("FL_SITE_AUDIT", str(tmp_path / "audit.jsonl"))
    outcome = run(Files(folder / "server.yaml", folder / "clients.yaml"), Console(quiet=True))
    assert outcome.accuracy > 0.6
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").open()]
    assert all({"agree", "unmask"} <= line["seconds"].keys() for line in lines)
    verify(tmp_path / "audit.jsonl")
    asked = [json.loads(line) for line in (tmp_path / "audit.jsonl").open()]
    admitted = [line["operation"] for line in asked if line["event"] == "admitted"]
    expected = ["advertise", "share", "train", "confirm", "unmask"]
    assert {name: admitted.count(name) for name in expected} == dict.fromkeys(expected, 4)


@pytest.fixture
def described(tmp_path, monkeypatch):
    """The small experiment with secure sums, and more settings; gives its files."""
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))

    def describe(server_configs=None, train_configs=None, compressor=None):
        def change(server, clients):
            server["server_configs"] |= {**SECURE, **(server_configs or {})}
            server["client_configs"]["train_configs"] |= train_configs or {}
            comm = {"compressor_configs": {"enable_compression": True, **(compressor or {})}}
            if compressor:
                server["client_configs"]["comm_configs"] = comm

        folder = experiment.write(tmp_path, change)
        return Files(folder / "server.yaml", folder / "clients.yaml")

    return describe


def refusal(files):
    federation = files.load()
    prepare_environment(federation, files.site_code)
    with pytest.raises(ConfigError) as refused:
        Algorithm(federation, files.server)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compressor": {"top_k": 0.1}}, "cannot be made narrower, nor compressed"),
        ({"compressor": {"lossy_compressor": "int8"}}, "cannot be made narrower"),
        (
            {"server_configs": {"scheduler": "AsyncScheduler"}},
            "server_configs.scheduler: AsyncScheduler does not go with SecureFedAvgAggregator",
        ),
        (
            {"server_configs": {"min_clients": 1}},
            "server_configs.min_clients is 1, but it takes 2 sites to unmask a sum",
        ),
        (
            {"train_configs": {"trainer": "ScaffoldTrainer"}},
            "ScaffoldAggregator and ScaffoldTrainer need each other",
        ),
        (
            {"server_configs": {"aggregator_kwargs": {"threshold": 1}}},
            "needs more than half of them, and two at least, not 1",
        ),
        ({"server_configs": {"aggregator_kwargs": {"threshold": 3}}}, "at least, not 3"),
        (
            {"server_configs": {"aggregator_kwargs": {"noise_multiplier": 1.0}}},
            "aggregator_kwargs.noise_multiplier: unknown key",
        ),
    ],
)
def test_what_needs_single_updates_is_refused_in_one_line(described, settings, expected):
    assert expected in refusal(described(**settings))


def test_a_plan_tells_what_masked_updates_take(described, tmp_path):
    secure = plan(described())
    clear = plan(described({"aggregator": "FedAvgAggregator", "aggregator_kwargs": {}}))
    numbers = 4 * 8 + 8 + 8 * 2 + 2
    assert secure.model_bytes == clear.model_bytes == clear.update_bytes
    assert 8 * numbers < secure.update_bytes < 8 * numbers + 400
