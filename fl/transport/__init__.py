"""Moving encoded models between server and sites, behind one protocol.

A new way is one new file beside these, and its line in `open_transport`.
"""

from fl.transport.base import GoneError, Ref, Transport, TransportError, UnreachableError
from fl.transport.s3 import SignedS3
from fl.transport.ways import open_server_transport, open_transport

__all__ = [
    "GoneError",
    "Ref",
    "SignedS3",
    "Transport",
    "TransportError",
    "UnreachableError",
    "open_server_transport",
    "open_transport",
]
