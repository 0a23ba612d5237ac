"""Says in the scheduler's own words what has become of a site's jobs: `ENGINE FOLDER SECONDS`.

A line for each job whose files are below the folder; nothing where there is none, or no scheduler.
Each command of the scheduler's has that many seconds.
"""

import getpass
import json
import os
import subprocess
import sys
from typing import Iterator, List, Tuple


def slurm(seconds: float) -> Iterator[Tuple[str, str]]:
    """Slurm's: what it says of a job, and the path of the job's script."""
    columns = "job %i in partition %P: %T (%r)|%o"
    command = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", columns]
    for line in _ask(command, seconds):
        said, _, path = line.partition("|")
        yield said, path


def pbspro(seconds: float) -> Iterator[Tuple[str, str]]:
    """PBS's: what it says of a job, and the path of what the job prints."""
    numbers = _ask(["qselect", "-u", getpass.getuser()], seconds)
    if not numbers:
        return
    try:
        answer = json.loads("\n".join(_ask(["qstat", "-f", "-F", "json", *numbers], seconds)))
    except (OSError, ValueError) as error:
        # A job has just ended; or PBS makes no JSON of what stands in a job's environment.
        print(f"qstat does not say more of {len(numbers)} jobs: {error}", file=sys.stderr)
        return
    for number, job in answer.get("Jobs", {}).items():
        comment = job.get("comment", "no comment")
        said = f"job {number} in queue {job['queue']}: {job['job_state']} ({comment})"
        yield said, job.get("Output_Path", "")


def _ask(command: List[str], seconds: float) -> List[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def main(arguments: List[str]) -> int:
    """Print the jobs, or one line of why the scheduler does not say."""
    engine, folder, seconds = arguments
    # Another site's folder may begin as this one's does. Globus Compute follows links in its own.
    below = {path.rstrip("/") + "/" for path in (folder, os.path.realpath(folder))}
    ask = {"slurm": slurm, "pbspro": pbspro}.get(engine)
    try:
        for said, path in ask(float(seconds)) if ask else ():
            if any(one in path for one in below):
                print(said)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
