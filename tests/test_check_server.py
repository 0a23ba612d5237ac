"""What a check finds out at the server, and what that takes."""

import tracemalloc

from torch import nn

from fl.check_server import _model
from fl.client import built
from fl.config import Federation
from tests import experiment


def test_a_models_bytes_are_counted_without_a_copy_of_it(tmp_path, monkeypatch):
    model = nn.Linear(1024, 1024)
    model.weight.requires_grad_(False)
    monkeypatch.setattr(built, "build_model", lambda _configs: model)
    files = experiment.server_file(tmp_path) | experiment.clients_file()
    federation = Federation.model_validate(files, strict=False)
    tracemalloc.start()
    try:
        _, told = _model(federation)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert told == "1,049,600 parameters, 4.2 MB, of which 4.2 kB travel"
    assert most < model.weight.nbytes / 4
