"""A client's data sets: loaded by the site's own loader, kept while the worker lives."""

from __future__ import annotations

import zlib
from collections.abc import Sized
from typing import Any, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from fl.client import site_code
from fl.client.ranks import ALONE, Part, Ranks
from fl.client.warm import Kept, seed_all
from fl.config import DataConfigs, TrainConfigs
from fl.errors import FederationError

Sets = tuple[Dataset[Any], Dataset[Any] | None]


class DataError(FederationError):
    """A loader gave something that cannot be trained on."""


LOOKED_AT = 1000
"""Samples of a set that are read to see its classes, where it does not tell its labels."""

_loaded: Kept[Sets] = Kept()
_training: Kept[DataLoader[Any]] = Kept()
_validation: Kept[DataLoader[Any]] = Kept()


def datasets(configs: DataConfigs, run: str | None) -> Sets:
    """The training and the validation set that a loader returns.

    A worker that stays warm between rounds loads once a run, since data change: what was loaded is
    kept by the run and the loader's code and arguments, one at a time. What a loader draws, such as
    a split that it does not seed itself, is the same in every worker.

    Args:
        configs: The loader's file, function and arguments.
        run: The run's id; without one nothing is kept.

    Returns:
        The training set, and the validation set or None.

    Raises:
        SiteCodeError: The loader is not the site's, or fails to import.
        DataError: It raised, or returned something else than two data sets of pairs.
    """
    loader = site_code.load(configs.dataset_path, configs.dataset_name)
    if run is None:
        _loaded.forget()
        return _call(loader, configs)
    return _loaded.get((loader, configs, run), lambda: _call(loader, configs))


def _call(loader: Any, configs: DataConfigs) -> Sets:
    name = f"{configs.dataset_path}: {configs.dataset_name}"
    _training.forget()  # or the last set would stay in memory beside the next
    _validation.forget()
    seed_all(zlib.crc32(configs.model_dump_json().encode()))
    try:
        found = loader(**configs.dataset_kwargs)
    except site_code.FAULTS as error:
        raise DataError(f"{name} raised {site_code.raised(error)}") from error
    match found:
        case (train, validation):
            sets = cast(Sets, (train, validation))
        case _:
            raise DataError(f"{name} must return a training set and a validation set (or None)")
    for dataset in sets if sets[1] is not None else sets[:1]:
        _require_set(name, dataset)
    if count(sets[0]) == 0:
        raise DataError(f"{name} returned no training samples")
    for dataset in sets:
        if dataset is not None and count(dataset):
            _require_pairs(name, dataset)
    return sets


def _require_set(name: str, dataset: Any) -> None:
    """Refuse what has no length or no samples by their numbers."""
    if isinstance(dataset, DataLoader):
        raise DataError(
            f"{name} returned a DataLoader; return its data set alone: minibatches are made by "
            "train_batch_size and val_batch_size"
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} returned {type(dataset).__name__}, a data set with __len__ and __getitem__ "
            "was expected"
        )


def _require_pairs(name: str, dataset: Dataset[Any]) -> None:
    try:
        sample = dataset[0]
    except site_code.FAULTS as error:
        raise DataError(f"{name}: its first sample raised {site_code.raised(error)}") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        size = f" of {len(sample)}" if isinstance(sample, Sized) else ""
        raise DataError(
            f"{name}: a sample is {type(sample).__name__}{size}, "
            "a pair of input and label was expected"
        )


def count(dataset: Dataset[Any]) -> int:
    """Number of samples in a data set."""
    return len(cast(Sized, dataset))


def describe(dataset: Dataset[Any]) -> str:
    """A data set for the server's eyes: how many samples of what shape and which classes.

    Args:
        dataset: Samples of (input, label).

    Returns:
        Such as `1,437 samples of [1, 8, 8] float32, 10 classes (0 to 9)`; of labels that are no
        whole numbers, no classes.
    """
    sample = dataset[0]
    shape = getattr(sample[0], "shape", None)
    of = "" if shape is None else f" of {list(shape)} {str(sample[0].dtype).split('.')[-1]}"
    return f"{count(dataset):,} samples{of}{_classes(dataset)}"


