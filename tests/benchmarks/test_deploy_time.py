"""How two configurations of Ansible are compared."""

import sys

from benchmarks import deploy_time

RUNS = ("first", "unchanged")


def test_who_is_first_changes_from_one_repeat_to_the_next(monkeypatch, capsys):
    orders: list[tuple[str, ...]] = []

    def measure(_hosts: int, order: tuple[str, ...]) -> deploy_time.Times:
        orders.append(order)
        seconds = {"ours": 10.0 + len(orders), "plain": 11.5 + len(orders)}
        return {(config, run): seconds[config] for config in order for run in RUNS}

    monkeypatch.setattr(deploy_time, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["deploy_time", "1"])
    deploy_time.main()
    assert orders == [("ours", "plain"), ("plain", "ours"), ("ours", "plain")]
    said = capsys.readouterr().out
    assert "12.000 (11.000 to 13.000)   a plain one  13.500 (12.500 to 14.500)" in said
    assert "claim met: plain / this ansible.cfg, first, 1 sites: 1.125" in said
