import numpy as np
import pytest
import torch

from fl.server.strategies import add_delta, mix
from tests.server.strategies.models import assert_same, difference, model, running, w


def test_mix_and_add_delta():
    start, end = model(0), model(1)
    halfway = mix(start, end, rate=0.25)
    np.testing.assert_allclose(w(halfway), 0.75 * w(start) + 0.25 * w(end))
    moved = add_delta(start, difference(end, start), size=0.25)
    np.testing.assert_allclose(w(moved), w(halfway))
    for result in (halfway, moved):
        assert result["count"].item() == 1
        assert result["flag"].item() is False
    for step in (lambda: mix(start, end, rate=0.0), lambda: add_delta(start, end, size=-1.0)):
        with pytest.raises(ValueError, match="positive"):
            step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mean_of_deltas_leaves_frozen_parameters_exactly(dtype):
    frozen = model(0, dtype)
    deltas = [difference(frozen, frozen)] * 3
    assert_same(add_delta(frozen, running(deltas, [713, 288, 96]), size=0.37), frozen)
