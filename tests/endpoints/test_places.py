"""Which place a client's tasks go to: processes here, the shared Globus client, a site's own."""

from concurrent.futures import Future
from uuid import UUID

from fl.config import Client
from fl.endpoints.places import Places

ENDPOINT = UUID("11111111-2222-4333-8444-555555555555")
DATA = {"dataset_path": "data.py", "dataset_name": "load"}


class Place:
    """Remembers what it was asked for."""

    def __init__(self, name):
        self.name, self.recovered = name, []

    def submit(self, client, request):
        future = Future()
        future.set_result({"by": self.name, "for": client.client_id} | request)
        return future

    def health(self, client):
        return f"{self.name} knows {client.client_id}"

    def explain(self, error):
        return f"{self.name} says {error}"

    def session(self, client):
        return None if self.name == "here" else f"group/of {self.name}"

    def recover(self, session, jobs):
        self.recovered.append((session, list(jobs)))
        return {job: Future() for job in jobs}


def client(name, endpoint_id=ENDPOINT, **ways):
    return Client(client_id=name, endpoint_id=endpoint_id, data_configs=DATA, comm_configs=ways)


HERE = client("a", "local")
SHARED = client("b")
OWN = client("c", globus_compute_configs={"function_id": ENDPOINT, "environment_files": ["c.env"]})


def places():
    found = {"local": Place("here"), "shared": Place("all"), "of c": Place("c")}
    return Places(found), found


def test_every_client_is_reached_by_its_own_place():
    joined, _ = places()
    by = [joined.submit(one, {"x": 1}).result()["by"] for one in (HERE, SHARED, OWN)]
    assert by == ["here", "all", "c"]
    assert joined.health(OWN) == "c knows c"
    assert joined.explain(ValueError("no")) == "all says no"


def test_a_task_is_recovered_by_the_client_that_sent_it_and_by_no_other():
    joined, found = places()
    assert joined.session(HERE) is None
    sessions = [joined.session(SHARED), joined.session(OWN)]
    for session, job in zip(sessions, ("one", "two"), strict=True):
        assert joined.recover(session, [job]).keys() == {job}
    assert found["shared"].recovered == [("group/of all", ["one"])]
    assert found["of c"].recovered == [("group/of c", ["two"])]


def test_a_session_of_a_client_that_is_no_more_has_nothing_to_recover():
    joined, _ = places()
    assert joined.recover("of d/group", ["one"]) == {}
