"""Carry TCP connections on: `forward.py FROM TO PORT [PORT ...]`, the same ports on both sides.

Globus's `local` environment asks localhost:5000 whatever machine it is on, and the sandbox listens
on loopback alone. Run on both sides of a network, this stands in for the internet between them.
"""

import asyncio
import contextlib
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction of one connection, to its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def forward(here: str, there: str, port: int) -> None:
    """Carry every connection to a port on, for ever."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(there, port)
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
            far_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, here, port)
    await server.serve_forever()


async def main(here: str, there: str, *ports: str) -> None:
    """All the ports."""
    await asyncio.gather(*(forward(here, there, int(port)) for port in ports))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
