"""SIGTERM taken as Ctrl-C by tests and benchmarks: what was started is taken down."""

import signal
from types import FrameType


def take_sigterm_as_ctrl_c() -> None:
    """Have the first SIGTERM raise KeyboardInterrupt, and no other one break the clean-up off.

    `timeout`, for one, sends two: to its command, and to the group that this is in.
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Not SIG_IGN: what the clean-up starts would inherit it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise KeyboardInterrupt
