"""Aggregators that a minority of wrong updates cannot steer; they hold all updates of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fl.config import PositiveInt, Section
from fl.server.aggregators.base import Holding
from fl.server.robust import coordinate_median, multi_krum, trimmed_mean
from fl.tensors import Tensors


class Median(Holding):
    """Each coordinate's median (Yin et al. 2018, arXiv 1803.01498)."""

    class Settings(Section):
        """None."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        super().__init__()

    def _combine(self, updates: Sequence[Tensors]) -> Tensors:
        return coordinate_median(updates)


class TrimmedMean(Holding):
    """Each coordinate's mean without its extremes (Yin et al. 2018)."""

    class Settings(Section):
        """How much is extreme."""

        fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
        """Share of the updates that is left out at each end."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        super().__init__()
        self._fraction = settings.fraction
        if self._fraction > 0:
            self.least = math.ceil(1 / self._fraction - 1e-9)

    def _combine(self, updates: Sequence[Tensors]) -> Tensors:
        return trimmed_mean(updates, fraction=self._fraction)


class MultiKrum(Holding):
    """The mean of the updates closest to others (Blanchard et al. 2017, papers.nips.cc/paper/6617).

    A step needs 2 `num_byzantine` + 3 updates, and `keep` + `num_byzantine`: of fewer, wrong ones
    are kept.
    """

    class Settings(Section):
        """How many to outvote."""

        num_byzantine: Annotated[int, Field(ge=0)] = 1
        """f: updates of a step that may be wrong."""
        keep: PositiveInt | None = None
        """m: updates that are averaged, all but f at most; all but f + 2 where not set. 1 is
        Krum."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        wrong = settings.num_byzantine
        needed = max(2 * wrong + 3, (settings.keep or 0) + wrong)
        if len(clients) < needed:
            raise ValueError(
                f"num_byzantine {wrong} and keep {settings.keep} need at least "
                f"{needed} clients, not {len(clients)}"
            )
        self.least = needed
        self._settings = settings

    def _combine(self, updates: Sequence[Tensors]) -> Tensors:
        return multi_krum(
            updates, num_byzantine=self._settings.num_byzantine, keep=self._settings.keep
        )
