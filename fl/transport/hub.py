"""Models through the federation's own HTTPS hub: nginx beside the server, which sites ask outwards.

nginx keeps an object as files, one a part, in a folder of its name. It serves whoever shows a
signature of method, object and time: the server and nginx alone hold the secret, sites get URLs.
https://nginx.org/en/docs/http/ngx_http_secure_link_module.html
https://nginx.org/en/docs/http/ngx_http_dav_module.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import ssl
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl.config import HubConfigs
from fl.tensors import Data, size
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError, wrong_way
from fl.transport.parts import PART_BYTES, VALID_SECONDS, Adapter, Parts, side_by_side

NAME = "hub"
OBJECT = re.compile(r"[0-9a-f]{32}")
AGAIN = 256
"""The last objects are deleted once more at the end, so many: for days a site may put one again."""
CLOSE_SECONDS = 60.0
"""What deleting all that is left may take in the end, should the hub not answer."""
REFUSALS = {
    403: "the hub does not take this URL: does it hold another secret than the server's?",
    410: "the URL has expired",
    413: "a part is larger than the hub takes: is it of another version of fl?",
}


class SignedHub:
    """A site's side: URLs and no secret.

    Args:
        grant: What the server's `HubTransport.grant` gave, to put one object.

    Raises:
        TransportError: The grant is not for TLS.
    """

    name = NAME
    limit: int | None = None

    def __init__(self, grant: Mapping[str, Any]) -> None:
        self._grant = grant
        self._parts = connect(grant["url"], grant["ca"])

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`; what puts it hashes it meanwhile."""
        grant = self._grant
        urls = [f"{grant['url']}{number}?{query}" for number, query in enumerate(grant["put"])]
        _, digest = self._parts.put(urls, pieces, PART_BYTES)
        return Ref(self.name, {"object": grant["object"]}, size(pieces), digest)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`."""
        if ref.transport != self.name or not {"url", "query", "ca"} <= ref.key.keys():
            raise wrong_way(ref, self.name)
        parts = connect(ref.key["url"], ref.key["ca"])
        try:
            return parts.read(ref, _places(ref, ref.key["url"], ref.key["query"]), seconds)
        finally:
            parts.close()

    def close(self) -> None:
        """Close connections."""
        self._parts.close()


class HubTransport:
    """The server's side: it holds the secret, and signs.

    Args:
        configs: Where the hub is, and what it is known by.

    Raises:
        TransportError: A file cannot be read, or the hub does not answer as ours.
    """

    name = NAME
    limit: int | None = None

    def __init__(self, configs: HubConfigs) -> None:
        self._secret = _text(configs.hub_secret_file).strip()
        certificates = _text(configs.hub_ca_file) if configs.hub_ca_file else ""
        self._ca = base64.b64encode(certificates.encode()).decode()
        self._address = configs.hub_url.rstrip("/")
        self._granted: set[str] = set()
        self._evicted: deque[str] = deque(maxlen=AGAIN)
        self._parts = connect(configs.hub_url, self._ca)
        name = uuid.uuid4().hex
        if not self._refuses(self._url(name)):
            raise TransportError(
                f"{self._address} answers as none of ours: is it the hub's address?"
            )
        with suppress(GoneError):  # an object that is not there: the hub is ours
            self._parts.ask("DELETE", self._signed("DELETE", name))

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        grant = self.grant(size(pieces))
        site = SignedHub(grant)
        try:
            ref = site.put(*pieces)
        except TransportError:
            with suppress(TransportError):
                self._delete(grant["object"])
            raise
        finally:
            site.close()
        url, query = self._url(grant["object"]), self._query("GET", grant["object"])
        return replace(ref, key={**ref.key, "url": url, "query": query, "ca": self._ca})

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`; a URL in the reference is not used: a site may have written it."""
        name = self._object(ref)
        return self._parts.read(
            ref, _places(ref, self._url(name), self._query("GET", name)), seconds
        )

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._delete(self._object(ref))

    def grant(self, size: int | None) -> dict[str, Any]:
        """See `Transport.grant`: a signature for each part.

        Args:
            size: The most bytes that will be put, or None.

        Returns:
            JSON types.
        """
        name = uuid.uuid4().hex
        grant = {"transport": self.name, "url": self._url(name), "ca": self._ca}
        if size is None:
            return grant
        self._granted.add(name)
        return {
            **grant,
            "object": name,
            "put": [
                self._query("PUT", f"{name}/{number}")
                for number in range(max(1, -(-size // PART_BYTES)))
            ],
        }

    def close(self) -> None:
        """Take back what was granted: who was lost may have put it, or put it again since."""
        until = time.monotonic() + CLOSE_SECONDS

        def delete(name: str) -> None:
            with suppress(TransportError):  # what cannot be deleted now is left
                self._delete(name, until - time.monotonic())

        for _ in side_by_side(delete, [*self._granted, *self._evicted]):
            pass
        self._parts.close()

    def _refuses(self, url: str) -> bool:
        """Whether a URL that is not signed is refused; to others it is of something they lack."""
        try:
            self._parts.ask("DELETE", url)
        except UnreachableError:
            raise
        except TransportError as error:
            return not isinstance(error, GoneError)
        return False

    def _delete(self, name: str, seconds: float = math.inf) -> None:
        with suppress(GoneError):
            self._parts.ask("DELETE", self._signed("DELETE", name), seconds=seconds)
        self._granted.discard(name)
        self._evicted.append(name)

    def _object(self, ref: Ref) -> str:
        """An object's name: one of ours, whatever a site says."""
        name = ref.key.get("object", "")
        if ref.transport != self.name or not OBJECT.fullmatch(name):
            raise wrong_way(ref, self.name)
        return name

    def _url(self, name: str) -> str:
        return f"{self._address}/fl/{name}/"

    def _signed(self, method: str, name: str) -> str:
        return f"{self._url(name)}?{self._query(method, name)}"

    def _query(self, method: str, scope: str) -> str:
        """What lets one method at one object, or at one part of it, for as long as a URL lasts.

        MD5 is all that nginx's module knows. What it is bad at, collisions of texts that somebody
        may choose, is of no use here: the server draws what is signed, and the secret comes last.
        """
        expires = int(time.time()) + VALID_SECONDS
        text = f"{expires} {method} {scope} {self._secret}"
        signature = hashlib.md5(text.encode(), usedforsecurity=False).digest()
        return f"e={expires}&s={base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


