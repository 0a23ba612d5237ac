"""What a worker keeps built from one task to the next, and makes as new before it is used again.

A warm worker's results are those of a cold one, to the last bit: which worker a task meets must
not matter to a run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from fl.client import devices
from fl.client.frozen import base_digest, frozen
from fl.tensors import Tensors

Built = TypeVar("Built")

_SCALARS = (bool, int, float, complex, str, type(None))


class Kept(Generic[Built]):
    """The last object of a kind, kept with what it was built from."""

    def __init__(self) -> None:
        self._key: Any = None
        self._built: Built | None = None

    def get(self, key: Any, build: Callable[[], Built]) -> Built:
        """The object of a key.

        Args:
            key: What it is built from, comparable.
            build: Builds it, where it is not the one that was kept.

        Returns:
            The object.
        """
        if self._built is None or key != self._key:
            self.forget()
            self._built, self._key = build(), key
        return self._built

    def forget(self) -> None:
        """Let it go, before another one takes its memory or after it may have been damaged."""
        self._built = self._key = None


class AsBuilt:
    """What of a model its `state_dict` does not hold.

    That is: which parameters are trained, buffers that are not saved, and plain values (numbers,
    texts, None) among its modules' attributes, or what was there before. What else a model keeps
    beside its `state_dict`, such as a list that grows, is the model's own to look after.

    Args:
        model: The model, just built.

    Attributes:
        model: The model.
        base: The digest of its frozen parameters, or None.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.base = model, base_digest(frozen(model))
        self._trained = [(tensor, tensor.requires_grad) for tensor in model.parameters()]
        self._modules = [
            (module, vars(module).copy(), _scalars(module), _unsaved(module))
            for module in model.modules()
        ]

    def restore(self) -> nn.Module:
        """The model with all of that as it was built, and without gradients."""
        for tensor, trained in self._trained:
            tensor.requires_grad_(trained)
        for module, built, scalars, buffers in self._modules:
            for name in _scalars(module):
                if name in built:
                    vars(module)[name] = built[name]
                else:
                    delattr(module, name)
            vars(module).update(scalars)
            for name, value in buffers.items():
                setattr(module, name, value.to(_device(self.model), copy=True))
        self.model.zero_grad(set_to_none=True)
        return self.model


def _scalars(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _SCALARS)}


def _unsaved(module: nn.Module) -> Tensors:
    saved = module.state_dict(keep_vars=True)
    return {
        name: buffer.clone()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in saved
    }


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def seed_all(seed: int) -> None:
    """Seed every generator that a model or a data set may draw from."""
    # torch.manual_seed formats a traceback for each kind of device, to seed it once it is there:
    # that takes longer than a small model's step.
    on_cpu = next(devices.present()) == "cpu"
    (torch.default_generator if on_cpu else torch).manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def round_seed(seed: int, client_id: str, round_number: int) -> int:
    """A seed of its own for each client and round, the same on every machine."""
    return zlib.crc32(f"{seed}/{client_id}/{round_number}".encode())
