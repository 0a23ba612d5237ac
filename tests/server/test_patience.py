"""How long a site that loses its tasks is borne with."""

import pytest

from fl.client.budget import BlockEnded
from fl.endpoints.base import EndpointError, SiteError
from fl.server.patience import ATTEMPTS, PAUSE_SECONDS, WAY_ATTEMPTS, patience_after
from fl.transport import UnreachableError


def test_a_lost_task_is_sent_again_after_a_pause_that_grows():
    told = [patience_after(EndpointError("its worker died"), losses) for losses in (1, 2, 3)]
    assert told == [(ATTEMPTS, PAUSE_SECONDS * losses) for losses in (1, 2, 3)]


@pytest.mark.parametrize("kind", [UnreachableError, BlockEnded])
def test_a_way_and_a_block_have_150_s_to_be_back(kind):
    error = SiteError(kind.__name__, "it is restarted", "")
    told = [patience_after(error, losses) for losses in range(1, WAY_ATTEMPTS)]
    assert {attempts for attempts, _ in told} == {WAY_ATTEMPTS}
    assert sum(pause for _, pause in told) == 150.0


def test_a_way_that_is_interrupted_at_the_server_is_one_too():
    assert patience_after(UnreachableError("no route"), 1)[0] == WAY_ATTEMPTS
