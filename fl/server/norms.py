"""How large an update may be: a coarse net against one that would drown all others.

Clipping and robust aggregation (docs/algorithms.md) are finer; this one is always there, and only
catches what no honest training does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from fl.errors import FederationError


class NormError(FederationError):
    """An update is too large to be believed."""


def require_norm(found: float, factor: float, model: float, last: Iterable[float]) -> None:
    """Refuse an update that is many times larger than the model and than what sites send.

    The larger of the two counts: updates shrink as training converges, so alone they would condemn
    an honest late-comer, and a model may begin at zero. The median of one site's norm would let
    that site condemn all others; of two or more, half of them would have to lie.

    Args:
        found: The update's norm.
        factor: How many times.
        model: The norm of the global model.
        last: The norm of each site's last update that was used.

    Raises:
        NormError: It is larger. Where nothing is known yet, nothing is.
    """
    if found <= factor * model:
        return  # whatever the others send: with a thousand sites, looking takes longer than the sum
    known: Sequence[float] = sorted(last)
    usual = max(model, median(known) if len(known) > 1 else 0.0)
    if usual > 0 and not found <= factor * usual:
        raise NormError(
            f"its update's norm is {found:.3g}, over {factor:g} times the model's and the usual "
            f"update's ({usual:.3g}; server_configs.norm_bound)"
        )
