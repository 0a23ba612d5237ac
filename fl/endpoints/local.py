"""Clients in processes on this machine: the same task, the same requests, no service."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from fl.config import Client
from fl.endpoints.base import EndpointError, EngineError, JSONObject


class LocalEndpoints:
    """A pool of processes, each warm from one round to the next.

    Args:
        num_clients: How many clients will be served; no more processes than that, or than cores.
    """

    def __init__(self, num_clients: int) -> None:
        self._workers = min(num_clients, os.cpu_count() or 1)
        self._pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        # spawn: a forked child would inherit torch's thread pools in an unknown state.
        return ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_begin
        )

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:  # noqa: ARG002  (the protocol's signature; every client runs the same task here)
        """See `Endpoints.submit`."""
        with _without_interrupts():
            try:
                return self._pool.submit(_run, request)
            except BrokenProcessPool:  # one of its processes was killed, and with it the pool
                self._pool = self._open()
                return self._pool.submit(_run, request)

    def health(self, client: Client) -> str | None:  # noqa: ARG002  (as above)
        """See `Endpoints.health`: this machine can always take tasks."""
        return None

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        if isinstance(error, BrokenProcessPool):  # all of the pool's end with one
            return EngineError("the local process failed: one was killed, or out of memory")
        return EngineError(f"the local process failed ({type(error).__name__}: {error})")

    def session(self, client: Client) -> None:
        """See `Endpoints.session`: tasks here end with the process that sent them."""

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:  # noqa: ARG002  (the protocol's signature)
        """See `Endpoints.recover`."""
        return {}

    def close(self) -> None:
        """See `Endpoints.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started inside never sees a Ctrl-C: that is the server's to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """A worker's life: one thread of torch's, and no day longer than the server's."""
    import torch

    torch.set_num_threads(1)  # together they have as many as there are cores
    threading.Thread(target=_end_with_the_server, daemon=True).start()


def _end_with_the_server() -> None:
    """A server that was killed leaves its workers waiting for tasks for ever."""
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(1)


def _run(request: JSONObject) -> JSONObject:
    from fl.client import task  # imported in the child

    return task.run(request)
