"""The record of the one remote function's id: what is believed of it, and how it is written."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from fl.endpoints import registration


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Globus Compute, which knows every function that it is asked for, and names new ones."""
    client = Mock(register_function=Mock(side_effect=lambda _: str(uuid.uuid4())))
    monkeypatch.setattr(registration, "Client", lambda: client)
    return client


def test_a_function_is_registered_once(service: Any, tmp_path: Path) -> None:
    record = tmp_path / "federation" / "function.json"
    first = registration.register(record)
    assert first["changed"] and json.loads(record.read_text())["function_id"]
    assert registration.register(record) == {**first, "changed": False}
    assert service.register_function.call_count == 1
    assert list(record.parent.iterdir()) == [record]


@pytest.mark.parametrize("spoilt", ["", "[]", "7", '"text"', '{"function_id": "x"}'])
@pytest.mark.usefixtures("service")
def test_a_record_that_is_none_is_written_anew(tmp_path: Path, spoilt: str) -> None:
    record = tmp_path / "function.json"
    record.write_text(spoilt)
    assert registration.register(record)["changed"]
    assert not registration.register(record)["changed"]


@pytest.mark.usefixtures("service")
def test_a_record_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints allow the id in it, and the next deployment would register another."""
    record = tmp_path / "function.json"
    registration.register(record)
    before = record.read_text()
    monkeypatch.setattr(registration, "_is_registered", lambda *_: False)

    def full(path: Path, _: str) -> None:
        path.write_bytes(b"{")
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        registration.register(record)
    assert record.read_text() == before
