"""The real ``proxystore-relay``, as a child of the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from fl.sandbox.folder import SandboxError
from fl.sandbox.ports import HOST, bind

log = logging.getLogger(__name__)


class Relay:
    """A relay that is started again if it ends before its time.

    Args:
        port: Loopback port.
        log_file: Where its output goes.
        started: Called with its pid after each start.
    """

    READY_S = 20.0
    STOP_S = 5.0
    RESTART_S = 1.0

    def __init__(self, port: int, log_file: Path, started: Callable[[int], None]) -> None:
        self._port = port
        self._log_file = log_file
        self._started = started
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the relay and wait until it answers.

        Raises:
            SandboxError: its port is in use, or it does not answer in time.
        """
        bind(self._port, "the ProxyStore relay").close()
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        program = Path(sysconfig.get_path("scripts")) / "proxystore-relay"
        if not program.exists():
            raise SandboxError(f"{program} is missing: install proxystore[endpoints]")
        with self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(program),
                "--host",
                HOST,
                "--port",
                str(self._port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started(self._process.pid)
        await self._answers(self._process)

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(self.READY_S):
                while process.returncode is None:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection(HOST, self._port)
                        writer.close()
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self._end(process)
            raise SandboxError(
                f"the ProxyStore relay did not answer in {self.READY_S:.0f} s"
            ) from None
        raise SandboxError(f"the ProxyStore relay ended at once; see {self._log_file}")

    async def _keep(self) -> None:
        while self._process:
            status = await self._process.wait()
            log.warning("the relay ended with status %s; starting it again", status)
            await asyncio.sleep(self.RESTART_S)
            try:
                await self._spawn()
            except (SandboxError, OSError) as error:
                log.warning("it did not start: %s", error)

    async def stop(self) -> None:
        """Stop the relay."""
        if self._keeper:
            self._keeper.cancel()
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self.STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
