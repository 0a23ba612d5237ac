"""`auto` takes zstd where the way is slower than the codec; the numbers are the same either way."""

import pytest
import torch

from fl.client import codec
from fl.client.codec import chosen
from fl.compression import compress, decompress
from fl.config import CompressorConfigs
from fl.tensors import TensorsError, decode, encode

SLOW, FAST = 1e3, 1e15  # bytes a second: a year's difference, whatever the machine


def auto(lossy=None, cutoff=8):
    return CompressorConfigs(
        enable_compression=True,
        lossy_compressor=lossy,
        lossless_compressor="auto",
        param_cutoff=cutoff,
    )


def update():
    """Few numbers differ from 0, which zstd makes much of."""
    sparse = torch.zeros(100, 50)
    sparse[::10] = torch.randn(10, 50)
    return {"w": sparse, "b": torch.randn(4), "count": torch.tensor(3)}


@pytest.mark.parametrize("lossy", [None, "bf16", "int8"])
def test_zstd_is_taken_where_the_way_is_slow(lossy):
    assert chosen(update(), auto(lossy), SLOW).lossless_compressor == "zstd"
    assert chosen(update(), auto(lossy), FAST).lossless_compressor is None


def test_zstd_is_left_where_it_saves_nothing():
    noise = {"w": torch.randint(0, 2**31 - 1, (4000,), dtype=torch.int32).view(torch.float32)}
    noise["w"] = noise["w"].nan_to_num(1.0, 1.0, 1.0)
    assert chosen(noise, auto(), 1e9).lossless_compressor is None


@pytest.mark.parametrize("speed", [SLOW, FAST])
@pytest.mark.parametrize("lossy", [None, "bf16", "fp16", "int8"])
def test_the_server_reads_both_alike(lossy, speed):
    """What it is told is `auto` alone."""
    sent, format_ = update(), auto(lossy)
    coded = decode(encode(compress(sent, chosen(sent, format_, speed))))
    assert (coded["w"].dtype == torch.uint8) == (speed == SLOW)
    copy = decompress(coded, sent, format_)
    plain = format_.model_copy(update={"lossless_compressor": None})
    expected = decompress(compress(sent, plain), sent, plain)
    for name, tensor in expected.items():
        assert torch.equal(copy[name], tensor)


def test_a_process_that_is_held_up_in_the_cast_does_not_make_zstd_pay(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 5.1, 5.1, 5.2])  # five seconds, and a tenth each
    monkeypatch.setattr(codec.time, "perf_counter", lambda: next(clock))
    assert chosen(update(), auto("bf16"), FAST).lossless_compressor is None


def test_nothing_is_tried_where_nothing_is_to_be_decided(monkeypatch):
    monkeypatch.setattr(codec, "compress", None)
    for configs in (CompressorConfigs(), auto().model_copy(update={"lossless_compressor": "zstd"})):
        assert chosen(update(), configs, SLOW) is configs


def test_a_model_of_small_tensors_alone_is_not_compressed():
    assert chosen(update(), auto(cutoff=10_000), SLOW).lossless_compressor is None


def test_the_tensor_that_a_format_cannot_hold_is_named():
    with pytest.raises(TensorsError, match=r"layer\.w holds what is no finite number in fp16"):
        chosen({"layer.w": torch.tensor([1e30] * 100)}, auto("fp16"), SLOW)


def test_a_sample_of_the_largest_tensor_is_tried(monkeypatch):
    monkeypatch.setattr(codec, "SAMPLE", 30)
    tried = []
    monkeypatch.setattr(codec, "compress", lambda t, c: tried.append(t) or compress(t, c))
    sent = update() | {"larger": torch.randn(200, 50)}
    chosen(sent, auto(), SLOW)
    for tensors in tried:
        assert torch.equal(tensors["larger"], sent["larger"].reshape(-1)[:30])
    assert len(tried) == 2
