"""Answers that wait, by a clock that a test moves."""

import math

import pytest

from fl.server.schedulers import Answer
from fl.server.waiting import FETCH_PAUSE_SECONDS, FETCHES, Waiting
from fl.transport import Ref


def answer(client_id, turn=1):
    ref = Ref("memory", {"object": f"{client_id}{turn}"}, 0, "")
    return Answer(client_id, 0, turn, ref, 8, 1, {}, {}, 0.0, 1.0)


@pytest.fixture
def waiting():
    """With an answer of `a` and, after it, one of `b`."""
    waiting = Waiting()
    waiting.add(answer("a"))
    waiting.add(answer("b"))
    return waiting


def test_answers_wait_in_the_order_of_their_coming(waiting):
    waiting.add(answer("a", turn=2))
    assert list(waiting) == waiting.ready(0.0) == [answer("a"), answer("b"), answer("a", turn=2)]
    assert waiting.postponed(0.0) == set()
    assert waiting.next_retry(0.0) == math.inf


def test_a_turn_waits_until_its_answer_is_removed(waiting):
    assert waiting.holds("a", 1) and not waiting.holds("a", 2)
    waiting.remove(answer("a"))
    assert not waiting.holds("a", 1)
    assert list(waiting) == [answer("b")]


def test_an_update_that_did_not_come_keeps_its_place_and_no_other_waiting(waiting):
    assert waiting.postpone(answer("a"), 10.0)
    again = 10.0 + FETCH_PAUSE_SECONDS
    assert waiting.ready(again - 0.1) == [answer("b")]
    assert waiting.postponed(again - 0.1) == {"a"}
    assert waiting.next_retry(again - 0.1) == again
    assert list(waiting) == waiting.ready(again) == [answer("a"), answer("b")]


def test_a_retry_that_is_due_wakes_nobody_again(waiting):
    """Until its answer is used, which may be at the round's end: else the loop would not sleep."""
    waiting.postpone(answer("a"), 0.0)
    waiting.postpone(answer("b"), 5.0)
    assert waiting.next_retry(0.0) == FETCH_PAUSE_SECONDS
    assert waiting.next_retry(FETCH_PAUSE_SECONDS) == 5.0 + FETCH_PAUSE_SECONDS


def test_each_pause_is_four_times_as_long_and_the_last_try_is_told(waiting):
    pauses, worthwhile = [], True
    while worthwhile:
        worthwhile = waiting.postpone(answer("a"), 0.0)
        pauses.append(waiting.next_retry(0.0))
    assert len(pauses) == FETCHES
    assert pauses[:3] == [FETCH_PAUSE_SECONDS * factor for factor in (1, 4, 16)]


def test_the_same_turn_again_is_asked_for_as_often_as_any(waiting):
    """Its site trained again, as the update of before never came."""
    waiting.postpone(answer("a"), 0.0)
    waiting.remove(answer("a"))
    waiting.add(answer("a"))
    assert waiting.ready(0.0) == [answer("b"), answer("a")]
    waiting.postpone(answer("a"), 0.0)
    assert waiting.next_retry(0.0) == FETCH_PAUSE_SECONDS
