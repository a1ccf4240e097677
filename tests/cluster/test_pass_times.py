"""A pass is given up when it takes far longer than passes with as many rows, and not before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.cluster.pass_times import KEPT, SLOWER, PassTimes

ROWS = st.integers(1, 1 << 14)


def test_a_pass_may_take_what_others_with_as_many_rows_took_or_its_rows_would_make_it() -> None:
    times = PassTimes()
    assert times.limit(1) is None
    for n_rows, seconds in ((1, 0.1), (2048, 15.0)):
        times.add(n_rows, seconds)
    assert times.limit(1) == pytest.approx(2)
    assert times.limit(4) == pytest.approx(8)
    assert times.limit(2048) == pytest.approx(300)
    assert times.limit(4096) == pytest.approx(600)


def test_a_pass_that_was_slow_once_is_forgotten() -> None:
    times = PassTimes()
    times.add(5, 40.0)
    for _ in range(KEPT - 1):
        times.add(7, 0.2)
    assert times.limit(4) == SLOWER * 40
    times.add(4, 0.2)
    assert times.limit(4) == pytest.approx(SLOWER * 0.2)


@given(st.lists(ROWS, min_size=1, max_size=8), ROWS, st.floats(0, 1), st.floats(0, 1))
def test_no_pass_that_costs_a_fixed_part_and_so_much_a_row_is_given_up(
    seen: list[int], n_rows: int, fixed: float, per_row: float
) -> None:
    times = PassTimes()
    for n in seen:
        times.add(n, fixed + per_row * n)
    limit = times.limit(n_rows)
    assert limit is not None
    assert limit >= 0.999 * SLOWER * (fixed + per_row * n_rows)
