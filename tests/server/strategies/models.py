"""Models of all kinds of tensors, and sums of them."""

import torch

from fl.server.aggregation import WeightedMean


def model(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 5, generator=generator, dtype=torch.float64).to(dtype),
        "scalar": torch.randn((), generator=generator, dtype=torch.float64).to(dtype),
        "count": torch.tensor(seed),
        "flag": torch.tensor(seed % 2 == 0),
    }


def copy(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def difference(update, base):
    return {
        name: tensor - base[name] if tensor.is_floating_point() else tensor
        for name, tensor in update.items()
    }


def running(updates, weights):
    mean = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        mean.add({name: tensor.clone() for name, tensor in update.items()}, weight)
    return mean.result()


def w(tensors):
    return tensors["w"].double().numpy()
