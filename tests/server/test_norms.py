import math

import pytest
import torch

from fl.server.norms import NormError, require_norm
from fl.tensors import norm


def test_the_norm_is_euclids_over_all_floating_point_tensors():
    tensors = {
        "a": torch.tensor([3.0]),
        "b": torch.tensor([[4.0]], dtype=torch.bfloat16),
        "counter": torch.tensor(10**6),
        "empty": torch.zeros(0),
    }
    assert norm(tensors) == 5.0
    assert norm({}) == 0.0
    assert norm({"c": torch.full((4,), 3 + 4j)}) == 10.0
    assert norm({"a": torch.tensor([3e38, 3e38])}) == math.inf
    assert norm({"a": torch.tensor([1e308, 1e308], dtype=torch.float64)}) == math.inf


@pytest.mark.parametrize(
    ("found", "model", "last", "believed"),
    [
        (100.0, 1.0, [], True),
        (101.0, 1.0, [], False),
        (math.inf, 1.0, [], False),
        (1e30, 0.0, [], True),  # nothing is known yet
        (1e30, 0.0, [1e-9], True),  # one site's word condemns nobody
        (50.0, 0.0, [1e-9, 1.0], True),
        (101.0, 0.0, [1.0, 1.0], False),
        (101.0, 1e-9, [2.0, 2.0, 1e-9], True),
        (1.0, 1.0, [1e-12, 1e-12, 1e-12], True),  # they have converged, and it has not
    ],
)
def test_the_larger_of_model_and_usual_update_is_the_measure(found, model, last, believed):
    if believed:
        require_norm(found, 100.0, model, last)
    else:
        with pytest.raises(NormError, match="over 100 times"):
            require_norm(found, 100.0, model, last)
