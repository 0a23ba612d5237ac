import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.compression import BLOCK, compress, decompress
from fl.config import CompressorConfigs
from fl.tensors import TensorsError, decode, encode

LOSSY = [None, "bf16", "fp16", "int8"]


def configs(lossy=None, lossless=None, cutoff=0):
    return CompressorConfigs(
        enable_compression=lossy is not None or lossless is not None,
        lossy_compressor=lossy,
        lossless_compressor=lossless,
        param_cutoff=cutoff,
    )


def travel(tensors, format_):
    return decompress(decode(encode(compress(tensors, format_))), tensors, format_)


def bound(values, lossy):
    """The largest error that a format may make, number by number."""
    if lossy == "bf16":
        return values.abs() * 2**-8 + 1e-38
    if lossy == "fp16":
        return values.abs() * 2**-11 + 2**-24
    if lossy == "int8":
        greatest = [block.abs().max() for block in values.split(BLOCK)]
        sizes = [len(block) for block in values.split(BLOCK)]
        whole = torch.cat([g.repeat(n) for g, n in zip(greatest, sizes, strict=True)])
        return whole / 127 * 0.501 + 1e-42
    return torch.zeros_like(values)


numbers = st.lists(
    st.floats(-60_000, 60_000, width=32) | st.floats(-(2**-10), 2**-10, width=32),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("lossless", [None, "zstd"])
@pytest.mark.parametrize("lossy", LOSSY)
@settings(max_examples=60, deadline=None)
@given(numbers, st.integers(1, 80))
def test_errors_stay_within_the_formats_bound(lossy, lossless, values, repeats):
    original = torch.tensor(values).repeat(repeats)
    copy = travel({"w": original}, configs(lossy, lossless))["w"]
    assert copy.dtype == torch.float32
    error = (copy.double() - original.double()).abs()
    assert (error <= bound(original, lossy)).all()


@pytest.mark.parametrize("lossless", [None, "zstd"])
@pytest.mark.parametrize("lossy", LOSSY)
def test_shapes_and_dtypes_come_back_and_counters_are_never_touched(lossy, lossless):
    original = {
        "matrix": torch.randn(30, 50).t(),
        "double": torch.randn(7, 300, dtype=torch.float64),
        "half": torch.randn(2000).half(),
        "brain": torch.randn(2000).bfloat16(),
        "scalar": torch.tensor(1.25),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(2**60 + 1),
        "indices": torch.arange(2**40, 2**40 + 3000),
        "flags": torch.arange(3000) % 3 == 0,
    }
    copy = travel(original, configs(lossy, lossless))
    for name, tensor in original.items():
        assert (copy[name].dtype, copy[name].shape) == (tensor.dtype, tensor.shape)
        if lossy is None or not tensor.is_floating_point():
            assert torch.equal(copy[name], tensor)
        else:
            torch.testing.assert_close(copy[name], tensor, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("lossless", [None, "zstd"])
@pytest.mark.parametrize(
    ("lossy", "dtype"),
    [("bf16", torch.float16), ("fp16", torch.bfloat16), ("int8", torch.float8_e4m3fn)],
)
def test_a_format_that_is_no_narrower_changes_no_number(lossy, lossless, dtype):
    """It would lose bits and save nothing."""
    original = torch.linspace(-2, 2, 2000).to(dtype)
    coded = compress({"w": original}, configs(lossy, lossless))
    assert lossless or coded["w"].dtype == dtype
    copy = decompress(decode(encode(coded)), {"w": original}, configs(lossy, lossless))
    assert torch.equal(copy["w"].float(), original.float())


def test_small_tensors_travel_as_they_are():
    original = {"bias": torch.randn(1024), "weight": torch.randn(1025)}
    copy = travel(original, configs("int8", "zstd", cutoff=1024))
    assert torch.equal(copy["bias"], original["bias"])
    assert not torch.equal(copy["weight"], original["weight"])


@pytest.mark.parametrize("lossless", [None, "zstd"])
def test_a_buffers_number_pays_for_no_other_ones_scale(lossless):
    """A variance that falls from 1 to 0.01, beside one that rises far, would be below 0."""
    original = {"w": torch.randn(64), "bn.running_var": torch.full((64,), -0.99)}
    original["bn.running_var"][0] = 44.45
    format_, buffers = configs("int8", lossless), {"bn.running_var"}
    sent = decode(encode(compress(original, format_, buffers)))
    copy = decompress(sent, original, format_, buffers)
    assert torch.equal(copy["bn.running_var"], original["bn.running_var"])
    assert not torch.equal(copy["w"], original["w"])


def test_updates_get_smaller():
    update = {"w": torch.randn(100_000) * 1e-3}
    sizes = {lossy: len(encode(compress(update, configs(lossy)))) for lossy in LOSSY}
    assert max(sizes["bf16"], sizes["fp16"]) < 0.51 * sizes[None]
    assert sizes["int8"] < 0.26 * sizes[None]
    for lossy in LOSSY:
        assert len(encode(compress(update, configs(lossy, "zstd")))) < 0.96 * sizes[lossy]


@pytest.mark.parametrize(
    ("lossy", "value"),
    [
        ("fp16", 70_000.0),
        ("bf16", 3.4e38),
        *[(lossy, float(v)) for lossy in LOSSY[1:] for v in ("nan", "inf")],
    ],
)
def test_what_a_format_cannot_hold_is_named(lossy, value):
    with pytest.raises(TensorsError, match=f"w holds what is no finite number in {lossy}"):
        compress({"w": torch.tensor([1.0, value])}, configs(lossy))


def frame(size, content=None):
    """A zstd frame that promises `size` zeros."""
    data = zstandard.ZstdCompressor().compress(bytes(size) if content is None else content)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("format_", "coded", "expected"),
    [
        (configs("bf16"), {}, "missing or unknown: w"),
        (configs("bf16"), {"w": torch.zeros(2048)}, "torch.bfloat16 .* was expected"),
        (configs("bf16"), {"w": torch.zeros(2).bfloat16()}, r"arrived as torch.bfloat16 \[2\]"),
        (configs("int8"), {"w": torch.zeros(2048).char()}, "missing or unknown: scale/w"),
        (
            configs("int8"),
            {"w": torch.zeros(2048).char(), "scale/w": torch.zeros(3)},
            "scale/w arrived as",
        ),
        (
            configs("bf16"),
            {"w": torch.zeros(2048).bfloat16(), "more": torch.zeros(1)},
            "missing or unknown: more",
        ),
        (configs(None, "zstd"), {"w": torch.zeros(9).byte()}, "is no zstd frame"),
        (configs(None, "zstd"), {"w": torch.zeros(2048)}, "is no zstd frame"),
        (configs(None, "zstd"), {"w": frame(10_000_000)}, "would have 10000000 bytes"),
        (configs(None, "zstd"), {"w": frame(8192)[:-4]}, "is no zstd frame"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(format_, coded, expected):
    with pytest.raises(TensorsError, match=expected):
        decompress(coded, {"w": torch.zeros(2048)}, format_)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_foreign_frames_are_refused(data):
    coded = {"w": torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.ones(0)}
    with pytest.raises(TensorsError):
        decompress(coded, {"w": torch.zeros(2048)}, configs(None, "zstd"))
