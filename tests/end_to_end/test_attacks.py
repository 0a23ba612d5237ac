"""A stolen client secret, tried against a deployed site's real daemons; a site that lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fl.endpoints.serialization import TASK_NAME

pytestmark = pytest.mark.daemons
HOSTILE_SITE = str(Path(__file__).with_name("hostile_site.py"))

# Runs in a process of its own: the SDK reads its credentials when it is imported.
ATTACK = """
import json
import sys
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.serialize import ComputeSerializer, JSONData
import fl.endpoints.serialization as ours

kind, endpoint, function, marker, request = sys.argv[1:]
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


def attack(federation, kind, marker, request=None):
    """Submit to the first site with the federation's own secret; what the attacker sees."""
    client = yaml.safe_load(federation.clients_yaml.read_text())["clients"][0]
    return speak(
        federation,
        *("-c", ATTACK, kind, client["endpoint_id"], function_id(federation)),
        *(str(marker), json.dumps(request)),
    )


def function_id(federation):
    server = yaml.safe_load(federation.server_yaml.read_text())["server_configs"]
    return server["comm_configs"]["globus_compute_configs"]["function_id"]


def speak(federation, *arguments):
    """What a Python program prints that has the federation's credentials."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **federation.credentials},
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


def test_a_stolen_secret_meets_the_sites_policy_and_leaves_lines_in_its_log(federation, tmp_path):
    policy = federation.dir / "site-a" / "site-policy.yaml"
    before = policy.read_text()
    policy.write_text("max_rounds: 1\nexperiments: [digits]\n")
    outside = {"dataset_path": "../bin/daemon", "dataset_name": "main"}
    try:
        late = attack(federation, "foreign request", tmp_path, train_request(round=2))
        foreign = attack(
            federation, "foreign request", tmp_path, train_request(data_configs=outside)
        )
    finally:
        policy.write_text(before)
    assert "PolicyRefusal" in late and "max_rounds: 1 at most" in late
    assert "lies outside this site" in foreign
    log = federation.dir / "site-a" / "audit.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [record for record in records if record["client_id"] == "stranger"]
    assert [(record["event"], record["rule"]) for record in refused] == [
        ("refused", "max_rounds"),
        ("refused", "request"),
    ]
    assert federation.call("fl", "audit", "verify", str(log)).returncode == 0
