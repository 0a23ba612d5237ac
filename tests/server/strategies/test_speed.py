import pytest

from fl.server.strategies import seconds_per_step


def test_speed_is_smoothed():
    assert seconds_per_step(None, 50, 100) == 0.5
    assert seconds_per_step(0.5, 100, 100) == pytest.approx(0.95)
    assert seconds_per_step(0.5, 100, 100, momentum=1) == 1
    for seconds, steps, momentum in ((0, 1, 0.9), (1, 0, 0.9), (1, 1, 0), (1, 1, 1.1)):
        with pytest.raises(ValueError, match=r"positive|measurement"):
            seconds_per_step(None, seconds, steps, momentum=momentum)
