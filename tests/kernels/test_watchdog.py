"""Rounds with kernels that stall."""

from mlx_eagle.kernels.watchdog import ENOUGH, TWICE_WITHIN, Watchdog


def test_two_slow_rounds_within_a_short_time_are_a_stall() -> None:
    dog = Watchdog()
    for _ in range(ENOUGH):
        assert not dog.stalls(8, 0.3)
    assert not dog.stalls(8, 0.91)
    assert not dog.stalls(8, 0.89)
    assert dog.stalls(8, 0.91)


def test_what_compiling_or_another_program_may_take_is_no_stall() -> None:
    dog = Watchdog()
    for seconds in [0.02] * ENOUGH + [0.4] * 3:  # twenty times the usual
        assert not dog.stalls(8, seconds)


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
