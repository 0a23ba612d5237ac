"""A site that answers with whatever bytes it likes, and a server that asks it.

    python tests/end_to_end/hostile_site.py pickle|code ours|sdk FUNCTION MARKER

Runs in a process of its own: the SDK reads its credentials when it is imported. The site speaks to
the broker as an endpoint does; what it answers makes a file at MARKER if the server executes it.
The server reads answers by `fl`'s own rules, or, to see that the attack is one, by the SDK's.
Prints what the server makes of the answer.
"""

import base64
import json
import os
import pickle
import sys
import threading
from uuid import UUID

import pika
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result
from globus_compute_sdk import Client as ComputeClient
from globus_compute_sdk.serialize import ComputeSerializer

from fl.config import Client
from fl.endpoints import globus
from fl.endpoints.serialization import JSONOnly

SECONDS = 60


class Executes:
    """Unpickled, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mknod, (self.marker,)


def answers(marker):
    """What a site may answer with, as the SDK's own strategies tag it."""
    pickled = base64.b64encode(pickle.dumps(Executes(marker))).decode()
    source = f"boom:open({marker!r}, 'w').close()\ndef boom(): pass\n"
    return {"pickle": f"01\n{pickled}", "code": f"st\n{source}"}


class Site:
    """Registers an endpoint, and answers tasks.

    Args:
        client: The SDK's.
        answer: Called with the text of each task's arguments; returns that of its result.
    """

    def __init__(self, client, answer):
        registration = client._compute_web_client.v3.register_endpoint(
            {"endpoint_name": "hostile", "multi_user": False}
        )
        self.endpoint_id, self._answer = registration["endpoint_id"], answer
        self._say_online(registration)
        threading.Thread(target=self._serve, args=(registration,), daemon=True).start()

    def _serve(self, registration):
        command = json.loads(next(self._messages(registration["command_queue_info"])))
        credentials = command["kwargs"]["amqp_creds"]
        for message in self._messages(credentials["task_queue_info"]):
            asked = unpack(message)
            _, arguments, _ = ComputeSerializer.unpack_buffers(asked.task_buffer)
            answer = Result(task_id=asked.task_id, data=self._answer(arguments))
            self._send(credentials["result_queue_info"], answer)

    def _say_online(self, registration):
        report = EPStatusReport(
            endpoint_id=self.endpoint_id, global_state={"heartbeat_period": 30}, task_statuses={}
        )
        self._send(registration["heartbeat_queue_info"], report)

    def _messages(self, queue):
        """A queue's messages, until none comes for long."""
        with pika.BlockingConnection(pika.URLParameters(queue["connection_url"])) as connection:
            for _, _, message in connection.channel().consume(
                queue["queue"], auto_ack=True, inactivity_timeout=SECONDS
            ):
                if message is None:
                    return
                yield message

    def _send(self, queue, message):
        arguments = dict(queue["queue_publish_kwargs"])
        arguments["properties"] = pika.BasicProperties(**arguments["properties"])
        with pika.BlockingConnection(pika.URLParameters(queue["connection_url"])) as connection:
            connection.channel().basic_publish(body=pack(message), **arguments)


class Believing(JSONOnly):
    """Ours, but that answers are read as the SDK reads them."""

    def deserialize(self, payload):
        return ComputeSerializer().deserialize(payload)


def main(kind, reader, function_id, marker):
    """Ask once, and print what comes of it."""
    client = ComputeClient()
    site = Site(client, lambda _: answers(marker)[kind])
    if reader == "sdk":
        globus.JSONOnly = Believing
    endpoints = globus.GlobusEndpoints(function_id)
    asked = Client(
        endpoint_id=UUID(site.endpoint_id),
        client_id="hostile",
        data_configs={"dataset_path": "digits/data.py", "dataset_name": "get_digits"},
    )
    error = endpoints.submit(asked, {"operation": "progress", "job": "j"}).exception(SECONDS)
    outcome = f"refused: {endpoints.explain(error)}" if error else "believed"
    print(outcome)  # noqa: T201  (a script)
    endpoints.close()
    client.delete_endpoint(site.endpoint_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
