"""What MLX holds during a long answer, and when that is too much."""

from typing import Any

from mlx_eagle.selftest.memory import MemoryLook, piles_up, watch_memory


def test_memory_is_looked_at_up_to_the_end_of_the_context(demo: Any) -> None:
    looks = watch_memory(demo, [5, 6, 7], 230)
    assert [look.tokens for look in looks] == [200, 230]
    assert all(look.active > look.caches > 0 for look in looks)
    assert not piles_up(looks)
    limited = demo.limits
    try:
        demo.limits = limited._replace(max_context=100)
        assert watch_memory(demo, [5, 6, 7], 230)[-1].tokens == 96
    finally:
        demo.limits = limited


def test_what_is_kept_unused_beyond_the_caches_is_noticed() -> None:
    look = MemoryLook(200, 10**9, 10**8, 10**8)
    assert not piles_up([look])
    assert piles_up([look, look._replace(unused=3 * 10**8)])
