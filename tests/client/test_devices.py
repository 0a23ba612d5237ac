import pytest
import torch

from fl.client import devices
from fl.client.devices import DeviceError


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ((), ["cpu"]),
        (("mps",), ["mps", "cpu"]),
        (("xpu", "mps"), ["xpu", "mps", "cpu"]),
        (("cuda", "xpu", "mps"), ["cuda", "xpu", "mps", "cpu"]),
    ],
)
def test_the_best_device_comes_first(monkeypatch, here, expected):
    for kind, module in [
        ("cuda", torch.cuda),
        ("xpu", torch.xpu),
        ("mps", torch.backends.mps),
    ]:
        monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in here)
    assert list(devices.present()) == expected


def test_auto_is_the_first_that_is_here(monkeypatch):
    monkeypatch.setattr(devices, "present", lambda: iter(["meta", "cpu"]))
    assert devices.choose("auto") == torch.device("meta")
    assert devices.choose("cpu") == torch.device("cpu")


def test_what_is_not_here_is_refused():
    for name, said in (("cuda:77", "is not here"), ("quantum", "none that torch knows")):
        with pytest.raises(DeviceError, match=f"device '{name}' is {said.removeprefix('is ')}"):
            devices.choose(name)


def test_mixed_precision_is_for_the_forward_pass():
    cpu = torch.device("cpu")
    with devices.autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with devices.autocast(cpu, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not devices.scaler(cpu, "bfloat16").is_enabled()
    with pytest.raises(DeviceError, match="amp float16 needs a cuda device, not cpu"):
        devices.scaler(cpu, "float16")
