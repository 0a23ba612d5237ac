"""A stand-in for srun and mpiexec: `launcher.py NODES COMMAND...`, every node a process here.

Like them it prints how a process ended, ends all when it is told to, and ends with the last one.
"""
# ruff: noqa: T201  (commands print)

import signal
import subprocess
import sys


def main(nodes: int, command: list[str]) -> int:
    """Start the command so many times, and wait for all."""
    started = [subprocess.Popen(command, start_new_session=True) for _ in range(nodes)]

    def end(*_: object) -> None:
        for process in started:
            process.kill()
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    for number, process in enumerate(started):
        if code := process.wait():
            print(f"launcher: process {number} ended: {code}", flush=True)
    return max(abs(process.returncode) for process in started)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
