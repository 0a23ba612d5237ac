"""A site that trains on a sealed model, and seals its update."""

from fl.client import task
from fl.sealing import ServerKeys, training_name
from fl.tensors import decode, encode
from fl.transport.base import Ref
from fl.transport.inline import InlineTransport

KEYS = ServerKeys(bytes(range(64)))


def answer(site, model, **changes):
    request = site.request(sealing=KEYS.for_sites(), run_id="run", **changes)
    return task.run({**request, "model": InlineTransport().put(model).to_json()})


def test_its_update_is_that_of_a_round_in_clear_and_opens_for_the_server_alone(site):
    plain = site.update(run_id="run")
    found = answer(site, b"".join(KEYS.seal_model([encode(site.weights)])))["result"]
    data = InlineTransport().get(Ref.from_json(found["update"]))
    opened = decode(KEYS.open_update(data, training_name("run", "a", 1)))
    assert encode(opened) == encode(plain)
    assert encode(plain)[-64:] not in bytes(data)


def test_a_model_that_is_not_sealed_is_not_trained(site):
    found = answer(site, encode(site.weights))
    assert found["error"]["message"] == "the server's model does not open: it is not sealed"


def test_a_site_that_demands_sealing_trains_for_a_server_that_seals(site, tmp_path, monkeypatch):
    (tmp_path / "policy.yaml").write_text("sealed_updates: true\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    assert "result" in answer(site, b"".join(KEYS.seal_model([encode(site.weights)])))
    assert "sealed_updates" in site.answer()["error"]["message"]
