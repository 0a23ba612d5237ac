"""Sites in this very process, for tests that need no worker of their own."""

import json
import os
from concurrent.futures import Future
from unittest.mock import patch

from fl.client import task
from fl.endpoints.base import EngineError


class InProcess:
    """Every site runs its task at once, both ways through JSON as over Globus Compute.

    Args:
        silent: Clients that never answer.
        offline: Clients that are not there.
        code: Folders of clients whose code is not the server's.
    """

    def __init__(self, silent=(), offline=(), code=None):
        self.silent, self.offline, self.code = silent, offline, code or {}
        self.asked = []

    def submit(self, client, request):
        self.asked.append(client.client_id)
        future = Future()
        if client.client_id not in self.silent:
            code = self.code.get(client.client_id, os.environ.get("FL_SITE_CODE", "."))
            with patch.dict(os.environ, FL_SITE_CODE=str(code)):
                answer = task.run(json.loads(json.dumps(request)))
            future.set_result(json.loads(json.dumps(answer)))
        return future

    def health(self, client):
        return "endpoint is offline" if client.client_id in self.offline else None

    def explain(self, error):
        return EngineError(str(error))

    def session(self, client):
        return None

    def recover(self, session, jobs):
        return {}

    def close(self):
        pass
