"""The processes that train one model together, as one of them sees them: PyTorch's DDP.

Of every minibatch each rank takes a part, and steps by the gradient of the whole: what a client
trains does not depend on how many ranks it has, but for rounding, dropout, and the statistics of a
batch norm, which are the first rank's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, Sampler

from fl.errors import FederationError


class RanksError(FederationError):
    """Ranks that are to train one model together differ in what they have."""


@dataclass(frozen=True)
class Ranks:
    """One rank among all.

    Attributes:
        rank: Its number, from 0.
        size: How many there are; with more than one, torch's default process group is theirs.
        device: Where this one trains; of one alone, nobody asks.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    def part(self, minibatch: list[int], least: int = 1) -> list[int]:
        """What of a minibatch is this rank's; all of one that has not `least` samples for each."""
        shared = len(minibatch) >= least * self.size
        return minibatch[self.rank :: self.size] if shared else minibatch

    def wrapped(self, model: nn.Module) -> nn.Module:
        """A model for forward passes, whose gradients are means over all ranks."""
        if self.size == 1:
            return model
        # Alone, a model may have parameters that its loss does not reach; so it may here.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def weighed(self, loss: torch.Tensor, samples: int) -> tuple[torch.Tensor, float]:
        """The loss to descend by, and the whole minibatch's.

        Args:
            loss: The mean over this rank's part, a scalar.
            samples: How many those are.

        Returns:
            A scalar whose gradient, averaged over ranks, is that of the whole minibatch's mean
            loss; and that loss.
        """
        if self.size == 1:
            return loss, float(loss.item())
        sums = torch.tensor([loss.item() * samples, samples], device=self.device)
        dist.all_reduce(sums)
        total, count = sums.tolist()
        return loss * (self.size * samples / count), total / count

    def require_same_set(self, samples: int) -> None:
        """See that all ranks have loaded a set of the same size; which it is, is not told.

        Args:
            samples: How many this rank has.

        Raises:
            RanksError: Another has more, or fewer.
        """
        least, most = (torch.tensor(samples, device=self.device) for _ in range(2))
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if least != most:
            raise RanksError(
                "the loader gave some ranks more samples than others: do all nodes see the same "
                "files?"
            )

    def agreed(self, number: int) -> int:
        """The first rank's number, at all ranks: clocks differ, and all must do the same steps."""
        if self.size == 1:
            return number
        told = torch.tensor(number, device=self.device)
        dist.broadcast(told, src=0)
        return int(told.item())


ALONE = Ranks()
"""A client that trains in its task's own process."""


class Part(Sampler[list[int]]):
    """One rank's part of the minibatches that a sampler gives every rank alike.

    Args:
        whole: That sampler.
        ranks: The rank.
    """

    def __init__(self, whole: BatchSampler, ranks: Ranks) -> None:
        self._whole, self._ranks = whole, ranks

    def __len__(self) -> int:
        """Minibatches an epoch."""
        return len(self._whole)

    def __iter__(self) -> Iterator[list[int]]:
        """The parts, as places in the set."""
        for minibatch in self._whole:
            # Of a last one, no batch norm is to get a single sample where there are more.
            least = 1 if len(minibatch) == self._whole.batch_size else 2
            yield self._ranks.part(minibatch, least)