class _Trusting(Adapter):
    """Connects by TLS to who shows a certificate of these authorities, and to nobody else.

    Args:
        context: Trusts them.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """See requests."""
        super().init_poolmanager(*arguments, ssl_context=self._context, **keywords)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        """See requests: behind a proxy, too."""
        return super().proxy_manager_for(proxy, ssl_context=self._context, **keywords)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """See requests, which would have the world's authorities trusted as well."""

    def build_connection_pool_key_attributes(
        self,
        request: Any,
        verify: Any,  # noqa: ARG002  (requests calls it so)
        cert: Any = None,
    ) -> Any:
        """See requests: the same, where the environment names a file of them."""
        return super().build_connection_pool_key_attributes(request, True, cert)


def connect(url: str, ca: str) -> Parts:
    """A connection to the hub.

    Args:
        url: One of its URLs.
        ca: Certificates in PEM, in base64, which it is known by; empty for the world's authorities.

    Returns:
        What asks it.

    Raises:
        TransportError: The URL is not of TLS, or the certificates are none.
    """
    if not url.startswith("https://"):
        raise TransportError("the hub is reached by https:// alone")
    if not ca:
        return Parts("hub", REFUSALS)
    try:
        context = ssl.create_default_context(cadata=base64.b64decode(ca).decode())
    except (ssl.SSLError, binascii.Error, ValueError) as error:
        raise TransportError(f"the hub's CA file holds no certificates: {error}") from error
    return Parts("hub", REFUSALS, _Trusting(context))


def _places(ref: Ref, url: str, query: str) -> Iterator[tuple[str, int]]:
    """Where an object's parts are: each a file, whose begin is wanted."""
    for number in range(-(-ref.size // PART_BYTES)):
        yield f"{url}{number}?{query}", 0


def _text(file: str) -> str:
    path = Path(file).expanduser()
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise TransportError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
