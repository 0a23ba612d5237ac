"""The sums' contestants and claims."""

import subprocess
import sys

from benchmarks import sums

SECONDS = {
    "ours, one at a time": 0.20,
    "ours, all at once": 0.10,
    "axpy, into the first": 0.18,
    "NVFlare helper, torch": 0.20,
    "Flower aggregate": 0.50,
    "Flower ArrayRecords": 0.39,
}


def test_every_claim_is_printed_as_met_or_missed(capsys):
    measured = {name: [{"seconds": value, "memory": 2.0}] for name, value in SECONDS.items()}
    sums.report(measured, 3.2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("claim")]
    assert said == [
        "claim met: NVFlare / all at once: 2.000, to be at least 1.5",
        "claim missed: the faster of Flower's / all at once: 3.900, to be at least 4",
        "claim met: MB beside the updates: 2.000, to be at most 64",
        "claim missed: axpy / one at a time, of medians: 0.900, to be at least 0.95",
    ]


# A sum with memory of its own would have one pass more than ours.
BEGINS_IN_THE_FIRST = """
own = {tensor.data_ptr() for tensor in updates[0].values()}
assert all(tensor.data_ptr() in own for tensor in work().values())
"""


def test_the_limit_has_the_passes_that_ours_has():
    code = sums.COMMON + sums.AXPY + BEGINS_IN_THE_FIRST
    done = subprocess.run(
        [sys.executable, "-c", code, "1", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
