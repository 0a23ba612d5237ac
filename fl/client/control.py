"""SCAFFOLD's control variates on their way: in the model's own file, beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl.tensors import Tensors

PREFIX = "control/"
"""What the name of a control has before its parameter's name, in a model's file."""


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A model and the controls that travelled in its file.

    Args:
        tensors: A file's tensors.

    Returns:
        The model's tensors; and the controls, by parameter.
    """
    controls = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    return {name: t for name, t in tensors.items() if not name.startswith(PREFIX)}, controls


def prefixed(controls: Mapping[str, torch.Tensor]) -> Tensors:
    """Controls by the names under which they travel beside a model's tensors."""
    return {PREFIX + name: tensor for name, tensor in controls.items()}
