"""A hub of the tests' own: nginx with the deployment's configuration, in its own folder."""

import contextlib
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from jinja2 import Environment, FileSystemLoader

from fl.config import HubConfigs
from tests import packages
from tests.conftest import TOP

START_SECONDS = 15.0
SEARCH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"


def need() -> None:
    """Skip the test that asks where no hub can be run."""
    if reason := packages.install({"nginx": "nginx", "openssl": "openssl"}):
        pytest.skip(f"the hub needs nginx: {reason}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certify(folder: Path, name: str) -> None:
    """A certificate for 127.0.0.1 that is its own authority, as the play makes it."""
    options = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=hub "
        "-addext subjectAltName=IP:127.0.0.1 -addext keyUsage=critical,digitalSignature,keyCertSign"
    )
    files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
    subprocess.run(["openssl", *options.split(), *files], check=True, capture_output=True)


class Hub:
    """nginx on a port of its own.

    Attributes:
        folder: The site's folder, as the deployment would lay it out.
        objects: Where nginx keeps objects.
        configs: What the server is told of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.objects = folder, folder / "hub" / "objects"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("hub/objects/fl", "hub/incoming", "hub/unused", "logs", "secrets"):
            (folder / name).mkdir(parents=True)
        secret = secrets.token_hex(32)
        (folder / "secrets" / "hub.key").write_text(secret + "\n")
        certify(folder / "secrets", "own")
        port = free_port()
        self._render("hub.conf", folder / "secrets", hub_secret=secret)
        self._render(
            "nginx.conf",
            folder / "hub",
            fl_site_dir=folder,
            fl_hub_address="127.0.0.1",
            fl_hub_port=port,
            hub_user="root",
            hub_certificate=folder / "secrets" / "own.pem",
            hub_certificate_key=folder / "secrets" / "own.key",
        )
        self.configs = HubConfigs(
            enable_hub=True,
            hub_url=f"https://127.0.0.1:{port}",
            hub_secret_file=str(folder / "secrets" / "hub.key"),
            hub_ca_file=str(folder / "secrets" / "own.pem"),
        )

    @staticmethod
    def _render(name: str, folder: Path, **values: object) -> None:
        templates = Environment(loader=FileSystemLoader(TOP / "templates" / "hub"))  # noqa: S701
        (folder / name).write_text(templates.get_template(f"{name}.j2").render(**values))

    def start(self) -> None:
        program = shutil.which("nginx", path=SEARCH)
        assert program
        log, config = self.folder / "logs" / "output", self.folder / "hub" / "nginx.conf"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, "-e", "stderr", "-p", config.parent, "-c", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start:\n{log.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        port = int(self.configs.hub_url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=self.configs.hub_ca_file)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return True
        return False

    def left(self) -> list[str]:
        """Objects that are still there."""
        return sorted(path.name for path in (self.objects / "fl").iterdir())

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
