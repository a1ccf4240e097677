"""What MLX holds during a long answer, and when that is too much."""

from typing import Any

import pytest

from mlx_eagle.selftest import memory
from mlx_eagle.selftest.memory import MemoryLook, piles_up, watch_memory


def test_memory_is_looked_at_up_to_the_end_of_the_context(
    turning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "EVERY", 40)
    looks = watch_memory(turning, [5, 6, 7], 55)
    assert [look.tokens for look in looks] == [40, 55]
    assert all(look.active > look.caches > 0 for look in looks)
    assert not piles_up(looks)
    limited = turning.limits
    try:
        turning.limits = limited._replace(max_context=30)
        assert watch_memory(turning, [5, 6, 7], 55)[-1].tokens == 26
    finally:
        turning.limits = limited


def test_what_is_kept_unused_beyond_the_caches_is_noticed() -> None:
    look = MemoryLook(200, 10**9, 10**8, 10**8)
    assert not piles_up([look])
    assert piles_up([look, look._replace(unused=3 * 10**8)])
