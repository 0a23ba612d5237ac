"""Each client's tasks to the place that its `endpoint_id` names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from pathlib import Path

from fl.config import Client, Federation
from fl.endpoints.base import EndpointError, Endpoints, JSONObject
from fl.endpoints.credentials import load_environment
from fl.endpoints.local import LocalEndpoints

LOCAL, SHARED = "local", "shared"
"""Places that several clients may have; a client's own bears its name."""


class Places:
    """A federation's endpoints: local ones, Globus Compute's, or both at once.

    Args:
        places: Where clients run: here, by the server's Globus client, and by those that sites
            have of their own.
    """

    def __init__(self, places: Mapping[str, Endpoints]) -> None:
        self._places = places

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        """See `Endpoints.submit`."""
        return self._of(client).submit(client, request)

    def health(self, client: Client) -> str | None:
        """See `Endpoints.health`."""
        return self._of(client).health(client)

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        remote = [place for name, place in self._places.items() if name != LOCAL]
        return next(iter([*remote, *self._places.values()])).explain(error)

    def session(self, client: Client) -> str | None:
        """See `Endpoints.session`: the place, and its own name for it."""
        session = self._of(client).session(client)
        return None if session is None else f"{_place(client)}/{session}"

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:
        """See `Endpoints.recover`."""
        name, _, own = session.partition("/")
        return self._places[name].recover(own, jobs) if name in self._places else {}

    def close(self) -> None:
        """See `Endpoints.close`."""
        for place in self._places.values():
            place.close()

    def _of(self, client: Client) -> Endpoints:
        return self._places[_place(client)]


def _place(client: Client) -> str:
    if client.endpoint_id == "local":
        return LOCAL
    return f"of {client.client_id}" if client.comm_configs.globus_compute_configs else SHARED


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
    places: dict[str, Endpoints] = {}
    here = [client for client in federation.clients if _place(client) == LOCAL]
    if here:
        places[LOCAL] = LocalEndpoints(len(here))
    shared = federation.server_configs.comm_configs.globus_compute_configs
    if len(here) == len(federation.clients) or shared is None:
        return Places(places)
    load_environment(Path(file) for file in shared.environment_files)
    from fl.endpoints.globus import GlobusEndpoints  # reads the environment when imported

    for client in federation.clients:
        name, own = _place(client), client.comm_configs.globus_compute_configs
        if name == SHARED and SHARED not in places:
            places[SHARED] = GlobusEndpoints(shared.function_id)
        elif name not in places and own is not None:
            places[name] = GlobusEndpoints(own.function_id, own.environment_files)
    return Places(places)
