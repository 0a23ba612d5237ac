import numpy as np
import pytest

from fl.server.strategies import scaffold
from tests.server.strategies.models import model, w


def test_scaffold_moves_weights_and_control():
    start, delta = model(0), model(1)
    change = {"w": model(2)["w"]}
    moved, state = scaffold(
        start, delta, {}, control_delta=change, participation=0.25, learning_rate=0.5
    )
    np.testing.assert_allclose(w(moved), w(start) + 0.5 * w(delta))
    np.testing.assert_allclose(w(state["control"]), 0.25 * w(change))
    _, again = scaffold(moved, delta, state, control_delta=change, participation=1.0)
    np.testing.assert_allclose(w(again["control"]), 1.25 * w(change))
    assert state["control"].keys() == {"w"}
    with pytest.raises(ValueError, match="participation"):
        scaffold(start, delta, {}, control_delta=change, participation=0)
