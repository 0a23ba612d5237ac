"""What running the remote function has in common, wherever it runs."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any, Protocol

from fl.config import Client
from fl.errors import FederationError

JSONObject = dict[str, Any]


class EndpointError(FederationError):
    """A task could not be sent, was refused or lost, or failed at the site."""


class EngineError(EndpointError):
    """The site's engine failed a task: its job was refused, or its worker died.

    The tasks that the engine held beside it have most likely ended with it.
    """


class Endpoints(Protocol):
    """The clients' places, by client."""

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        """Send a request to a client's site.

        Args:
            client: The client.
            request: JSON types only.

        Returns:
            A future of what `fl.client.task.run` returns. It may never resolve: a caller sets
            its own deadline.
        """

    def health(self, client: Client) -> str | None:
        """Ask whether a client's site can take tasks.

        Args:
            client: The client.

        Returns:
            None if it can, else why not, in one line.

        Raises:
            EndpointError: The service that knows could not be asked.
        """

    def explain(self, error: BaseException) -> EndpointError:
        """What an exception of one of these futures means.

        Args:
            error: The exception.

        Returns:
            An error with a line for a person; an `EngineError` where the engine had the task.
        """

    def session(self, client: Client) -> str | None:
        """What a later process can `recover` tasks by, or None if it cannot.

        Args:
            client: The client that the tasks were submitted to.
        """

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:
        """Take up tasks that another process submitted.

        Args:
            session: That process's.
            jobs: The server's names for the tasks.

        Returns:
            A future, as `submit` gives, for each that may still be answered.

        Raises:
            EndpointError: The service that knows could not be asked.
        """

    def close(self) -> None:
        """Let go of every task and connection, without waiting for answers."""


def answer_of(future: Future[JSONObject], endpoints: Endpoints) -> JSONObject:
    """The result in a finished future.

    Args:
        future: A future of `submit` that is done.
        endpoints: Where it came from.

    Returns:
        What the operation returned at the site.

    Raises:
        SiteError: The remote function failed.
        EngineError: The site's engine failed the task.
        EndpointError: It failed on its way.
    """
    if future.cancelled():
        raise EndpointError("the task was withdrawn before it was sent")
    error = future.exception()
    if error is not None:
        raise endpoints.explain(error) from error
    match future.result():
        case {"result": dict(result)}:
            return result
        case {"error": {"type": str(kind), "message": str(message), "traceback": str(trace)}}:
            raise SiteError(legible(kind), legible(message), legible_lines(trace))
    raise EndpointError("the site answered with something that is no result")


TEXT = 20_000
"""Characters of a site's that are kept of a message or a traceback."""


def legible(text: str) -> str:
    """A site's text as a terminal or a log may show it: in one line, which can begin no other."""
    return " ".join(legible_lines(text).split())


def legible_lines(text: str) -> str:
    """The same of a traceback, in its lines: without control characters, not endless."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "?"
        for character in text[:TEXT]
    )


class SiteError(EndpointError):
    """The remote function failed at the site.

    Attributes:
        kind: Name of the exception's class there.
        traceback: The site's traceback, as text.
    """

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.traceback = traceback
