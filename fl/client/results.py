"""What training and evaluating a model say of it."""

from __future__ import annotations

from dataclasses import dataclass

from fl.client.budget import Stopped


@dataclass(frozen=True)
class Evaluation:
    """A model's mean loss and accuracy on a set.

    Attributes:
        loss: Mean of the loss over samples.
        accuracy: Share of labels that have the largest output, 0 to 1.
        num_samples: Samples in the set.
        metric: What the experiment's own metric says, or None without one.
    """

    loss: float
    accuracy: float
    num_samples: int
    metric: float | None = None


@dataclass(frozen=True)
class Training:
    """What training did.

    Attributes:
        loss: Mean minibatch loss over the whole of it.
        steps: Minibatch steps.
        num_samples: Samples in the training set.
        stopped: Why it ended: the budget was used up, or the worker's block ends.
    """

    loss: float
    steps: int
    num_samples: int
    stopped: Stopped
