"""What the lines of growing rounds say."""

import pytest

from benchmarks import growth


def test_a_line_is_measured_from_its_start_each_time():
    asked: list[int] = []
    line = growth.along((1, 2), lambda point: asked.append(point) or [float(len(asked))])
    assert asked == [1, 2] * growth.REPEATS
    assert line == {1: [1.0, 3.0, 5.0], 2: [2.0, 4.0, 6.0]}


@pytest.mark.parametrize(
    ("name", "costs"),
    [("clients, 1 MB", "10.0 ms each"), ("sites, 10 MB", "10.0 ms each"), ("MB, x", "100 MB/s")],
)
def test_each_point_has_its_spread_and_what_it_costs(capsys, name, costs):
    line = {size: [0.009 * size, 0.01 * size, 0.02 * size] for size in (1, 10, 100, 1000)}
    growth.report(name, line)
    _, *points, claim = capsys.readouterr().out.splitlines()
    assert points[1] == f"     10:   0.100 (0.090 to 0.200) s, {costs}"
    assert all(point.endswith(costs) for point in points)
    assert claim.startswith(f"claim met: slope of the upper half of {name}: 1.000")


def test_a_line_that_grows_faster_misses_the_claim(capsys):
    growth.report("clients", {size: [size**1.2] for size in (1, 10, 100, 1000)})
    assert "claim missed: slope of the upper half of clients: 1.200" in capsys.readouterr().out
