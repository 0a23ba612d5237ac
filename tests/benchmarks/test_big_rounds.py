"""What is said of the peers, also of one that fails."""

from benchmarks import big_rounds

ROUND = {
    "seconds": {"wait": 0.5, "total": 1.0},
    "updates": [{"seconds": {"train": 0.1}}],
}


def test_a_peer_that_fails_is_named_and_the_others_are_judged(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(big_rounds, "floor", lambda _: [0.5])
    monkeypatch.setattr(big_rounds, "rounds", lambda _: [ROUND])
    monkeypatch.setattr(big_rounds, "flower_simulation", fail)
    monkeypatch.setattr(big_rounds, "nvflare_simulator", lambda *_: [0.9])
    big_rounds.compare(100)
    said = capsys.readouterr()
    assert said.err == "Flower's simulation: no memory\n" * big_rounds.REPEATS
    lines = said.out.splitlines()
    assert "  Flower's simulation      fails" in lines
    assert [line for line in lines if line.startswith("claim")] == [
        "claim met: round / floor, of medians: 2.000, to be at most 3",
        "claim missed: NVFlare's simulator / round, of medians: 0.900, to be at least 1",
    ]


def test_a_model_that_is_too_large_for_the_peers_is_not_given_to_them(monkeypatch, capsys):
    monkeypatch.setattr(big_rounds, "floor", lambda _: [0.5])
    monkeypatch.setattr(big_rounds, "rounds", lambda _: [ROUND])
    big_rounds.compare(big_rounds.PEERS_MEGABYTES + 1)
    said = capsys.readouterr()
    assert "Flower" not in said.out + said.err
