"""Each client's tasks to the place that its `endpoint_id` names."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path

from fl.config import Client, Federation
from fl.endpoints.base import EndpointError, Endpoints, JSONObject
from fl.endpoints.credentials import load_environment
from fl.endpoints.local import LocalEndpoints


class Places:
    """A federation's endpoints: local ones, Globus Compute's, or both at once.

    Args:
        local: Where clients with `endpoint_id: local` run, if there are any.
        remote: Where the others run, if there are any.
    """

    def __init__(self, local: Endpoints | None, remote: Endpoints | None) -> None:
        self._local, self._remote = local, remote

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        """See `Endpoints.submit`."""
        return self._place(client).submit(client, request)

    def health(self, client: Client) -> str | None:
        """See `Endpoints.health`."""
        return self._place(client).health(client)

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        place = self._remote or self._local
        return place.explain(error) if place else EndpointError(str(error))

    def session(self) -> str | None:
        """See `Endpoints.session`."""
        return self._remote.session() if self._remote is not None else None

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:
        """See `Endpoints.recover`."""
        return self._remote.recover(session, jobs) if self._remote is not None else {}

    def close(self) -> None:
        """See `Endpoints.close`."""
        for place in (self._local, self._remote):
            if place is not None:
                place.close()

    def _place(self, client: Client) -> Endpoints:
        place = self._local if client.endpoint_id == "local" else self._remote
        if place is None:
            raise KeyError(client.client_id)
        return place


def open_endpoints(federation: Federation) -> Endpoints:
    """The places that a federation's clients need.

    Args:
        federation: Both files.

    Returns:
        Its endpoints.

    Raises:
        EndpointError: Globus cannot be reached, or refuses the credentials.
        FederationError: An environment file cannot be read.
    """
    local = [client for client in federation.clients if client.endpoint_id == "local"]
    configs = federation.server_configs.comm_configs.globus_compute_configs
    remote: Endpoints | None = None
    if len(local) < len(federation.clients) and configs is not None:
        load_environment(Path(file) for file in configs.environment_files)
        from fl.endpoints.globus import GlobusEndpoints  # reads the environment when imported

        remote = GlobusEndpoints(configs.function_id)
    return Places(LocalEndpoints(len(local)) if local else None, remote)
