"""A package, so that no installed one of this name is taken for it.

A benchmark that is terminated takes down what it has started.
"""

from multiprocessing import parent_process

from tests.interrupt import take_sigterm_as_ctrl_c

if parent_process() is None:  # a benchmark's own workers are ended by SIGTERM
    take_sigterm_as_ctrl_c()
