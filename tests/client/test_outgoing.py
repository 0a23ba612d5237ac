"""What goes back of a round."""

import time

import pytest
import torch

from fl.client import budget, codec, outgoing, task
from fl.compression import decompress
from fl.config import CompressorConfigs
from fl.tensors import decode, encode
from fl.transport import Ref, UnreachableError
from fl.transport.inline import InlineTransport


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_difference_is_the_trained_model_less_the_received(site, dtype):
    net = ("Net", {"dtype": dtype, "frozen": True})
    settings = {
        "weights": site.build(net[0], **net[1]),
        "base": site.base(net[0], **net[1]),
        "model": net,
        "train_configs": {"optim_args": {"lr": 0.1}, "num_local_epochs": 3},
    }
    start = settings["weights"]
    start["layers.1.num_batches_tracked"] += 5
    end = site.update(**settings)
    moved = site.update(**settings, update="difference")
    assert {name: tensor.dtype for name, tensor in moved.items()} == {
        name: tensor.dtype for name, tensor in start.items()
    }
    for name, tensor in moved.items():
        if name.endswith("num_batches_tracked"):
            assert tensor == end[name] == 8  # a counter's value, not its difference
        else:
            assert torch.equal(tensor, end[name] - start[name])
    assert "layers.0.weight" not in moved
    assert torch.count_nonzero(moved["layers.3.bias"]) > 0


@pytest.mark.parametrize("lossy", [None, "bf16", "int8"])
def test_an_update_travels_in_the_format_that_the_server_wants(site, lossy):
    wanted = {
        "enable_compression": True,
        "lossy_compressor": lossy,
        "lossless_compressor": "zstd",
        "param_cutoff": 8,
    }
    plain = site.update(update="difference")
    coded = site.update(update="difference", compressor_configs=wanted)
    assert coded["layers.0.weight"].dtype == torch.uint8
    copy = decompress(coded, plain, CompressorConfigs(**wanted))
    for name, tensor in plain.items():
        torch.testing.assert_close(copy[name], tensor, rtol=0.01, atol=1e-3 if lossy else 0)


def test_auto_is_decided_by_the_speed_at_which_the_model_came(site, monkeypatch):
    wanted = {"enable_compression": True, "lossless_compressor": "auto", "param_cutoff": 8}
    speeds = []

    def chosen(update, configs, bytes_per_second):
        speeds.append(bytes_per_second)
        return configs.model_copy(update={"lossless_compressor": "zstd"})

    monkeypatch.setattr(codec, "chosen", chosen)
    plain = site.update(update="difference")
    speeds.clear()
    result = site.result(update="difference", compressor_configs=wanted)
    assert speeds == [len(encode(site.weights)) / result["seconds"]["get"]]
    coded = site.tensors_of(result)
    assert coded["layers.0.weight"].dtype == torch.uint8
    copy = decompress(coded, plain, CompressorConfigs(**wanted))
    assert all(torch.equal(copy[name], tensor) for name, tensor in plain.items())


class DownFor(InlineTransport):
    """The site's way, whose daemon is down for some tries."""

    def __init__(self, tries):
        super().__init__()
        self.left = tries

    def put(self, *pieces):
        if self.left:
            self.left -= 1
            raise UnreachableError("connection refused")
        return super().put(*pieces)


@pytest.fixture
def way(monkeypatch):
    monkeypatch.setattr(outgoing, "PUT_PAUSE_SECONDS", 0.001)

    def down_for(tries):
        way = DownFor(tries)
        monkeypatch.setattr(task, "_transport", lambda *_: way)
        return way

    return down_for


def test_a_trained_update_waits_for_the_sites_way(site, way):
    down = way(3)
    assert decode(down.get(Ref.from_json(site.result()["update"])))


@pytest.mark.parametrize("limit", ["patience", "block"])
def test_it_waits_no_longer_than_it_may(site, way, monkeypatch, limit):
    if limit == "patience":
        monkeypatch.setattr(outgoing, "PUT_SECONDS", 0.02)
    else:
        # Of training the end of the block leaves nothing here; of waiting, a moment.
        monkeypatch.setattr(budget, "block_end", lambda: time.time() + 0.02)
        monkeypatch.setattr(task, "_until", lambda *_: None)
    way(10**6)
    assert site.answer()["error"]["message"] == "connection refused"
