"""Globus Auth's routes: tokens for client credentials, and who a token belongs to."""

from __future__ import annotations

import base64
import time
from typing import Any

from globus_sdk.exc import GlobusSDKUsageError
from globus_sdk.scopes import ScopeParser
from quart import Blueprint, Response, jsonify, request

from fl.sandbox.identity import AUTH, Identities, resource_server


def auth_routes(identities: Identities) -> Blueprint:
    """The blueprint."""
    routes = Blueprint("auth", __name__)

    @routes.post("/v2/oauth2/token")
    async def token() -> Response:
        form = await request.form
        client_id, secret = _credentials(form.get("client_id", ""), form.get("client_secret", ""))
        if not identities.authenticate(client_id, secret):
            return _refuse(401, {"error": "invalid_client"})
        if form.get("grant_type") != "client_credentials":
            return _refuse(400, {"error": "unsupported_grant_type"})
        scopes = _scopes(form.get("scope", ""))
        servers = {scope: resource_server(scope) for scope in scopes}
        unknown = [scope for scope, server in servers.items() if server is None]
        if unknown or not scopes:
            what = f"UNKNOWN_SCOPE_ERROR: {', '.join(unknown) or 'no scope given'}"
            return _refuse(400, {"error": "invalid_scope", "error_description": what})
        tokens = [
            _token(
                identities.issue(client_id, server, secret),
                identities.token_lifetime_s,
                server,
                [s for s in scopes if servers[s] == server],
            )
            for server in sorted({server for server in servers.values() if server})
        ]
        return jsonify({**tokens[0], "other_tokens": tokens[1:]})

    @routes.post("/v2/oauth2/token/revoke")
    async def revoke() -> Response:
        return jsonify({"active": False})

    @routes.get("/v2/oauth2/userinfo")
    async def userinfo() -> Response:
        client_id = _bearer(identities)
        if client_id is None:
            return _unauthenticated()
        person = _person(client_id)
        return jsonify({**person, "email": None, "identity_set": [person]})

    @routes.get("/v2/api/identities")
    async def people() -> Response:
        if _bearer(identities) is None:
            return _unauthenticated()
        ids = [i for i in request.args.get("ids", "").split(",") if i in identities.secrets]
        found = [{**_person(i), "id": i, "username": _username(i), "email": None} for i in ids]
        return jsonify({"identities": found})

    return routes


def _credentials(client_id: str, secret: str) -> tuple[str, str]:
    """The client's id and secret: from HTTP's Basic scheme, as the SDK does, or from the form."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return client_id, secret
    try:
        client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return client_id, secret


def _scopes(text: str) -> list[str]:
    """The names of the scopes that were asked for, without their dependencies."""
    try:
        return [scope.scope_string for scope in ScopeParser.parse(text)] if text.strip() else []
    except (GlobusSDKUsageError, ValueError):
        return [text]


def _token(issued: str, lifetime_s: float, server: str, scopes: list[str]) -> dict[str, Any]:
    return {
        "access_token": issued,
        "scope": " ".join(scopes),
        "expires_in": int(lifetime_s),
        "token_type": "Bearer",  # the kind of a token, not one  # nosec B105
        "resource_server": server,
    }


def _username(client_id: str) -> str:
    return f"{client_id}@clients.auth.globus.org"


def _person(client_id: str) -> dict[str, Any]:
    return {
        "sub": client_id,
        "name": "fl sandbox client",
        "preferred_username": _username(client_id),
        "username": _username(client_id),
        "last_authentication": int(time.time()),
    }


def _bearer(identities: Identities) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return identities.verify(token, AUTH) if scheme.lower() == "bearer" else None


def _refuse(status: int, body: dict[str, Any]) -> Response:
    response: Response = jsonify(body)
    response.status_code = status
    return response


def _unauthenticated() -> Response:
    detail = "Call must be authenticated"
    error = {"status": "401", "code": "UNAUTHORIZED", "title": "Unauthorized", "detail": detail}
    return _refuse(401, {"errors": [error]})
