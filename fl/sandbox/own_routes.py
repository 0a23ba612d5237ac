"""The one route that the hosted service does not have: what ``fl sandbox status`` asks."""

from __future__ import annotations

from quart import Blueprint, Response, jsonify, request

from fl.sandbox.dispatch import Dispatch
from fl.sandbox.errors import ApiError
from fl.sandbox.identity import Identities
from fl.sandbox.store import Store


def own_routes(store: Store, dispatch: Dispatch, identities: Identities) -> Blueprint:
    """The blueprint."""
    routes = Blueprint("own", __name__)

    @routes.get("/sandbox/endpoints")
    async def endpoints() -> Response:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        known = any(identities.authenticate(client, secret) for client in identities.secrets)
        if scheme != "Sandbox" or not known:
            raise ApiError(401, "AUTHENTICATION_REQUIRED", "this takes a client's secret")
        return jsonify(
            [
                {
                    "id": endpoint.id,
                    "name": endpoint.registration.get("endpoint_name"),
                    "status": "online" if dispatch.liveness.beat(endpoint.id) else "offline",
                }
                for endpoint in store.managers()
            ]
        )

    return routes
