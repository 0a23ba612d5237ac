"""What a lost task costs: which failures another try may mend, how many are made, and when."""

from __future__ import annotations

from fl.client.budget import BlockEnded
from fl.endpoints.base import SiteError
from fl.errors import FederationError
from fl.transport import GoneError, NoPlaceError, UnreachableError

ATTEMPTS = 3
"""Times that a site may lose its task before it gets none until the server's next step."""

PAUSE_SECONDS = 2.0
"""Before a site that lost its task is asked for another, times its losses: an engine that has just
failed is still being taken down, and what is sent to it then is lost."""

WAY_ATTEMPTS = 5
WAY_PAUSE_SECONDS = 10.0
"""The same where a way for models was interrupted or a worker's block ends, the pause twice as long
each time: 150 s in all. Cron looks at an endpoint every minute, and gives one that does not answer
half a minute more. A worker whose block ends takes tasks to its end, `block_margin` or longer."""

GONE = GoneError.__name__
SLOW = (UnreachableError.__name__, BlockEnded.__name__)
"""Failures at a site that a try at once would meet again."""
PASSING = (*SLOW, GONE, NoPlaceError.__name__)
"""Failures at a site that another try may mend: its way for models was interrupted, the model was
lost with the server's endpoint, the store had ended its upload while the task was queued, or its
batch job ended before the first step."""


def patience_after(error: FederationError, losses: int) -> tuple[int, float]:
    """How many losses are borne, and the seconds until a site is asked again.

    Args:
        error: What its task was lost by.
        losses: How many it has lost, that one included.
    """
    kind = error.kind if isinstance(error, SiteError) else type(error).__name__
    if kind in SLOW:
        return WAY_ATTEMPTS, WAY_PAUSE_SECONDS * 2.0 ** (losses - 1)
    return ATTEMPTS, PAUSE_SECONDS * losses
