"""Clients in processes on this machine: the same task, the same requests, no service."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from fl.config import Client
from fl.endpoints.base import EndpointError, EngineError, JSONObject

DIED = (EOFError, OSError)
"""What a pipe raises whose other end has died."""
STARTING = threading.Lock()
"""Held while a worker is started. One whose server ends before it has told the worker what it is
prints a traceback."""


class LocalEndpoints:
    """Threads with a worker process each, warm from one round to the next.

    A worker that dies takes its own task with it; a `ProcessPoolExecutor` would fail them all.

    Args:
        num_clients: How many clients will be served; no more processes than that, or than cores.
    """

    def __init__(self, num_clients: int) -> None:
        self._threads = ThreadPoolExecutor(min(num_clients, os.cpu_count() or 1))
        self._own = threading.local()  # a thread that ends closes its pipe, which ends its worker
        self._closed = False
        self._workers: list[BaseProcess] = []

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:  # noqa: ARG002  (the protocol's signature; every client runs the same task here)
        """See `Endpoints.submit`."""
        return self._threads.submit(self._run, request)

    def _run(self, request: JSONObject) -> JSONObject:
        """Have this thread's worker do a task."""
        answer = _ask(self._worker(), request)
        if isinstance(answer, str):
            raise EngineError(f"the local process failed ({answer})")
        return answer

    def _worker(self) -> Connection:
        """The pipe to this thread's worker; one that was killed between two tasks is replaced."""
        pipe: Connection | None = getattr(self._own, "pipe", None)
        if pipe is None or pipe.poll():  # nobody asked: all there is to hear is its end
            pipe = self._own.pipe = self._start()
        return pipe

    def _start(self) -> Connection:
        with STARTING:  # `close` misses none
            if self._closed:
                raise EndpointError("the run is over")
            try:
                process, pipe = _start_worker()
            except OSError as error:  # too many processes, say
                raise _failed(error) from error
            # A dead one keeps two descriptors open for as long as it is known.
            self._workers = [*(w for w in self._workers if w.is_alive()), process]
            return pipe

    def health(self, client: Client) -> str | None:  # noqa: ARG002  (as above)
        """See `Endpoints.health`: this machine can always take tasks."""
        return None

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        return error if isinstance(error, EndpointError) else _failed(error)

    def session(self, client: Client) -> None:
        """See `Endpoints.session`: tasks here end with the process that sent them."""

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:  # noqa: ARG002  (the protocol's signature)
        """See `Endpoints.recover`."""
        return {}

    def close(self) -> None:
        """See `Endpoints.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with STARTING:
            self._closed = True
            for process in self._workers:
                process.terminate()


def _failed(error: BaseException) -> EngineError:
    return EngineError(f"the local process failed ({type(error).__name__}: {error})")


def _start_worker() -> tuple[BaseProcess, Connection]:
    """Start a process, and return it with the pipe to it."""
    # spawn: a forked child would inherit torch's thread pools in an unknown state.
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with theirs, _without_interrupts():  # held by the worker alone, its end closes with its life
        process = spawn.Process(target=_work, args=(theirs,))
        process.start()
    return process, ours


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started inside never sees a Ctrl-C: that is the server's to answer."""
    resource_tracker.ensure_running()  # else the first process starts it, which lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(pipe: Connection, request: JSONObject) -> JSONObject | str:
    """What a worker answers, or why it cannot."""
    try:
        pipe.send(request)
        answer: JSONObject | str = pipe.recv()
    except DIED as error:
        killed = "the local process failed: one was killed, or out of memory"
        raise EngineError(killed) from error
    return answer


def _work(pipe: Connection) -> None:
    """A worker's life: one thread of torch's, and no day longer than the server's."""
    import torch

    torch.set_num_threads(1)  # together they have as many as there are cores
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    with suppress(*DIED):  # the server let go of it
        while True:
            pipe.send(_answer(pipe.recv()))


def _end_with_the_server() -> None:
    """A server that was killed leaves its workers in the middle of their tasks."""
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(1)


def _answer(request: JSONObject) -> JSONObject | str:
    """A task's answer, or what kept it from giving one: text, which any server can read."""
    try:
        from fl.client import task  # imported in the child

        return task.run(request)
    except BaseException as error:  # a panic of Rust's, say
        return f"{type(error).__name__}: {error}"
