"""Client identities and bearer tokens: who may ask, and proof that they did."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

AUTH = "auth.globus.org"
COMPUTE = "funcx_service"
COMPUTE_SCOPE_ID = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
OPENID_SCOPES = {"openid", "email", "profile"}
URN_SCOPE = re.compile(r"urn:globus:auth:scope:([^:]+):\S+")
URL_SCOPE = re.compile(r"https://auth\.globus\.org/scopes/([^/]+)/\S+")


def resource_server(scope: str) -> str | None:
    """The service that a scope is for, or None if it is no Globus scope."""
    if scope in OPENID_SCOPES:
        return AUTH
    match = URN_SCOPE.fullmatch(scope) or URL_SCOPE.fullmatch(scope)
    if match is None:
        return None
    return COMPUTE if match[1] == COMPUTE_SCOPE_ID else match[1]


@dataclass(frozen=True)
class Identities:
    """The clients of this sandbox.

    A token carries its own contents, signed with the secret that it was asked for by: there is
    nothing to keep, and tokens end with their secret.

    Attributes:
        read_secrets: Gives client ids, each with its secrets, which may be several, as at Globus;
            the newest comes first. It is asked every time.
        token_lifetime_s: How long a token is good for; Globus gives 48 h.
    """

    read_secrets: Callable[[], Mapping[str, Sequence[str]]]
    token_lifetime_s: float = 48 * 3600

    @property
    def secrets(self) -> Mapping[str, Sequence[str]]:
        """Client ids, each with its secrets as they are now."""
        return self.read_secrets()

    def authenticate(self, client_id: str, secret: str) -> bool:
        """Whether that is a secret of the client's."""
        return any(
            hmac.compare_digest(known.encode(), secret.encode())
            for known in self.secrets.get(client_id, ())
        )

    def issue(self, client_id: str, server: str, secret: str) -> str:
        """A token with which a client may call a service, as long as it has that secret."""
        claims = [client_id, server, time.time() + self.token_lifetime_s]
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        return f"{payload}.{_signature(secret, payload)}"

    def verify(self, token: str, server: str) -> str | None:
        """The client id of a good token for that service, else None."""
        payload, _, signature = token.partition(".")
        try:
            client_id, audience, expires = json.loads(base64.urlsafe_b64decode(payload))
            good = self._has_signed(client_id, payload, signature)
            return client_id if good and audience == server and time.time() < expires else None
        except (ValueError, TypeError, KeyError, binascii.Error):
            return None

    def broker_password(self, client_id: str) -> str:
        """The password with which a client's SDK takes its results from the broker."""
        return _signature(self.secrets[client_id][0], "broker")

    def is_broker_password(self, client_id: str, password: str) -> bool:
        """Whether that is such a password, by any of the client's secrets."""
        return self._has_signed(client_id, "broker", password)

    def _has_signed(self, client_id: str, text: str, signature: str) -> bool:
        return any(
            hmac.compare_digest(_signature(secret, text).encode(), signature.encode())
            for secret in self.secrets[client_id]
        )


def _signature(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), sha256).hexdigest()
