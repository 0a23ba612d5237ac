"""What `fl check` asks of a worker about a way that the server grants."""

import time

from fl.client import task
from fl.transport import Ref


def prove(transport, model):
    """Have the remote function prove the way; returns what it sent back."""
    answer = task.run(
        {
            "operation": "check",
            "client_id": "a",
            "proxystore_configs": {},
            "model": model.to_json(),
            "upload": transport.grant(100),
            "until": time.time() + 60,
        }
    )
    items = answer["result"]["items"]
    assert [(item["check"], item["outcome"]) for item in items] == [
        ("way", "ok"),
        ("download", "ok"),
        ("upload", "ok"),
    ]
    return Ref.from_json(answer["result"]["sent"])
