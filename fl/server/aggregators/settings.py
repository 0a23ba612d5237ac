"""Settings that several aggregators share: how clients weigh, and what staleness does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fl.config import Section
from fl.server.aggregators.base import Contribution
from fl.server.strategies import Discount, constant, exponential, harmonic, hinge, polynomial

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
StalenessFunction = Literal["constant", "polynomial", "hinge", "harmonic", "exponential"]

DISCOUNTS: dict[StalenessFunction, Discount] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
    "harmonic": harmonic,
    "exponential": exponential,
}


class ClientWeights(Section):
    """How much a client's update counts."""

    client_weights_mode: Literal["sample_size", "equal", "given"] = "sample_size"
    """By its number of samples, all alike, or as `client_weights` says."""
    client_weights: dict[str, Positive] = Field(default_factory=dict)
    """With `given`: every client's weight, by client_id; their ratios matter."""

    @model_validator(mode="after")
    def _given(self) -> ClientWeights:
        if (self.client_weights_mode == "given") != bool(self.client_weights):
            raise ValueError("client_weights and client_weights_mode: given need each other")
        return self

    def require_weights_of(self, clients: Sequence[str]) -> None:
        """Refuse given weights that are not those of all clients.

        Raises:
            ValueError: One is missing, or of nobody.
        """
        if self.client_weights_mode == "given":
            if missing := sorted(set(clients) - self.client_weights.keys()):
                raise ValueError(f"client_weights has no weight for {missing[0]}")
            if unknown := sorted(self.client_weights.keys() - set(clients)):
                raise ValueError(f"client_weights: {unknown[0]} is no client")

    def weight(self, contribution: Contribution) -> float:
        """An update's weight, to be divided by the sum of all."""
        if self.client_weights_mode == "given":
            return self.client_weights[contribution.client_id]
        return float(contribution.num_samples) if self.client_weights_mode == "sample_size" else 1.0


class Staleness(Section):
    """What becomes of an update's weight while the server steps on without it."""

    staleness_fn: StalenessFunction = "polynomial"
    """Its weight's factor, by the server steps that it missed; `constant` is 1."""
    staleness_fn_kwargs: dict[str, NotNegative] = Field(default_factory=dict)
    """The function's constants: `a` of polynomial, `a` and `b` of hinge, `beta` of the others."""

    @model_validator(mode="after")
    def _known_constants(self) -> Staleness:
        _staleness, *constants = inspect.signature(DISCOUNTS[self.staleness_fn]).parameters
        if unknown := sorted(self.staleness_fn_kwargs.keys() - set(constants)):
            known = " and ".join(constants) or "nothing"
            raise ValueError(f"staleness_fn {self.staleness_fn} takes {known}, not {unknown[0]}")
        return self

    def discount(self) -> Discount:
        """The function with its constants bound."""
        return partial(DISCOUNTS[self.staleness_fn], **self.staleness_fn_kwargs)
