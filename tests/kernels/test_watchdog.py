"""Rounds with kernels that stall."""

from mlx_eagle.kernels.watchdog import ENOUGH, TWICE_WITHIN, Watchdog


def test_two_slow_rounds_within_a_short_time_are_a_stall() -> None:
    dog = Watchdog()
    for _ in range(ENOUGH):
        assert not dog.stalls(8, 0.1)
    assert not dog.stalls(8, 0.31)
    assert not dog.stalls(8, 0.29)
    assert dog.stalls(8, 0.31)


def test_two_slow_rounds_far_apart_are_none() -> None:
    dog = Watchdog()
    for _ in range(ENOUGH):
        dog.stalls(8, 0.1)
    assert not dog.stalls(8, 60.0)
    for _ in range(TWICE_WITHIN):
        assert not dog.stalls(8, 0.1)
    assert not dog.stalls(8, 60.0)


def test_the_first_rounds_are_not_judged_and_row_counts_are_apart() -> None:
    dog = Watchdog()
    for seconds in [9.0, 9.0] + [0.1] * ENOUGH:  # compiled at first use
        assert not dog.stalls(8, seconds)
    for _ in range(ENOUGH):
        assert not dog.stalls(16, 1.0)