def _classes(dataset: Dataset[Any]) -> str:
    """Which classes there are: in all of a set that tells its labels, else in its beginning."""
    labels, some = _labels(dataset)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        return ""
    found = torch.unique(labels.long()).tolist()
    row = len(found) > 2 and found == list(range(found[0], found[-1] + 1))
    named = f"{found[0]} to {found[-1]}" if row else _few(found)
    plural = "class" if len(found) == 1 else "classes"
    return f", {len(found)} {plural} ({named}){f' in the first {LOOKED_AT:,}' if some else ''}"


def _few(names: list[int]) -> str:
    return ", ".join(str(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _labels(dataset: Dataset[Any]) -> tuple[torch.Tensor, bool]:
    """A set's labels, and whether those are the first of more."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1], False
    if (targets := getattr(dataset, "targets", None)) is not None:  # torchvision's name
        return torch.as_tensor(targets), False
    few = range(min(count(dataset), LOOKED_AT))
    first = [torch.as_tensor(dataset[number][1]) for number in few]
    alike = all(label.shape == first[0].shape for label in first)
    return torch.stack(first if alike else first[:1]), count(dataset) > LOOKED_AT


def training_batches(
    dataset: Dataset[Any], configs: TrainConfigs, seed: int, ranks: Ranks = ALONE
) -> DataLoader[Any]:
    """Minibatches for training, shuffled from a seed so that a round can be repeated.

    Args:
        dataset: Samples of (input, label).
        configs: Batch size, shuffling, workers.
        seed: Decides the order.
        ranks: Who trains together; a minibatch is this rank's part of it.

    Returns:
        The minibatches of an epoch; each time they are asked for, of the next one.
    """
    # The minibatches that are kept keep their set, and so its id.
    key = (
        id(dataset),
        configs.train_batch_size,
        configs.train_data_shuffle,
        configs.train_drop_last,
        configs.num_workers,
        ranks,
    )
    batches = _training.get(key, lambda: _shuffled(dataset, configs, ranks))
    batches.generator.manual_seed(seed)
    return batches


def validation_batches(dataset: Dataset[Any], configs: TrainConfigs) -> DataLoader[Any]:
    """Minibatches for evaluation, in order."""
    order = SequentialSampler(cast(Sized, dataset))
    return _validation.get(
        (id(dataset), configs.val_batch_size, configs.num_workers),
        lambda: _batches(dataset, BatchSampler(order, configs.val_batch_size, False), configs),
    )


def _shuffled(dataset: Dataset[Any], configs: TrainConfigs, ranks: Ranks) -> DataLoader[Any]:
    generator, samples = torch.Generator(), cast(Sized, dataset)
    order: Sampler[int] = (
        RandomSampler(samples, generator=generator)
        if configs.train_data_shuffle
        else SequentialSampler(samples)
    )
    sampler = BatchSampler(order, configs.train_batch_size, configs.train_drop_last)
    return _batches(dataset, Part(sampler, ranks), configs, generator)


def _batches(
    dataset: Dataset[Any],
    sampler: Sampler[list[int]],
    configs: TrainConfigs,
    generator: torch.Generator | None = None,
) -> DataLoader[Any]:
    """Minibatches of a set; a TensorDataset gives each at once, not sample by sample.

    Workers are started for every epoch: those that live on keep drawing from the last round's
    seed, and a warm client would differ from a cold one.
    """
    if type(dataset) is TensorDataset:
        return DataLoader(
            dataset, sampler=sampler, batch_size=None, generator=generator, **workers(configs)
        )
    return DataLoader(dataset, batch_sampler=sampler, generator=generator, **workers(configs))


def workers(configs: TrainConfigs) -> dict[str, Any]:
    """How a `DataLoader` reads samples: in this process, or in so many of its own.

    Those are forked. Where a task runs, in a process that was spawned, torch would spawn them too,
    and a spawned one has none of the site's code.

    Args:
        configs: How many there are to be.

    Returns:
        Arguments of `DataLoader`.
    """
    count = configs.num_workers
    return {"num_workers": count, "multiprocessing_context": "fork" if count else None}
