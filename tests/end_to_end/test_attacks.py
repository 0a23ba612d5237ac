"""A stolen client secret, tried against a deployed site's real daemons; a site that lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.digits.model import DigitsCNN
from fl.client.frozen import travelling
from fl.endpoints.serialization import TASK_NAME
from fl.tensors import encode
from fl.transport.inline import InlineTransport
from tests.conftest import OWN, TOP

pytestmark = pytest.mark.daemons
HOSTILE_SITE = str(Path(__file__).with_name("hostile_site.py"))

# Runs in a process of its own: the SDK reads its credentials when it is imported.
ATTACK = """
import json
import sys
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.serialize import ComputeSerializer, JSONData
import fl.endpoints.serialization as ours

kind, endpoint, function, marker = sys.argv[1:]
request = sys.stdin.read()  # with a model in it, too long for a command line
source = f"st\\nboom:open({marker!r}, 'w').close()\\ndef boom(*a): pass\\n"

class Tagged(ComputeSerializer):
    '''Sends its arguments as whatever text they are.'''
    def serialize(self, data):
        return source if data == ("as code",) else JSONData().serialize(data)
    def deserialize(self, payload):
        return payload

def submit(serializer, function_id, args):
    executor = Executor(endpoint_id=endpoint, serializer=serializer, result_serializers=[JSONData])
    try:
        print(executor.submit_to_registered_function(function_id, args=args).result(timeout=60))
    except Exception as error:
        print("refused:", type(error).__name__, error)
    executor.shutdown(wait=False, cancel_futures=True)

def write():
    open(marker, "w").close()

if kind == "foreign function":
    submit(ComputeSerializer(), Client().register_source_code(
        f"def f(): open({marker!r}, 'w').close()", "f"), ())
elif kind == "pickled argument":
    submit(ComputeSerializer(), function, ({"operation": "check"},))
elif kind == "foreign request":
    submit(ours.JSONOnly(), function, (json.loads(request),))
elif kind == "foreign requests":
    executor = Executor(endpoint, serializer=ours.JSONOnly(), result_serializers=[JSONData])
    for policy, requests in json.loads(request):
        with open(marker, "w") as file:
            file.write(policy)
        sent = [executor.submit_to_registered_function(function, args=(one,)) for one in requests]
        for future in sent:
            print(json.dumps(future.result(timeout=60)))
    executor.shutdown(wait=False, cancel_futures=True)
elif kind == "argument tagged as code":
    submit(Tagged(), function, ("as code",))
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("foreign function", "refused"),
        ("pickled argument", "disabled by current"),
        ("argument tagged as code", "disabled by current"),
    ],
)
def test_a_stolen_secret_runs_nothing_but_our_task(federation, tmp_path, kind, expected):
    marker = tmp_path / "executed"
    done = attack(federation, kind, marker)
    assert done.startswith("refused:"), done
    assert expected in done
    assert not marker.exists()
    assert TASK_NAME not in done


@pytest.mark.parametrize("kind", ["pickle", "code"])
@pytest.mark.parametrize("reader", ["sdk", "ours"])
def test_a_site_that_answers_with_a_pickle_or_source(federation, tmp_path, kind, reader):
    """By the SDK's own rules the server executes it, which shows that it is an attack."""
    marker = tmp_path / "executed"
    done = speak(federation, HOSTILE_SITE, kind, reader, function_id(federation), str(marker))
    assert marker.exists() is (reader == "sdk"), done
    if reader == "ours":
        assert done.startswith("refused:"), done
        assert "Malformed or unexpected data" in done  # the SDK's words for what ours refuses


def attack(federation, kind, marker, request=None, *, at="site-a", credentials=None):
    """Submit to a site, with the secret that all share unless told otherwise; what comes of it."""
    clients = yaml.safe_load(federation.clients_yaml.read_text())["clients"]
    (client,) = (client for client in clients if client["client_id"] == at)
    own = client["comm_configs"].get("globus_compute_configs")
    function = own["function_id"] if own else function_id(federation)
    return speak(
        federation,
        *("-c", ATTACK, kind, client["endpoint_id"], function, str(marker)),
        told=json.dumps(request),
        credentials=credentials,
    )


def function_id(federation):
    server = yaml.safe_load(federation.server_yaml.read_text())["server_configs"]
    return server["comm_configs"]["globus_compute_configs"]["function_id"]


