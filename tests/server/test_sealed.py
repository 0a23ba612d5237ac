"""A round whose updates are sealed: what lies in the store, and what the server refuses."""

import pytest
import torch

from fl.sealing import ServerKeys, open_model, seal_update, training_name
from fl.server.events import ClientFailed
from fl.tensors import TensorsError, decode, encode
from fl.transport.base import Ref


def site(own=None, turn=None, change=lambda data: data, seal=True):
    """Adds 1 to the model it can open; seals that as another's where told to, and may change it."""

    def answer(request, transport):
        keys = request["sealing"]
        model = decode(
            open_model(transport.get(Ref.from_json(request["model"])), keys["model_key"])
        )
        update = encode({name: torch.ones_like(tensor) for name, tensor in model.items()})
        if seal:
            name = training_name("run", own or request["client_id"], turn or request["round"])
            update = change(b"".join(seal_update([update], keys["update_key"], name)))
        return {
            "result": {
                "job": request["job"],
                "update": transport.put(update).to_json(),
                "num_samples": 1,
                "steps": 1,
            }
        }

    return answer


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.fixture
def sealed(fit, transport):
    """Runs a federation with sealing; gives also every byte that was ever in the store."""
    seen = []
    put = transport.put

    def watched(*pieces):
        seen.append(b"".join(pieces))
        return put(*pieces)

    transport.put = watched
    fit.sealing = ServerKeys(ServerKeys.draw())

    def run(scripts, **settings):
        start, events = fit(scripts, **settings)
        return start, events, seen

    return run


def test_what_lies_in_the_store_is_not_readable(sealed, fit, transport, monkeypatch):
    weights, _, seen = sealed({"a": site(), "b": site()}, num_global_epochs=2)
    assert weights["w"].tolist() == [2.0] * 4
    plain = encode({"w": torch.ones(4)})
    assert len(seen) == 6
    for data in seen:
        assert plain[-16:] not in data and b"F32" not in data
        with pytest.raises(TensorsError):
            decode(data)
    assert transport.objects == {}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (site(seal=False), "it is not sealed"),
        (site(change=flipped), "it was changed"),
        (site(change=lambda data: data[:60]), "it was changed"),
        (site(own="a"), "is another run's, site's or training's"),
        (site(turn=7), "is another run's, site's or training's"),
    ],
    ids=["not sealed", "changed", "cut off", "another site's", "another training's"],
)
def test_what_does_not_open_is_dropped_named_and_counted(sealed, script, expected):
    weights, events, _ = sealed({"a": site(), "b": script}, min_clients=1)
    (failed,) = [event for event in events if isinstance(event, ClientFailed)]
    assert failed.client_id == "b" and failed.rejected == 1
    assert "its update does not open" in failed.reason and expected in failed.reason
    assert weights["w"].tolist() == [1.0] * 4
