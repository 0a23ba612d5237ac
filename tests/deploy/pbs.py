#!/usr/bin/env python3
"""Stand-ins for qsub, qselect, qstat, qdel and mpiexec, by the name that this file is called by.

They speak PBS Pro's JSON and run the job's script on this machine, one job at a time, with the bare
environment that PBS gives. Jobs live in a folder beside the commands.
"""
# ruff: noqa: T201  (commands print)

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).absolute().parent
JOBS = HERE / "jobs"
SERVER = "pbs-stand-in"
WAITING = "Not Running: Insufficient amount of resource: ncpus"


def qsub(words: list[str]) -> int:
    """Take a job in, or refuse it as a site does."""
    options = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
    script = Path(words[-1])
    lines = re.findall(r"^#PBS -(\w) (.*)$", script.read_text(), re.MULTILINE)
    resources = dict(value.split("=", 1) for letter, value in lines if letter == "l")
    letters = {letter: value for letter, value in lines if letter != "l"}
    if "filesystems" not in resources:
        print("qsub: Resource: filesystems is required to be set.", file=sys.stderr)
        return 1
    if options.get("-A") != "my-project":
        print(f"qsub: Request rejected.  Reason: Not a member of project {options.get('-A')}")
        print("qsub: Invalid account", file=sys.stderr)
        return 1
    JOBS.mkdir(exist_ok=True)
    number = len(list(JOBS.iterdir())) + 1
    job = {
        "Job_Name": letters["N"],
        "queue": options["-q"],
        "Account_Name": options["-A"],
        "Output_Path": f"login:{letters['o']}",
        "Error_Path": f"login:{letters['e']}",
        "script": str(script),
        "pid": 0,
    }
    save(str(number), job)
    schedule()
    print(f"{number}.{SERVER}")
    return 0


def qstat(words: list[str]) -> int:
    """Say what became of the jobs: of those that are named, or of all."""
    schedule()
    named = {word.partition(".")[0] for word in words if word[0].isdigit()}
    told = {}
    for number, job in jobs().items():
        state = state_of(job)
        if (not named or number in named) and (state != "F" or "-x" in words):
            comment = {"Q": WAITING, "R": "Job run at now", "F": "Job finished"}[state]
            told[f"{number}.{SERVER}"] = {**job, "job_state": state, "comment": comment}
    print(json.dumps({"timestamp": int(time.time()), "pbs_version": "2022.1", "Jobs": told}))
    return 0


def qselect(words: list[str]) -> int:
    """Name the jobs that have not ended; all are one user's."""
    schedule()
    for number, job in jobs().items():
        if state_of(job) != "F":
            print(f"{number}.{SERVER}")
    return 0


def qdel(words: list[str]) -> int:
    """End jobs."""
    for number in (word.partition(".")[0] for word in words):
        job = jobs()[number]
        if state_of(job) == "R":
            os.killpg(job["pid"], signal.SIGTERM)
        save(number, {**job, "pid": job["pid"] or -1})
    return 0


def mpiexec(words: list[str]) -> int:
    """Run the command once, on this node."""
    return subprocess.run(words[words.index("/usr/bin/sh") :], check=False).returncode


def schedule() -> None:
    """Start the first job that waits, if none runs."""
    known = jobs()
    waiting = [number for number, job in known.items() if state_of(job) == "Q"]
    if waiting and not any(state_of(job) == "R" for job in known.values()):
        job = known[waiting[0]]
        output, errors = (job[key].partition(":")[2] for key in ("Output_Path", "Error_Path"))
        with Path(output).open("ab") as out, Path(errors).open("ab") as err:
            process = subprocess.Popen(
                ["/bin/bash", job["script"]],
                env={"HOME": str(HERE), "PATH": f"{HERE}:/usr/bin:/bin", "PBS_JOBID": waiting[0]},
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        save(waiting[0], {**job, "pid": process.pid})


def jobs() -> dict[str, dict]:
    """All jobs by number, in the order in which they came."""
    files = sorted(JOBS.glob("*"), key=lambda file: int(file.name)) if JOBS.exists() else []
    return {file.name: json.loads(file.read_text()) for file in files}


def save(number: str, job: dict) -> None:
    """Write a job down; a reader sees all of it or nothing."""
    partial = HERE / f"{number}.partial"
    partial.write_text(json.dumps(job))
    partial.replace(JOBS / number)


def state_of(job: dict) -> str:
    """Q, R or F, as PBS calls them."""
    if job["pid"] == 0:
        return "Q"
    try:
        state = Path(f"/proc/{job['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "F"
    return "F" if state == "Z" else "R"


if __name__ == "__main__":
    command = {"qsub": qsub, "qselect": qselect, "qstat": qstat, "qdel": qdel, "mpiexec": mpiexec}
    sys.exit(command[Path(sys.argv[0]).name](sys.argv[1:]))
