"""fl-run with sealed updates, with clients in processes on this machine."""

import stat

from rich.console import Console

from fl.config_files import Files
from fl.record import SEALED_BY, Record
from fl.run import run
from tests.test_run import EXAMPLES, files

__all__ = ["files"]  # a fixture


def test_a_sealed_run_learns_and_leaves_no_key(files, tmp_path, monkeypatch):
    def change(server, clients):
        server["server_configs"].setdefault("comm_configs", {})["sealing"] = True
        server["server_configs"] |= {"num_global_epochs": 1, "federated_evaluation": 1}

    folder = files(change)
    monkeypatch.setenv("FL_SITE_CODE", str(EXAMPLES))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    outcome = run(Files(folder / "server.yaml", folder / "clients.yaml"), Console(quiet=True))
    assert outcome.accuracy > 0.5
    assert len(outcome.at_sites.sites) == 2
    assert not (outcome.folder / SEALED_BY).exists()


def test_its_key_is_one_through_all_processes_and_its_owners_alone(tmp_path):
    record = Record(tmp_path)
    secret = record.sealing_secret()
    assert record.sealing_secret() == secret and len(secret) == 64
    assert stat.S_IMODE((tmp_path / SEALED_BY).stat().st_mode) == 0o600
    others = [file for file in tmp_path.rglob("*") if file.name != SEALED_BY and file.is_file()]
    assert not any(secret[:32] in file.read_bytes() for file in others)
