"""Puts standard input into this user's scrontab, or takes it out: `put|take MARK [--check]`.

It stands between `# MARK begins` and `# MARK ends`, in place of what stood there. The lines of
others stay, byte by byte, and nothing is written where nothing changes. Prints whether it did.

Read, edited and written in one go: sites of one account share the table.
"""

import json
import os
import re
import subprocess
import sys
from typing import List

UNUSABLE, REFUSED = 1, 3


def call(command: List[str], given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run a command on what it is given, whatever comes of it."""
    return subprocess.run(command, input=given, capture_output=True, check=False)


def read() -> bytes:
    """The table as it is; empty where the user has none yet."""
    done = call(["scrontab", "-l"])
    if done.returncode == 0:
        return done.stdout
    said = done.stderr or done.stdout
    if b"no crontab for" not in said:
        raise OSError(said.decode(errors="replace").strip())
    return b""


def without(table: bytes, begin: bytes, end: bytes) -> bytes:
    """The table without what stands between two lines, nor these."""
    ours = b"^%b\n(.*\n)*?%b\n" % (re.escape(begin), re.escape(end))
    return re.sub(ours, b"", table, flags=re.MULTILINE)


def main(arguments: List[str]) -> int:
    """Do it; one JSON line, or why it cannot be done."""
    verb, mark, *check = arguments
    begin, end = os.fsencode(f"# {mark} begins"), os.fsencode(f"# {mark} ends")
    try:
        table = read()
    except OSError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    wanted = without(table, begin, end)
    if verb == "put":
        wanted += b"" if wanted[-1:] in (b"", b"\n") else b"\n"
        wanted += b"%b\n%b%b\n" % (begin, sys.stdin.buffer.read(), end)
    if wanted != table and not check:
        done = call(["scrontab", "-"], wanted)
        if done.returncode:
            print(done.stderr.decode(errors="replace").strip(), file=sys.stderr)
            return REFUSED
    print(json.dumps({"changed": wanted != table}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
