"""Where commands print."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from rich.console import Console

WIDE = 10_000
"""Columns of what is no terminal: a file or a program is to get whole lines."""


class Output(Console):
    """Standard output, whose loss ends nothing: a run goes on when nobody reads it any more.

    A pipe that is closed, or a disk that is full, is written to no more. Colons in a text are
    colons, such as those of a path, and no emoji.

    Args:
        how: As rich has it.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(emoji=False, **how)
        if not self.is_terminal and "width" not in how:
            self.width = WIDE

    def on_broken_pipe(self) -> None:
        """Be silent, where rich ends the process."""
        self._fall_silent()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was printed."""
        try:
            super().__exit__(kind, error, trace)
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        """Print no more; what is still to be written goes nowhere, at the process's end too."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
