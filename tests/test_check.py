"""`fl check`: what it asks, what it says, and that nobody holds it up."""

import json
import math
import threading
from concurrent.futures import Future

import pytest
from click.testing import CliRunner

from fl import check as checks
from fl import check_sites
from fl.cli import main
from fl.client import masking, task
from fl.config_files import Files
from fl.endpoints.base import EndpointError
from fl.tensors import digest
from fl.transport import GoneError, Ref, TransportError
from tests import experiment
from tests.in_process import InProcess

OF_A_SITE = ["worker", "versions", "clock", "way", "download", "upload"]
OF_A_RUN = ["policy", "disk", "device", "model", "data", "step", "validation"]


class Shelf:
    """A transport whose objects lie in this process, for both sides."""

    limit = 5_000_000

    def __init__(self):
        self.held = {}

    def put(self, *pieces):
        data = b"".join(pieces)
        key = str(len(self.held))
        self.held[key] = data
        return Ref("shelf", {"object": key}, len(data), digest(data))

    def get(self, ref, seconds=math.inf):
        if ref.key["object"] not in self.held:
            raise GoneError("ProxyStore has it no more")
        return self.held[ref.key["object"]]

    def evict(self, ref):
        self.held.pop(ref.key["object"], None)

    def grant(self, size):
        return None

    def close(self):
        pass


@pytest.fixture
def shelf(monkeypatch):
    shelf = Shelf()
    monkeypatch.setattr(checks, "open_server_transport", lambda _configs: shelf)
    monkeypatch.setattr(task, "_transport", lambda _configs, _upload: shelf)
    return shelf


@pytest.fixture
def run_check(tmp_path, monkeypatch):
    """Check the small experiment over sites in this process."""
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    experiment.write(tmp_path)

    def _run(endpoints, deadline=60.0, overrides=(), **how):
        monkeypatch.setattr(checks, "open_endpoints", lambda _federation: endpoints)
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml", overrides)
        return list(checks.check(files, deadline, **how))

    return _run


def of(found, name):
    return {check.check: check for check in found if check.client_id == name}


def test_everything_that_a_round_does_is_tried(run_check, shelf):
    found = run_check(InProcess())
    assert all(check.ok and not check.remedy for check in found), found
    server = ["files", "model", "training", "algorithm", "held-out set", "run folder", "ways"]
    assert list(of(found, "server")) == server
    for site in ("site-a", "site-b"):
        assert list(of(found, site)) == ["endpoint", *OF_A_SITE, *OF_A_RUN]
    data = of(found, "site-a")["data"].message
    assert data == "32 samples of [4] float32, 2 classes (0, 1); 32 to validate on"


def test_a_check_of_a_run_that_seals_shows_no_model_either(run_check, shelf, monkeypatch):
    lay, put = [], shelf.put
    monkeypatch.setattr(shelf, "put", lambda *data: lay.append(b"".join(data)) or put(lay[-1]))
    found = run_check(InProcess(), overrides=("server_configs.comm_configs.sealing=true",))
    assert all(check.ok and not check.remedy for check in found), found
    assert lay and not [data for data in lay if b"0.weight" in data]


def test_the_way_is_tried_with_the_models_size_and_left_clean(run_check, shelf):
    wide = ("client_configs.model_configs.model_kwargs={width: 10000}",)
    found = of(run_check(InProcess(), overrides=wide), "site-a")
    assert found["download"].message == "280.3 kB from the server"
    assert found["upload"].message == "280.3 kB to the server"
    assert shelf.held == {}


def test_what_scaffold_adds_travels_too(run_check, shelf):
    scaffold = (
        "server_configs.aggregator=ScaffoldAggregator",
        "client_configs.train_configs.trainer=ScaffoldTrainer",
    )
    found = run_check(InProcess(), overrides=scaffold)
    assert all(check.ok for check in found), found
    plain = run_check(InProcess())
    sizes = [of(one, "site-a")["download"].message for one in (plain, found)]
    assert sizes[0] != sizes[1]


