from __future__ import annotations

import pytest

from fl.sandbox.identity import AUTH, COMPUTE, Identities, resource_server

CLIENT = "8d3b0a4e-0e2b-4c1c-9d11-0f2f3c1b2a10"


@pytest.fixture
def identities() -> Identities:
    return Identities(lambda: {CLIENT: ["secret"], "other": ["other secret"]})


def test_a_secret_is_its_clients_only(identities: Identities) -> None:
    assert identities.authenticate(CLIENT, "secret")
    assert not identities.authenticate(CLIENT, "other secret")
    assert not identities.authenticate(CLIENT, "")
    assert not identities.authenticate("nobody", "secret")


def test_a_token_is_good_for_its_service_only(identities: Identities) -> None:
    token = identities.issue(CLIENT, COMPUTE, "secret")
    assert identities.verify(token, COMPUTE) == CLIENT
    assert identities.verify(token, AUTH) is None


def test_a_token_ends() -> None:
    identities = Identities(lambda: {CLIENT: ["secret"]}, token_lifetime_s=-1)
    assert identities.verify(identities.issue(CLIENT, COMPUTE, "secret"), COMPUTE) is None


def test_a_client_may_have_two_secrets_and_all_that_came_by_one_ends_with_it() -> None:
    known = ["old"]
    identities = Identities(lambda: {CLIENT: known})
    token, password = identities.issue(CLIENT, COMPUTE, "old"), identities.broker_password(CLIENT)

    def is_good() -> set[bool]:
        return {
            identities.authenticate(CLIENT, "old"),
            identities.verify(token, COMPUTE) == CLIENT,
            identities.is_broker_password(CLIENT, password),
        }

    assert is_good() == {True}
    known.insert(0, "new")
    assert is_good() == {True}
    assert identities.authenticate(CLIENT, "new")
    known.remove("old")
    assert is_good() == {False}
    assert identities.is_broker_password(CLIENT, identities.broker_password(CLIENT))


def test_a_forged_token_is_refused(identities: Identities) -> None:
    mine, signature = identities.issue("other", COMPUTE, "other secret").split(".")
    theirs = identities.issue(CLIENT, COMPUTE, "secret").split(".")[0]
    assert identities.verify(f"{theirs}.{signature}", COMPUTE) is None
    for rubbish in ("", ".", "a.b", mine, f"{mine}.", "é.é", "W10=.x", "WzEsMl0=.x"):
        assert identities.verify(rubbish, COMPUTE) is None


@pytest.mark.parametrize(
    ("scope", "server"),
    [
        ("https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all", COMPUTE),
        ("urn:globus:auth:scope:auth.globus.org:manage_projects", AUTH),
        ("urn:globus:auth:scope:transfer.api.globus.org:all", "transfer.api.globus.org"),
        ("openid", AUTH),
        ("everything", None),
        ("", None),
    ],
)
def test_scopes_name_a_service(scope: str, server: str | None) -> None:
    assert resource_server(scope) == server