def speak(federation, *arguments, told="", credentials=None):
    """What a Python program prints that has a client's credentials, the shared one's at first."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=told,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TOP,
        env={**os.environ, **(credentials or federation.credentials)},
        check=False,
    )
    return done.stdout or done.stderr


def train_request(**changes):
    return {
        "operation": "train",
        "round": 1,
        "client_id": "stranger",
        "model": {},
        "train_configs": {},
        "model_configs": {"model_path": "digits/model.py", "model_name": "DigitsCNN"},
        "data_configs": {"dataset_path": "digits/data.py", "dataset_name": "get_digits"},
        "proxystore_configs": {},
        **changes,
    }


@pytest.mark.parametrize(("holder", "at"), [("home", OWN), (OWN, "site-a")])
def test_a_secret_of_one_site_opens_nothing_at_another(federation, tmp_path, holder, at):
    """Where each site has a client of its own; at its own it is our task that answers."""
    stolen = federation.credentials_of(holder)
    asked = train_request()
    refused = attack(federation, "foreign request", tmp_path, asked, at=at, credentials=stolen)
    assert refused.startswith("refused:") and "belongs to somebody else" in refused, refused
    if holder == OWN:
        there = attack(federation, "foreign request", tmp_path, asked, at=OWN, credentials=stolen)
        assert "not a reference to a model" in there


DP = {"dp_sgd": {"noise_multiplier": 1.0}, "local_dp": {"noise_multiplier": 1.0}}
QUIET = {"noise_multiplier": 0.5}
SOURCE = "def get_digits(**_): raise RuntimeError('shipped')\n"
RULES = {
    "experiments": ["digits"],
    "models": [{"path": "digits/model.py", "name": "DigitsCNN"}],
    "loaders": [
        {"path": "digits/data.py", "name": "get_digits", "kwargs": {"client_id": 0}},
        {"path": "digits/changed.py", "name": "get_digits", "sha256": "0" * 64},
    ],
    "max_rounds": 1,
    "min_noise_multiplier": 1.0,
    "min_local_noise_multiplier": 1.0,
}
OTHERS = {
    "sealed_updates": {"sealed_updates": True},
    "secure_aggregation": {"secure_aggregation": {"min_sites": 3}},
    "max_tasks_per_day": {"max_tasks_per_day": 1},
    "metrics": {"metrics": ["val_loss"]},
}
"""Rules that what the others ask for would not pass: a policy each."""


def loader(path, name="get_digits", **kwargs):
    return {"data_configs": {"dataset_path": path, "dataset_name": name, "dataset_kwargs": kwargs}}


def model(path, name):
    return {"model_configs": {"model_path": path, "model_name": name}}


ALLOWED = loader("digits/data.py", client_id=0) | {"train_configs": DP}
ASKED = {
    "experiments": model("other/model.py", "DigitsCNN"),
    "models": model("digits/model.py", "nn"),
    "loaders": loader("digits/data.py", "load_digits", client_id=0),
    "loaders, by its arguments": loader("digits/data.py", client_id=1),
    "loaders, a file that was changed": loader("digits/changed.py"),
    "max_rounds": {"round": 2},
    "min_noise_multiplier": {"train_configs": DP | {"dp_sgd": QUIET}},
    "min_local_noise_multiplier": {"train_configs": DP | {"local_dp": QUIET}},
    "shipped_source": {"sources": {"digits/data.py": SOURCE}},
}
"""What each rule refuses, and the site's own code folder lets be."""
OUTSIDE = {
    "by ..": loader("digits/../../bin/daemon", "main"),
    "by an absolute path": loader("/etc/passwd", "main"),
    "by a link": loader("digits/link.py", "main"),
    "by a folder that is a link": loader("link/outside.py", "main"),
}


@pytest.fixture(scope="module")
def tried(federation, tmp_path_factory):
    """What a real worker answers to each foreign request, under its owner's rules and without."""
    site, outside = federation.dir / "site-a", tmp_path_factory.mktemp("outside")
    policy, code = site / "site-policy.yaml", site / "site_code"
    before = policy.read_text()
    (outside / "outside.py").write_text(f"open({str(outside / 'executed')!r}, 'w').close()\n")
    shutil.copytree(code / "digits", code / "other")
    shutil.copy(code / "digits" / "data.py", code / "digits" / "changed.py")
    (code / "digits" / "link.py").symlink_to(outside / "outside.py")
    (code / "link").symlink_to(outside)
    asked = {name: train_request(**ALLOWED | changes) for name, changes in ASKED.items()}
    allowed, plain = train_request(**ALLOWED), train_request()
    groups = [
        (RULES, {"what is allowed": allowed} | asked),
        (
            {"shipped_source": "all"},
            {f"{name}, without": request for name, request in asked.items()},
        ),
        ({}, {name: train_request(**changes) for name, changes in OUTSIDE.items()}),
        *((rules, {rule: plain}) for rule, rules in OTHERS.items() if rule != "metrics"),
        ({}, {f"{rule}, without": plain for rule in OTHERS if rule != "metrics"}),
        (OTHERS["metrics"], {"metrics": evaluate_request()}),
        ({}, {"metrics, without": evaluate_request()}),
        ({"error_messages": False}, {"error_messages": plain}),
        ({"min_samples": 1_000_000}, {"min_samples": whole_request()}),
        ({}, {"min_samples, without": whole_request()}),
    ]
    try:
        done = attack(
            federation,
            "foreign requests",
            policy,
            [(yaml.safe_dump(rules), list(requests.values())) for rules, requests in groups],
        )
    finally:
        policy.write_text(before)
        shutil.rmtree(code / "other")
        for file in ("digits/changed.py", "digits/link.py", "link"):
            (code / file).unlink()
    names = [name for _, requests in groups for name in requests]
    answers = [json.loads(line) for line in done.splitlines()]
    assert len(names) == len(answers), done
    found = [answer.get("error") or answer["result"] for answer in answers]
    return dict(zip(names, found, strict=True)) | {"executed": (outside / "executed").exists()}


