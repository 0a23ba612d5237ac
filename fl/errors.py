"""The one base class of everything that a user can put right.

A `FederationError` carries a message that says in one line what is wrong and what to do.
The command line prints that line and no traceback.
"""

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""


class FederationError(Exception):
    """Something a person can act on; its text is shown as it is.

    Attributes:
        exit_code: The command's that it ends: 1, it failed on the way.
    """

    exit_code = 1


def in_one_line(error: BaseException) -> str:
    """An exception for a person: our own by its text, others with their type, in one line."""
    known = isinstance(error, FederationError)
    return " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
