"""Client-level differential privacy at a site: its update hides from its reader what it is made of.

The Gaussian mechanism on what training added to the model, at the site itself (local differential
privacy: Kasiviswanathan et al. 2008, https://arxiv.org/abs/0803.0924; clipped updates: McMahan et
al. 2018, https://arxiv.org/abs/1710.06963). Nobody needs to be trusted with the update, and no data
set that the site might have can be told from another: two clipped updates lie up to twice
`clip_norm` apart, so epsilon is that of half the noise multiplier. The noise is drawn from a
generator of the site's own, as DP-SGD's is.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fl import privacy
from fl.client import frozen
from fl.client.algorithms import delta
from fl.client.spending import PrivacyError
from fl.config import LocalDP
from fl.privacy import Spent
from fl.tensors import Tensors


def require_parameters(model: nn.Module, travelling: Iterable[str]) -> None:
    """Refuse what cannot be clipped and noised: a running variance would not stay one.

    Args:
        model: The model.
        travelling: Names of all that leaves of it.

    Raises:
        PrivacyError: One is no parameter, a complex one, or one that has several names.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in sorted(travelling):
        if name not in parameters:
            raise PrivacyError(
                f"local_dp: the model's buffer {name} would leave without noise: "
                f"{privacy.WITHOUT_BUFFERS}"
            )
        if parameters[name].is_complex():
            raise PrivacyError(f"local_dp: the complex parameter {name} would be left out")
    if first := min(frozen.tied(model), default=None):
        raise PrivacyError(f"local_dp: {first} {frozen.TIED}")


def noised(trained: Tensors, received: Tensors, wanted: LocalDP) -> Tensors:
    """What training added to a model, clipped and noised.

    Args:
        trained: The model after training; parameters alone.
        received: The model before it.
        wanted: The largest norm, and how much noise.

    Returns:
        The differences, in the model's dtypes.

    Raises:
        PrivacyError: Training has diverged, so that the difference has no norm.
    """
    draw = privacy.generator()
    deviation = wanted.noise_multiplier * wanted.clip_norm
    try:
        change = privacy.clipped(delta(trained, received), wanted.clip_norm)
    except ValueError as error:
        raise PrivacyError(f"local_dp: the update cannot be clipped: {error}") from error
    return {
        name: privacy.noisy(tensor, deviation, draw).to(trained[name].dtype)
        for name, tensor in change.items()
    }


def spent(wanted: LocalDP) -> Spent:
    """One update: of two that clipping leaves, each may be at the other end of the ball."""
    return Spent(wanted.noise_multiplier / 2, 1.0, 1)
