"""The largest numbers of an update alone, and error feedback for the rest."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from fl import run
from fl.client.residual import compress_with_feedback
from fl.compression import compress, decompress
from fl.config import CompressorConfigs, ConfigError
from fl.config_files import Files
from fl.tensors import TensorsError, decode, encode
from tests import experiment
from tests.in_process import InProcess


def configs(share, cutoff=0):
    return CompressorConfigs(enable_compression=True, top_k=share, param_cutoff=cutoff)


def travel(tensors, format_):
    return decompress(decode(encode(compress(tensors, format_))), tensors, format_)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.floats(0.01, 0.5))
def test_the_largest_come_back_exactly_and_the_rest_as_zero(values, share):
    original = torch.tensor(values)
    copy = travel({"w": original}, configs(share))["w"]
    count = math.ceil(share * len(values))
    kept = copy != 0
    assert kept.sum() <= count
    assert torch.equal(copy[kept], original[kept])
    least = original.abs().sort(descending=True).values[count - 1]
    assert (original[~kept].abs() <= least).all()


def test_shapes_dtypes_counters_and_small_tensors_come_back():
    original = {
        "matrix": torch.randn(30, 50).t(),
        "half": torch.randn(2000).half(),
        "bias": torch.randn(10),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(2**60 + 1),
    }
    copy = travel(original, configs(0.1, cutoff=16))
    for name, tensor in original.items():
        assert (copy[name].dtype, copy[name].shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(copy["bias"], original["bias"]) and copy["count"] == original["count"]
    assert torch.count_nonzero(copy["matrix"]) == 150


PLACES = torch.arange(4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("values", "places", "expected"),
    [
        (torch.ones(4), None, "missing or unknown: index/w"),
        (torch.ones(5), PLACES, "w arrived as"),
        (torch.ones(4).half(), PLACES, "w arrived as"),
        (torch.ones(4), PLACES[:3], "index/w arrived as"),
        (torch.ones(4), PLACES.long(), "index/w arrived as"),
        (torch.ones(4), torch.tensor([0, 1, 2, 40]).int(), "not places among 40"),
        (torch.ones(4), torch.tensor([-1, 1, 2, 3]).int(), "not places among 40"),
        (torch.ones(4), torch.tensor([0, 1, 1, 3]).int(), "each once"),
        (torch.ones(4), torch.tensor([0, 2, 1, 3]).int(), "in order"),
        (torch.ones(4), torch.tensor([0, 99, -5, 3]).int(), "in order"),
    ],
)
def test_places_that_are_none_are_refused(values, places, expected):
    coded = {"w": values} | ({} if places is None else {"index/w": places})
    with pytest.raises(TensorsError, match=expected):
        decompress(coded, {"w": torch.zeros(40)}, configs(0.1))


def test_what_is_not_finite_is_named():
    with pytest.raises(TensorsError, match="w holds what is no finite number"):
        compress({"w": torch.tensor([1.0, float("nan")])}, configs(0.5))


@pytest.fixture
def send(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))

    def _send(update, round_number, version, run="run", client="a", buffers=frozenset()):
        coded = compress_with_feedback(
            update,
            configs(0.1),
            run=run,
            client=client,
            round_number=round_number,
            version=version,
            saved=version,
            buffers=buffers,
        )
        return decompress(coded, update, configs(0.1), buffers)

    return _send


def test_what_was_left_out_comes_later(send):
    torch.manual_seed(0)
    update = {"w": torch.rand(50) + 0.5, "count": torch.tensor(7)}
    total, plain = torch.zeros(50), torch.zeros(50)
    for number in range(1, 41):
        total += send(update, number, number - 1 or None)["w"]
        plain += travel(update, configs(0.1))["w"]
    wanted = 40 * update["w"]
    assert ((total - wanted).abs() / wanted).max() < 0.5  # at most some rounds are owed
    assert torch.count_nonzero(plain) == 5  # without feedback the others never move


def test_a_variance_does_not_fall_below_0(send):
    """What is owed of it counts the same fall twice."""
    var = torch.ones(50)
    for number in range(1, 11):
        update = {"w": torch.randn(50), "var": 0.1 - var}
        var += send(update, number, number - 1 or None, buffers={"var"})["var"]
        assert var.min() >= 0


def test_a_lost_update_is_as_if_it_had_never_been(send):
    updates = [{"w": torch.randn(50)} for _ in range(3)]
    send(updates[0], 1, None)
    expected = send(updates[2], 2, 1)["w"]
    send(updates[1], 2, 1)  # not used by the server
    assert torch.equal(send(updates[2], 3, 1)["w"], expected)
    assert not torch.equal(send(updates[2], 4, None)["w"], expected)


def test_what_a_site_keeps_is_of_one_client_and_run(send):
    update = {"w": torch.randn(50)}
    first = send(update, 1, None)["w"]
    assert torch.equal(send(update, 1, None, client="b")["w"], first)
    with pytest.raises(Exception, match="what client b kept of round 1 cannot be read"):
        send(update, 2, 1, client="b", run="other")


def test_settings_that_do_not_go_together_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValidationError, match="top_k goes with neither"):
        CompressorConfigs(enable_compression=True, top_k=0.1, lossless_compressor="zstd")
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))

    def change(server, clients):
        compressor = {"enable_compression": True, "top_k": 0.1}
        server["client_configs"]["comm_configs"] = {"compressor_configs": compressor}
        server["server_configs"]["aggregator"] = "FedAsyncAggregator"

    experiment.write(tmp_path, change)
    files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")
    with pytest.raises(ConfigError, match="which FedAsyncAggregator does not"):
        run.Algorithm(files.load(), files.server)


NORMED = """
def Normed(width):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
"""


@pytest.fixture
def three_rounds(tmp_path, monkeypatch):
    """The rounds of a run in a format."""

    def _three_rounds(model, **compressor):
        def change(server, clients):
            format_ = {"enable_compression": True, "param_cutoff": 8, **compressor}
            server["client_configs"]["comm_configs"] = {"compressor_configs": format_}
            wanted = {"model_name": model, "model_kwargs": {"width": 256}}
            server["client_configs"]["model_configs"].update(wanted)
            server["server_configs"]["num_global_epochs"] = 3

        experiment.write(tmp_path, change)
        with (tmp_path / "code.py").open("a") as code:
            code.write(NORMED)
        monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
        monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
        monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")
        outcome = run.run(files, Console(quiet=True))
        ended = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").open()]
        assert all(len(line["updates"]) == 2 for line in ended)
        return ended

    return _three_rounds


def test_a_run_sends_the_largest_alone_and_keeps_the_rest(three_rounds, tmp_path):
    ended = three_rounds("Net", top_k=0.1)
    assert max(line["bytes_up"] for line in ended) < 0.4 * ended[0]["bytes_down"]
    # Of each site, what the last round began with and what it left.
    kept = sorted(file.name for file in (tmp_path / "state").rglob("site-a/*.safetensors"))
    assert kept == ["2.safetensors", "3.safetensors"]


@pytest.mark.parametrize("format_", [{"top_k": 0.1}, {"lossy_compressor": "int8"}])
def test_site_and_server_agree_about_what_buffers_are(three_rounds, format_):
    assert len(three_rounds("Normed", **format_)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.5])
def test_no_update_is_larger_than_without(dtype, share):
    """A place takes four bytes, twice what a number of half precision does."""
    update = {"w": torch.ones(100_000, dtype=dtype)}
    assert len(encode(compress(update, configs(share)))) < len(encode(update)) + 100
    assert travel(update, configs(share))["w"].dtype == dtype
