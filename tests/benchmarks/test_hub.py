"""What is claimed of the hub."""

from benchmarks import hub


def test_each_way_is_compared_with_bare_tls_and_with_a_peer(capsys):
    rates = {
        f"{way}, {who}{where}": [100.0]
        for way in ("down", "up")
        for who in ("hub", "bare TLS")
        for where in ("", ", proxy")
    }
    rates |= {"up, hub": [80.0], "down, ProxyStore get": [5.0]}
    hub.compare(rates)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("claim")]
    assert said == [
        "claim met: down, hub / down, bare TLS, of medians: 1.000, to be at least 0.85",
        "claim missed: up, hub / up, bare TLS, of medians: 0.800, to be at least 0.85",
        "claim met: down, hub / down, ProxyStore get, of medians: 20.000, to be at least 20",
        *(
            f"claim met: {way}, hub, proxy / {way}, bare TLS, proxy, of medians: 1.000, to be"
            " at least 0.85"
            for way in ("down", "up")
        ),
        "claim met: down, hub, proxy / down, ProxyStore get, of medians: 20.000, to be at least 20",
    ]
