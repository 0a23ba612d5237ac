"""The base of a model: parameters that it marks frozen, which both sides build and nobody sends.

With adapters such as LoRA's (Hu et al. 2021, arXiv 2106.09685) these are nearly all of it. What
travels is the rest: parameters that are trained, and buffers. Server and sites build the base from
the same file, seed or weights, and a digest says whether they did.
"""

from __future__ import annotations

import torch
from torch import nn

from fl.errors import FederationError
from fl.tensors import Tensors, digest_each, each_piece

TIED = (
    "is another name of a weight that has one already: noise, which is drawn for each name, would "
    "tear them apart; give each a weight of its own"
)
"""Why noise refuses a weight of several names."""


class BaseError(FederationError):
    """A site's base is not the server's, or training changed it."""


def frozen(model: nn.Module) -> Tensors:
    """A model's frozen parameters.

    Args:
        model: The model, as it was built.

    Returns:
        Those with `requires_grad=False`, by their names in `state_dict`; the model's own memory.
    """
    whole = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in whole.items() if _is_frozen(tensor)}


def travelling(model: nn.Module) -> Tensors:
    """What else its `state_dict` has, which is what server and sites send each other.

    Args:
        model: The model, as it was built.

    Returns:
        Trained parameters and buffers, by name; the model's own memory.
    """
    whole = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in whole.items() if not _is_frozen(tensor)}


def buffers(model: nn.Module) -> set[str]:
    """Names of what no optimizer steps, such as batch norm's running statistics.

    Args:
        model: The model.

    Returns:
        Every name that its `state_dict` may have them under: a module may stand in it twice.
    """
    return {name for name, _ in model.named_buffers(remove_duplicate=False)}


def tied(model: nn.Module) -> set[str]:
    """Further names of trained weights that have one already, as a head's that is the embedding.

    Args:
        model: The model.
    """
    trained = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return trained - {name for name, _ in model.named_parameters()}


def _is_frozen(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def base_digest(base: Tensors) -> str | None:
    """The digest of frozen parameters: of their names, shapes, dtypes and values.

    Args:
        base: The parameters; any device.

    Returns:
        The digest in hex; None if nothing is frozen.
    """
    return digest_each(each_piece(base)) if base else None


def require_base(own: str | None, servers: str | None) -> None:
    """Refuse to train on another base than the server's.

    Args:
        own: The digest of this site's.
        servers: The digest of the server's.

    Raises:
        BaseError: They differ.
    """
    if own != servers:
        raise BaseError(
            f"the model's frozen parameters are not the server's (digest {_short(own)} here, "
            f"{_short(servers)} there): build both from the same file, model_kwargs, seed and, "
            "where it reads one, weights file"
        )


def require_untouched(base: Tensors, before: str | None) -> None:
    """Refuse to leave at the site what training did to the base.

    Args:
        base: The frozen parameters after training.
        before: Their digest before it.

    Raises:
        BaseError: They changed.
    """
    if base_digest(base) != before:
        raise BaseError(
            "training changed parameters that the model marks frozen (requires_grad=False), which "
            "do not travel: let the model keep them as buffers, or have them trained"
        )


def _short(base: str | None) -> str:
    return "none" if base is None else base[:8]
