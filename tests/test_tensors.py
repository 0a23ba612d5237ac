import io
import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl.tensors import (
    TensorsError,
    decode,
    digest,
    encode,
    pieces,
    read_each,
    require_same_layout,
    size,
)
from tests.memory import room


def model():
    return {
        "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


def test_round_trip_keeps_names_shapes_dtypes_and_values():
    original = model()
    copy = decode(encode(original))
    assert copy.keys() == original.keys()
    for name, tensor in original.items():
        assert copy[name].dtype == tensor.dtype
        assert torch.equal(copy[name], tensor)


def test_what_is_read_one_by_one_is_what_is_read_at_once():
    data = encode(model())
    left = memoryview(bytearray(data))

    def take(count):
        nonlocal left
        taken, left = left[:count], left[count:]
        return taken

    each = dict(read_each(take))
    assert [*each] == [*decode(data)] and not left
    for name, tensor in model().items():
        assert each[name].dtype == tensor.dtype
        assert torch.equal(each[name], tensor)


@pytest.mark.parametrize("lie", [{"dtype": "F99"}, {"shape": [2]}, {"data_offsets": [4, 0]}])
def test_what_does_not_fit_is_refused_when_it_is_read_one_by_one(lie):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | lie
    text = json.dumps({"a": entry}).encode()
    data = io.BytesIO(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(TensorsError, match="not a safetensors model"):
        dict(read_each(data.read))


def test_tied_and_sliced_tensors_are_written_twice():
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    copy = decode(encode({"a": base, "b": base, "column": base[:, 1]}))
    assert torch.equal(copy["a"], copy["b"])
    assert torch.equal(copy["column"], base[:, 1])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(TensorsError):
        decode(data)


NUMBERS = st.integers(0, 3) | st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1, 2**64])
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E8M0",
    "I64",
    "U64",
    "U32",
    "BOOL",
    "C64",
    "F4",
]
SHAPES = st.lists(NUMBERS, max_size=4)
OFFSETS = st.lists(st.integers(0, 40) | NUMBERS, min_size=2, max_size=2)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(DTYPES), "shape": SHAPES, "data_offsets": st.just([0, 0]) | OFFSETS}
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES, max_size=2)


def decoded(data):
    """The tensors and no refusal, or none and what was said."""
    try:
        return decode(data), ""
    except TensorsError as error:
        return {}, str(error)


def test_a_header_of_any_kind_is_decoded_or_refused_within_bounds():
    """Shapes, offsets and lengths that lie: no other error, and no memory for what they claim."""

    @settings(max_examples=600, deadline=None)
    @given(HEADERS, st.binary(max_size=40), st.integers(-2, 2) | st.just(2**63))
    @example({"a": {"dtype": "F32", "shape": [0, 0, 2**62, 2**62], "data_offsets": [0, 0]}}, b"", 0)
    @example({"a": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}, b"", 0)
    def attack(header, body, extra):
        text = json.dumps(header).encode()
        length = max(len(text) + extra, 0) % 2**64
        data = struct.pack("<Q", length) + text + body
        found, refusal = decoded(data)
        assert sum(tensor.nbytes for tensor in found.values()) <= len(data)
        assert "memory" not in refusal and "\n" not in refusal

    with room(256 * 2**20):
        attack()


def test_a_header_that_promises_more_than_there_is_allocates_nothing():
    with pytest.raises(TensorsError):
        decode((2**63 - 1).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda given: given.pop("half"), "missing or unknown: half"),
        (lambda given: given.update(more=torch.ones(1)), "missing or unknown: more"),
        (lambda given: given.update(weight=torch.ones(3, 2)), r"weight is .*\[3, 2\]"),
        (lambda given: given.update(weight=torch.ones(2, 3).double()), "float64"),
        (lambda given: given["weight"].fill_(float("nan")), "NaN"),
    ],
)
def test_layout_differences_are_named(change, expected):
    given = model()
    change(given)
    with pytest.raises(TensorsError, match=expected):
        require_same_layout(model(), given)


def test_views_that_are_conjugate_or_negative_are_written_as_what_they_say():
    conjugate = torch.tensor([1 + 2j, 3 - 4j]).conj()
    copy = decode(encode({"conjugate": conjugate, "negative": conjugate.imag}))
    assert torch.equal(copy["conjugate"], torch.tensor([1 - 2j, 3 + 4j]))
    assert torch.equal(copy["negative"], torch.tensor([-2.0, 4.0]))


def test_digest_is_blake3_of_all_pieces():
    # of the function's own test vectors, for one byte 0 and for 1024 of 0, 1, ... 250, 0, ...
    assert digest(b"\0").startswith("2d3adedff11b61f14c886e35afa036736dcd87a7")
    sequence = bytes(index % 251 for index in range(1024))
    assert digest(sequence[:100], sequence[100:]).startswith("42214739f095a406f3fc83deb889744ac0")


def test_the_library_reads_what_is_written_and_the_other_way_round():
    original = {**model(), "flag": torch.tensor([True]), "wide": torch.ones(2).double()}
    for copy in (
        safetensors.torch.load(encode(original)),
        decode(safetensors.torch.save(original)),
    ):
        for name, tensor in original.items():
            assert copy[name].dtype == tensor.dtype
            assert torch.equal(copy[name], tensor)


def test_pieces_are_the_tensors_own_memory_and_what_is_decoded_is_the_buffers():
    tensors = {"weight": torch.zeros(3)}
    written = pieces(tensors)
    tensors["weight"].fill_(1)
    buffer = bytearray(b"".join(written))
    assert size(written) == len(buffer)
    read = decode(buffer)
    assert read["weight"].tolist() == [1, 1, 1]
    buffer[-4:] = bytes(4)
    assert read["weight"].tolist() == [1, 1, 0]


def with_header(header, body=b"12345678"):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_header_that_fits_is_read():
    assert decode(with_header({"a": entry()}))["a"].shape == (2,)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"a": 5},
        {"a": {**entry(), "dtype": "F31"}},
        {"a": entry(shape=(2**62, 4))},
        {"a": entry(shape=(-1, -2))},
        {"a": entry(shape=(True, 2))},
        {"a": entry(shape=(0, 2**70), offsets=(0, 0)), "b": entry()},
        {"a": entry(offsets=(0, 2**70))},
        {"a": entry(offsets=(-8, 0))},
        {"a": entry(), "b": entry()},  # the same bytes twice
        {"a": entry(shape=(1,), offsets=(4, 8))},  # a hole
        {"a": entry(shape=(1,), offsets=(0, 4))},  # bytes that are nobody's
    ],
)
def test_headers_that_do_not_fit_their_bytes_are_refused(header):
    with pytest.raises(TensorsError, match="not a safetensors model"):
        decode(with_header(header))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_value_that_is_not_finite_passes(dtype, value):
    expected = {"a": torch.zeros(70, dtype=dtype)}
    given = {"a": torch.zeros(70, dtype=dtype)}
    require_same_layout(expected, given)
    given["a"][69] = value
    with pytest.raises(TensorsError, match="a holds NaN or infinity"):
        require_same_layout(expected, given)
