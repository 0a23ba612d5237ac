#!/usr/bin/env python3
"""Names the run of ansible-playbook that this is part of, or says whether another is over.

`holder` prints `USER@MACHINE process PID since TIME`; `holder LINE` prints `over` where that line
names a run on this machine that is no more, and `unknown` where it may still go on.
"""

import getpass
import hashlib
import os
import re
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import List

import psutil


def machine() -> str:
    """This machine's name, with what tells it from others that are called localhost, too."""
    file = Path("/etc/machine-id")  # which is not for others to read
    ours = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.exists() else "-"
    return f"{socket.gethostname()}/{ours}"


def describe(process: psutil.Process) -> str:
    """A run, in words that no other run shares."""
    since = datetime.fromtimestamp(process.create_time()).isoformat(" ", "seconds")
    return f"{getpass.getuser()}@{machine()} process {process.pid} since {since}"


def this_run() -> psutil.Process:
    """The outermost ansible-playbook above this process."""
    above = [psutil.Process(), *psutil.Process().parents()]
    runs = [process for process in above if "ansible-playbook" in " ".join(process.cmdline()[:2])]
    return runs[-1] if runs else above[0]


def is_over(line: str) -> bool:
    """Whether a run of this machine's is known to have ended."""
    named = re.match(r"\S+@(\S+) process (\d+) since (.*)", line)
    if not named or named[1] != machine():
        return False
    try:
        return not describe(psutil.Process(int(named[2]))).endswith(named[3])
    except psutil.NoSuchProcess:
        return not is_there(int(named[2]))
    except psutil.AccessDenied:
        return False


def is_there(pid: int) -> bool:
    """Whether there is a process of that number, also where /proc hides others' (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def main(arguments: List[str]) -> int:
    """Print one line."""
    if arguments:
        print("over" if is_over(arguments[0]) else "unknown")
    else:
        print(describe(this_run()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
