"""Who is served next, and after how long."""

import pytest

from mlx_eagle.server.waiting import AnswerSeconds, FairQueue


def test_one_of_every_row_is_served_before_a_second_of_any() -> None:
    queue: FairQueue[str] = FairQueue()
    for who, item in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3"), ("b", "b2"), ("c", "c")]:
        queue.put(who, item)
    assert list(queue) == ["a1", "b1", "c", "a2", "b2", "a3"]
    assert queue.remove("b1")
    assert not queue.remove("b1")
    assert [queue.take() for _ in range(6)] == ["a1", "b2", "c", "a2", "a3", None]


def test_answers_that_were_given_up_do_not_shorten_what_others_are_told_to_wait() -> None:
    seconds = AnswerSeconds()
    assert seconds.expected(0) == 5
    seconds.add(0.01, is_cut=True)
    assert seconds.expected(9) == 9, "so long does the first one take already"
    seconds.add(60)
    for _ in range(9):
        seconds.add(0.01, is_cut=True)
    assert seconds.expected(1) == 60
    seconds.add(10)
    assert seconds.expected(1) == pytest.approx(45)
    seconds.add(145, is_cut=True)
    assert seconds.expected(1) == pytest.approx(75)
