"""Moving encoded models between server and sites, behind one protocol.

A new way is one new file beside these, and its line in `open_transport`.
"""

from fl.transport.base import GoneError, Ref, Transport, TransportError, UnreachableError
from fl.transport.ways import open_transport

__all__ = ["GoneError", "Ref", "Transport", "TransportError", "UnreachableError", "open_transport"]
