"""A package, so that no installed one of this name is taken for it.

A benchmark that is terminated takes down what it has started.
"""

import math
from multiprocessing import parent_process

from tests.interrupt import take_sigterm_as_ctrl_c

if parent_process() is None:  # a benchmark's own workers are ended by SIGTERM
    take_sigterm_as_ctrl_c()


def verdict(
    claim: str, value: float, *, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Print whether a claim is met: its value is within its bounds.

    Args:
        claim: What the value is of.
        value: What was measured; it is rounded to what is as much within the bounds as itself.
        at_least: The least with which the claim is met.
        at_most: The most.
    """

    def within(number: float) -> bool:
        return at_least <= number <= at_most

    digits = 3
    while within(round(value, digits)) != within(value):
        digits += 1
    bounds = {"at least": at_least, "at most": at_most}
    finite = {word: bound for word, bound in bounds.items() if math.isfinite(bound)}
    said = " and ".join(f"{word} {bound:g}" for word, bound in finite.items())
    met = "met" if within(value) else "missed"
    print(f"claim {met}: {claim}: {value:.{digits}f}, to be {said}", flush=True)