def test_a_check_foretells_what_a_site_would_refuse_of_a_sum(run_check, tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    secure = ("server_configs.aggregator=SecureFedAvgAggregator",)
    for least, expected in ((3, "sums of 3 sites at least"), (2, None)):
        (tmp_path / "policy.yaml").write_text(f"secure_aggregation: {{min_sites: {least}}}\n")
        refused = [c.message for c in run_check(InProcess(), overrides=secure) if not c.ok]
        assert len(refused) == (2 if expected else 0), refused
        assert all(expected in message for message in refused)
    shown = [c.message for c in run_check(InProcess(), overrides=secure) if c.check == "identity"]
    assert shown == 2 * [f"in secure sums: {masking.identity()}"]


def test_quick_asks_no_worker(run_check):
    endpoints = InProcess(offline=["site-b"])
    found = run_check(endpoints, quick=True)
    assert endpoints.asked == []
    assert of(found, "site-a")["endpoint"].ok
    assert not of(found, "site-b")["endpoint"].ok
    assert (
        "playbooks/restart.yml -i INVENTORY --limit site-b"
        in of(found, "site-b")["endpoint"].remedy
    )


def test_a_silent_site_holds_no_other_up(run_check):
    found = run_check(InProcess(silent=["site-a"]), deadline=0.5)
    assert list(of(found, "site-b")) == ["endpoint", *OF_A_SITE, *OF_A_RUN]
    silent = of(found, "site-a")["worker"]
    assert silent.message == "no worker answered within 0.5 s"
    assert "--deadline" in silent.remedy


def test_a_failure_that_got_lost_is_asked_for_again(run_check, monkeypatch):
    """A user endpoint that goes down with its engine may take the failure with it."""
    monkeypatch.setattr(check_sites, "LOOK_SECONDS", 0.05)

    class Losing(InProcess):
        def submit(self, client, request):
            if client.client_id != "site-a":
                return super().submit(client, request)
            future = Future()
            if request["operation"] == "progress":
                future.set_exception(RuntimeError("qsub: Invalid account"))
            return future

    found = run_check(Losing())
    assert of(found, "site-a")["worker"].message == "qsub: Invalid account"
    assert of(found, "site-b")["step"].ok


def test_a_look_at_a_slow_task_says_nothing_of_it(run_check, monkeypatch):
    monkeypatch.setattr(check_sites, "LOOK_SECONDS", 0.05)
    late, looked = [], []

    class Slow(InProcess):
        def submit(self, client, request):
            answer = super().submit(client, request)
            if client.client_id != "site-a":
                return answer
            if request["operation"] == "rehearse":
                late.append((Future(), answer.result()))
                return late[0][0]
            looked.append(answer.result())
            if len(looked) == 2:
                late[0][0].set_result(late[0][1])
            return answer

    found = run_check(Slow())
    assert all(check.ok for check in found), found
    assert len(looked) == 2


def test_a_service_that_does_not_say_is_not_waited_for(run_check):
    said = threading.Event()

    class Slow(InProcess):
        def health(self, client):
            if client.client_id == "site-a":
                said.wait()

    try:
        found = run_check(Slow(), deadline=0.5)
    finally:
        said.set()
    assert "did not answer within" in of(found, "site-a")["endpoint"].message
    assert of(found, "site-b")["step"].ok


def test_a_site_whose_task_is_refused_is_one_fault(run_check):
    class Refusing(InProcess):
        def submit(self, client, request):
            if client.client_id == "site-a":
                raise EndpointError("refused (403)")
            return super().submit(client, request)

    found = run_check(Refusing())
    assert of(found, "site-a")["worker"].message == "refused (403)"
    assert of(found, "site-b")["step"].ok


def test_an_upload_counts_when_the_server_has_it(run_check, shelf):
    def lost(_ref, _seconds=math.inf):
        raise TransportError("ProxyStore get failed")

    shelf.get, at_the_site = lost, shelf.get

    class AtTheSite(InProcess):
        def submit(self, client, request):
            shelf.get = at_the_site
            try:
                return super().submit(client, request)
            finally:
                shelf.get = lost

    upload = of(run_check(AtTheSite()), "site-a")["upload"]
    assert not upload.ok
    assert upload.message == "to the server: ProxyStore get failed"
    assert shelf.held == {}


def test_a_worker_whose_server_has_gone_leaves_nothing(run_check, shelf):
    """A task that waited in the queue until nobody wanted its answer."""

    class Late(InProcess):
        def submit(self, client, request):
            return super().submit(client, {**request, "until": request["until"] - 100})

    found = of(run_check(Late(), deadline=60), "site-a")
    assert "the server stopped waiting" in found["worker"].message
    assert shelf.held == {}


def test_an_answer_of_another_version_is_named(run_check):
    class Old(InProcess):
        def submit(self, client, request):
            future = super().submit(client, request)
            del future.result()["result"]["items"]
            return future

    assert "another version" in of(run_check(Old()), "site-a")["worker"].message


def test_what_a_site_says_moves_no_cursor(run_check):
    class Painting(InProcess):
        def submit(self, client, request):
            future = super().submit(client, request)
            said = future.result()["result"]
            said["host"] = "\x1b]0;owned\x07node"
            said["versions"]["torch"] = "\x1b[2J"
            said["items"][0]["message"] = "fine\x1b[1A\nsite-b   worker   ok"
            return future

    found = of(run_check(Painting()), "site-a").values()
    assert len(found) > 5
    assert all(check.message.isprintable() for check in found)


@pytest.mark.parametrize(
    "item", [{"seconds": "long"}, {"seconds": 10**400}, {"message": 5}, {"more": 1}]
)
def test_an_item_that_is_none_is_an_answer_of_another_version(run_check, item):
    class Odd(InProcess):
        def submit(self, client, request):
            future = super().submit(client, request)
            future.result()["result"]["items"][0] |= item
            return future

    assert "another version" in of(run_check(Odd()), "site-a")["worker"].message


def test_a_clock_that_no_float_holds_is_an_answer_of_another_version(run_check):
    class Odd(InProcess):
        def submit(self, client, request):
            future = super().submit(client, request)
            future.result()["result"]["clock"][0] = 10**400
            return future

    assert "another version" in of(run_check(Odd()), "site-a")["worker"].message


def test_machines_get_json_and_an_exit_code(run_check, tmp_path):
    run_check(InProcess())
    arguments = ["check", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert set(rows[0]) == {"client_id", "check", "ok", "message", "remedy", "seconds"}
    done = CliRunner().invoke(main, [*arguments, "--set=clients.0.train_configs.device=cuda:99"])
    assert done.exit_code == 1
    assert [row["check"] for row in json.loads(done.stdout) if not row["ok"]] == ["device"]


def test_health_is_the_way_alone(run_check, tmp_path):
    run_check(InProcess())
    (tmp_path / "code.py").unlink()
    found = checks.health(Files(tmp_path / "server.yaml", tmp_path / "clients.yaml"), 60)
    assert [(check.client_id, check.check, check.ok) for check in found] == [
        ("site-a", "endpoint", True),
        ("site-b", "endpoint", True),
        ("site-a", "worker", True),
        ("site-b", "worker", True),
    ]
    assert "models reach worker" in found[2].message


def test_a_log_gets_a_line_a_check(run_check, tmp_path):
    run_check(InProcess())
    lines = CliRunner().invoke(main, ["check", str(tmp_path), "--quick"]).stdout.splitlines()
    assert lines[0].split() == ["server", "files", "ok", "2", "sites,", "2", "rounds"]


@pytest.mark.parametrize(
    "lie",
    [lambda _sent, model: model, lambda sent, _model: {**sent, "size": 2**40}],
    ids=["the server's own object", "a terabyte"],
)
def test_what_a_site_names_as_its_upload_is_not_believed(run_check, shelf, lie):
    class Lying(InProcess):
        def submit(self, client, request):
            future = super().submit(client, request)
            if client.client_id == "site-a":
                said = future.result()["result"]
                said["sent"] = lie(said["sent"], request["model"])
            return future

    found = run_check(Lying())
    assert of(found, "site-a")["upload"].message.endswith("is not what it was to put")
    assert of(found, "site-b")["upload"].ok
