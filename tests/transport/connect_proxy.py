"""A forwarding proxy, as before a compute node: CONNECT to the places that it lets through."""

import socket
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer


class Tunnel(StreamRequestHandler):
    """One CONNECT."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(target)
        if target not in self.server.allowed:
            self.wfile.write(b"HTTP/1.1 403 Filtered\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_carry, args=(far, self.connection))
            back.start()
            _carry(self.connection, far)
            back.join()


class ConnectProxy(ThreadingTCPServer):
    """Listens on loopback.

    Attributes:
        allowed: HOST:PORT that are let through.
        asked: What was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.allowed: set[str] = set()
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "ConnectProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 18):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
