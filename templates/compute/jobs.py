#!/usr/bin/env python3
"""Says in the scheduler's own words what has become of a site's jobs: `jobs ENGINE FOLDER`.

A line for each job whose files are below the folder; nothing where there is none, or no scheduler.
"""

import getpass
import json
import subprocess
import sys
from typing import Iterator, List, Tuple

SECONDS = 30


def slurm() -> Iterator[Tuple[str, str]]:
    """Slurm's: what it says of a job, and the path of the job's script."""
    columns = "job %i in partition %P: %T (%r)|%o"
    for line in _ask(["squeue", "--noheader", "--user", getpass.getuser(), "--format", columns]):
        said, _, path = line.partition("|")
        yield said, path


def pbspro() -> Iterator[Tuple[str, str]]:
    """PBS's: what it says of a job, and the path of what the job prints."""
    numbers = _ask(["qselect", "-u", getpass.getuser()])
    if not numbers:
        return
    try:
        answer = json.loads("\n".join(_ask(["qstat", "-f", "-F", "json", *numbers])))
    except (OSError, ValueError) as error:
        # A job has just ended; or PBS makes no JSON of what stands in a job's environment.
        print(f"qstat does not say more of {len(numbers)} jobs: {error}", file=sys.stderr)
        return
    for number, job in answer.get("Jobs", {}).items():
        comment = job.get("comment", "no comment")
        said = f"job {number} in queue {job['queue']}: {job['job_state']} ({comment})"
        yield said, job.get("Output_Path", "")


def _ask(command: List[str]) -> List[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def main(arguments: List[str]) -> int:
    """Print the jobs, or one line of why the scheduler does not say."""
    engine, folder = arguments
    ask = {"slurm": slurm, "pbspro": pbspro}.get(engine)
    try:
        for said, path in ask() if ask else ():
            if folder in path:
                print(said)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
