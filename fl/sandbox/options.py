"""What the user of a sandbox may choose; apart from the service, which takes long to import."""

from __future__ import annotations

from dataclasses import dataclass

WEB_PORT = 5000
REQUEST = "FL_SANDBOX_REQUEST"
"""The variable by which the service is told its options."""


@dataclass(frozen=True)
class Options:
    """A sandbox's settings.

    Attributes:
        broker: URL of a RabbitMQ to use; empty for the sandbox's own broker.
        broker_port: Port of the sandbox's own broker; 0 for the last one, at first a free one.
        relay_port: Port of the relay; 0 for the last one, at first a free one.
        web_port: Port of the web service. The SDK's ``local`` environment only ever asks 5000.
    """

    broker: str = ""
    broker_port: int = 0
    relay_port: int = 0
    web_port: int = WEB_PORT