def test_what_the_owners_rules_allow_is_let_in(tried):
    assert "not a reference to a model" in tried["what is allowed"]["message"]


@pytest.mark.parametrize("row", [*ASKED, *OTHERS])
def test_a_rule_of_the_owners_refuses_at_a_real_worker_what_is_let_in_without_it(tried, row):
    rule = row.split(",")[0]
    assert tried[row]["type"] == "PolicyRefusal"
    assert tried[row]["message"].startswith(f"this site's policy refuses the task: {rule}: ")
    assert "not a reference to a model" in tried[f"{row}, without"]["message"]


@pytest.mark.parametrize("row", OUTSIDE)
def test_a_loader_outside_the_sites_code_is_not_run_by_a_real_worker(tried, row):
    assert tried[row]["type"] == "SiteCodeError"
    assert "outside this site" in tried[row]["message"], tried[row]
    assert not tried["executed"]


def test_an_errors_message_stays_where_its_owner_keeps_it(tried):
    assert tried["error_messages"]["message"] == (
        "TransportError: its message is kept at the site, by the site's policy"
    )


def test_a_small_set_is_trained_on_at_a_real_worker_only_without_the_owners_rule(tried):
    assert tried["min_samples"]["message"] == (
        "this site's policy refuses the task: min_samples: 1000000 at least"
    )
    assert tried["min_samples, without"]["num_samples"] > 100


def evaluate_request():
    request = train_request() | {"operation": "evaluate"}
    del request["round"]
    return request


def whole_request():
    """One that trains, by a step."""
    model = InlineTransport().put(encode(travelling(DigitsCNN()))).to_json()
    budget = {"train_configs": {"mode": "step", "num_local_steps": 1}}
    data = loader("digits/data.py", num_clients=2, client_id=0)
    return train_request(model=model, **budget, **data)


def test_what_was_tried_stands_in_the_sites_log_and_a_cut_line_is_found(
    federation, tried, tmp_path
):
    log = federation.dir / "site-a" / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    refused = [record for record in records if record.get("client_id") == "stranger"]
    rules = {record["rule"] for record in refused if record["event"] == "refused"}
    assert rules == {*(row.split(",")[0] for row in ASKED), *OTHERS, "min_samples", "request"}
    assert federation.call("fl", "audit", "verify", str(log)).returncode == 0
    cut = tmp_path / "audit.jsonl"
    cut.write_bytes(b"".join(lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :]))
    found = federation.call("fl", "audit", "verify", str(cut))
    assert found.returncode == 1
    assert f"line {len(lines) // 2 + 1}: does not follow the line before it" in found.stderr


LIES = {
    "NaN": "holds NaN or infinity",
    "infinity": "holds NaN or infinity",
    "another shape": "is torch.float32 [15], the model's is torch.float32 [16]",
    "a norm of a million times": "over 100 times the model's",
    "the answer of the round before": "round 2 can have 0 of the 1 updates it needs: hostile: the "
    "site's answer is of another task than it was sent",
    "the update of a task never sent": "the site's answer is of another task than it was sent",
    "other bytes than announced": "its digest differs from its reference",
    "2^63 bytes claimed": "not a reference to a model",
    "a header of 2^63 bytes": "its header would end at byte 9223372036854775816",
}
"""What a run ends with whose site tells each."""


@pytest.fixture(scope="module")
def lied(federation, tmp_path_factory):
    """How a run ends whose only site answers with each lie, by the real broker and SDK."""
    told = speak(
        federation,
        *("-m", "tests.end_to_end.hostile_updates", str(federation.server_yaml)),
        str(tmp_path_factory.mktemp("lies")),
    )
    return json.loads(told)


def test_a_site_that_tells_no_lie_is_believed_and_so_is_one_that_nothing_bounds(lied):
    assert lied["none"] is None
    assert lied["a norm of a million times, unbounded"] is None


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_sites_update_is_refused_by_the_servers_own_loop(lied, lie):
    assert LIES[lie] in lied[lie], lied
