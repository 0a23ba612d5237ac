"""A site whose updates are lies, and the server's own loop, which asks for them.

    python -m tests.end_to_end.hostile_updates SERVER_YAML FOLDER

Runs in a process of its own: the SDK reads its credentials when it is imported. A run of two rounds
for each lie, whose only site it is, by the real broker and SDK. Prints, as JSON, what each run's
rounds were told of the site's answers; nothing is what a round has no complaint about.
"""

import base64
import io
import json
import struct
import sys
import threading
from pathlib import Path

import torch
import yaml
from globus_compute_sdk import Client as ComputeClient
from rich.console import Console

from fl.config_files import Files
from fl.endpoints.serialization import JSONOnly
from fl.errors import FederationError
from fl.run import run
from fl.tensors import decode, encode
from fl.transport.inline import InlineTransport
from tests.end_to_end.hostile_site import Site

SECONDS = 60


def put(data):
    return InlineTransport().put(data).to_json()


def first(change):
    """An update of which the first tensor is another."""

    def changed(tensors):
        name = next(iter(tensors))
        return {**tensors, name: change(tensors[name])}

    return changed


UPDATES = {
    "none": dict,
    "NaN": first(lambda tensor: torch.full_like(tensor, torch.nan)),
    "infinity": first(lambda tensor: torch.full_like(tensor, torch.inf)),
    "another shape": first(lambda tensor: tensor.flatten()[:-1].clone()),
    "a norm of a million times": lambda tensors: {n: t * 1e6 for n, t in tensors.items()},
}
"""What becomes of an update's tensors, by the lie's name."""
ANSWERS = {
    "the answer of the round before": lambda answer, before: before or answer,
    "the update of a task never sent": lambda answer, _: answer | {"job": "made-up"},
    "other bytes than announced": lambda answer, _: changed(answer, digest="0" * 64),
    "2^63 bytes claimed": lambda answer, _: changed(answer, size=2**63),
    # A safetensors file that says of itself to begin with so many bytes of names.
    "a header of 2^63 bytes": lambda answer, _: (
        answer | {"update": put(struct.pack("<Q", 2**63) + b"{}")}
    ),
}
"""What becomes of an answer, and of the one before it."""


def changed(answer, **claims):
    """An answer that claims something else of its update."""
    return answer | {"update": answer["update"] | claims}


class Liar:
    """Answers requests for training by what its lie makes of the answer that is due."""

    def tell(self, lie):
        """Begin with a lie."""
        self._lie, self._before = lie, None

    def __call__(self, arguments):
        serializer = JSONOnly()
        ((request,)) = serializer.deserialize(arguments)
        if request["operation"] != "train":
            return serializer.serialize({"result": {}})
        model = decode(base64.b64decode(request["model"]["key"]["base64"]))
        scale = 0.01 if request["update"] == "difference" else 1.0
        tensors = UPDATES.get(self._lie, dict)({n: t * scale for n, t in model.items()})
        due = {
            "job": request["job"],
            "update": put(encode(tensors)),
            "num_samples": 10,
            "steps": 1,
            "stopped": "budget",
            "metrics": {},
            "seconds": {},
        }
        answer = ANSWERS.get(self._lie, lambda answer, _: answer)(due, self._before)
        self._before = due
        return serializer.serialize({"result": answer})


def files(server_yaml, folder, endpoint_id):
    """The federation's own server.yaml, for this site alone; models travel in the tasks."""
    given = yaml.safe_load(Path(server_yaml).read_text())
    server = given["server_configs"]
    globus = server["comm_configs"]["globus_compute_configs"]
    given["server_configs"] = {
        "num_clients": 1,
        "num_global_epochs": 2,
        "round_deadline": SECONDS,
        "comm_configs": {"globus_compute_configs": globus},
    }
    client = {
        "endpoint_id": endpoint_id,
        "client_id": "hostile",
        "data_configs": {"dataset_path": "digits/data.py", "dataset_name": "get_digits"},
    }
    (folder / "server.yaml").write_text(yaml.safe_dump(given))
    (folder / "clients.yaml").write_text(yaml.safe_dump({"clients": [client]}))
    return Files(folder / "server.yaml", folder / "clients.yaml")


def outcome(described, runs, *overrides):
    """How a run of this federation ends: its error, one that nobody has thought of too, or none.

    It has a folder for runs of its own: two that begin within a second have one name there.
    """
    overrides = (f"server_configs.logging_output_dirname={runs}", *overrides)
    try:
        run(Files(described.server, described.clients, overrides), Console(file=io.StringIO()))
    except FederationError as error:
        return str(error)
    except Exception as error:
        return repr(error)
    return None


def main(server_yaml, folder):
    """Tell every lie, and one again where the configuration has the server believe it."""
    client, liar = ComputeClient(), Liar()
    site = Site(client, liar)
    described = files(server_yaml, Path(folder), site.endpoint_id)
    found = {}
    for number, lie in enumerate(UPDATES | ANSWERS):
        liar.tell(lie)
        found[lie] = outcome(described, Path(folder, f"runs-{number}"))
    liar.tell("a norm of a million times")
    found["a norm of a million times, unbounded"] = outcome(
        described, Path(folder, "runs-unbounded"), "server_configs.norm_bound=null"
    )
    print(json.dumps(found))  # noqa: T201  (a script)
    client.delete_endpoint(site.endpoint_id)


if __name__ == "__main__":
    threading.excepthook = lambda problem: print(problem.exc_value, file=sys.stderr)  # noqa: T201
    main(*sys.argv[1:])
