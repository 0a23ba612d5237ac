"""Moving encoded models between server and sites, behind one protocol.

A new way is one new file beside these, and its line in `open_transport`.
"""

from fl.transport.base import (
    WAYS,
    GoneError,
    NoPlaceError,
    Ref,
    Store,
    Transport,
    TransportError,
    UnreachableError,
    Way,
)
from fl.transport.ways import open_granted, open_server_transport, open_transport

__all__ = [
    "WAYS",
    "GoneError",
    "NoPlaceError",
    "Ref",
    "Store",
    "Transport",
    "TransportError",
    "UnreachableError",
    "Way",
    "open_granted",
    "open_server_transport",
    "open_transport",
]
