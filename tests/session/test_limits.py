"""Limits of context and memory: told beforehand, never silent."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from doubles import Letters, make_engine
from mlx_eagle.cache.estimate import device_memory
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session import answer, prefix_cache
from mlx_eagle.session.limits import Limits, bytes_per_row
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape

TREE = TreeShape.chain(3)


@pytest.fixture
def limited(turning: Engine) -> Iterator[Engine]:
    """A small pair with a context of 64 tokens."""
    before = turning.limits
    turning.limits = Limits(max_context=64)
    yield turning
    turning.limits = before


def test_an_answer_ends_where_the_context_does_and_says_so(limited: Engine) -> None:
    for tree in (TREE, TreeShape(4, 4, 8)):
        result = limited.generate([5] * 50, max_tokens=100, ignore_eos=True, tree=tree)
        assert (len(result.tokens), result.finish_reason) == (14, "length")
        assert result.stats.ended_by == "the context of 64 tokens is full (max_context sets it)"
    shorter = limited.generate([5] * 50, max_tokens=14, ignore_eos=True, tree=TREE)
    assert (shorter.tokens, shorter.stats.ended_by) == (result.tokens, "")


def test_a_prompt_that_does_not_fit_is_refused_with_what_helps(limited: Engine) -> None:
    with pytest.raises(EagleError, match=r"has 64 tokens, but the context of 64 .* or start anew$"):
        limited.generate([5] * 64)
    assert limited.generate([5] * 63, max_tokens=9).finish_reason == "length"


def test_a_conversation_that_was_refused_can_go_on(limited: Engine) -> None:
    session = limited.session()
    list(session.ask("why", max_tokens=8))
    with pytest.raises(EagleError, match="the context of 64 tokens is full.*overflow: truncate"):
        session.ask("why " * 60)
    assert len(session.messages) == 2
    assert list(session.ask("so", max_tokens=3))


def test_truncation_leaves_out_the_oldest_turns_keeps_the_system_prompt_and_counts(
    limited: Engine,
) -> None:
    session = limited.session(system="Be brief.")
    options = {"max_tokens": 5, "overflow": "truncate", "tree": TREE}
    dropped = []
    for turn in range(6):
        *_, last = got = list(session.ask(f"question {turn}?", **options))
        dropped.append(last.stats.dropped_messages)
        said = [{"role": "system", "content": "Be brief."}, *session.messages[:-1]]
        kept = [said[0], *said[1 + dropped[-1] :]]
        assert kept[1]["role"] == "user"
        if turn in (2, 5):
            want = limited.generate(kept, max_tokens=5, tree=TREE)
            assert [r.token for r in got] == want.tokens
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] >= 4
    assert len(session.messages) == 12, "the conversation itself is not truncated"


def test_a_single_message_that_is_too_long_cannot_be_truncated(limited: Engine) -> None:
    with pytest.raises(EagleError, match="the context of 64 tokens is full"):
        limited.session().ask("why " * 60, overflow="truncate")
    with pytest.raises(EagleError, match="or start anew$"):
        limited.session().ask("why " * 60)


@pytest.fixture
def small_memory(turning: Engine) -> Iterator[Engine]:
    """A small pair with memory for 300 more rows of the target's cache."""
    before = turning.limits
    memory = mx.get_active_memory() + before.cache_bytes(300)
    turning.limits = before._replace(memory=memory, max_context=None)
    yield turning
    turning.limits = before


def test_memory_is_a_limit_with_a_way_out(small_memory: Engine) -> None:
    with pytest.raises(
        EagleError, match=r"the memory limit of .* GB leaves room for \d+ .*kv_bits"
    ):
        small_memory.generate([5] * 3000)


def test_an_answer_ends_where_the_memory_does_and_says_so(small_memory: Engine) -> None:
    result = small_memory.generate([5] * 290, max_tokens=300, ignore_eos=True, tree=TREE)
    assert result.finish_reason == "length"
    assert len(result.tokens) < 20
    assert "memory limit" in result.stats.ended_by


def test_rows_of_others_are_given_up_as_an_answer_grows_and_not_before(
    small_memory: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it might become: many clients set no limit, and stop early."""
    monkeypatch.setattr(answer, "AHEAD", 10)
    monkeypatch.setattr(answer, "LEFT", 5)
    small_memory.keep_prefixes(1 << 30)
    kept = small_memory.prefix_cache
    assert kept is not None
    small_memory.generate([5] * 100, max_tokens=1)
    session, budget, counts = small_memory.session(), small_memory.budget(0), []
    assert budget is not None and budget.tokens > 290
    asked = {"max_tokens": budget.tokens - 8, "ignore_eos": True, "tree": TREE}
    room = (small_memory.limits.memory or 0) - mx.get_active_memory()
    rows = next(n for n in range(300) if small_memory.limits.cache_bytes(n) > room)
    for response in session.stream_generate([6] * 8, **asked):
        counts.append(len(kept))
        if response.generation_tokens == rows:
            break
    session.cancel()
    small_memory.prefix_cache = None
    assert 18 < rows < 60
    assert (counts[0], counts[-1]) == (1, 0)


def test_rows_that_were_copied_once_are_not_asked_for_again(
    small_memory: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that goes on from rows that are kept for others too; caches grow by 256 rows."""
    monkeypatch.setattr(answer, "AHEAD", 10)
    monkeypatch.setattr(answer, "LEFT", 5)
    monkeypatch.setattr(prefix_cache, "SHORT", 9)
    memory = mx.get_active_memory() + small_memory.limits.cache_bytes(3 * 256 + 80)
    small_memory.limits = small_memory.limits._replace(memory=memory)
    small_memory.keep_prefixes(1 << 30)
    kept = small_memory.prefix_cache
    assert kept is not None
    for token in (6, 5):
        small_memory.generate([token] * 90, max_tokens=1)
    session, free = small_memory.session(), []
    for _ in session.stream_generate([5] * 70 + [7], max_tokens=40, ignore_eos=True, tree=TREE):
        free.append(memory - mx.get_active_memory())
    small_memory.prefix_cache = None
    assert session.prefix.hit.tier == "memory"
    assert max(free) < small_memory.limits.cache_bytes(90), "all of it is held at no time"
    assert len(kept) == 2


def test_a_fork_needs_memory_of_its_own(small_memory: Engine) -> None:
    session = small_memory.session()
    assert session.read([5] * 200)
    fork = session.fork()
    with pytest.raises(EagleError, match="memory limit"):
        fork.stream_generate([5] * 225)


def test_what_a_row_takes_follows_from_the_kind_of_cache(demo: Engine, tiny_target: Any) -> None:
    assert sum(size for size, _ in bytes_per_row(demo.target)) == 2 * 2 * 64 * 4 * 8, "in 8 layers"
    whole = Limits(bytes_per_row=bytes_per_row(demo.target)).cache_bytes(1000)
    with_head, (size, most) = demo.limits.bytes_per_row, demo.limits.bytes_per_row[-1]
    assert with_head == (*bytes_per_row(demo.target), (size, demo.limits.head_window))
    assert most == 2048 and size > 0, "the head keeps its window"
    of_head = 1000 * size
    quantized = demo.with_kv(KVOptions(bits=8, group_size=64)).limits.cache_bytes(1000) - of_head
    assert 0.25 < quantized / whole < 0.3, "8 bits of 32, and a scale and a bias per 64"
    bounded = demo.with_kv(KVOptions(max_size=128)).limits
    assert bounded.cache_bytes(1000) - of_head < whole
    assert bounded.cache_bytes(10**6) == bounded.cache_bytes(2048), "it stops growing"
    assert bounded._replace(memory=10**12, max_context=None).budget(0) is None
    windowed = Limits(bytes_per_row=bytes_per_row(Target(tiny_target("gemma3_text")))).cache_bytes(
        10**4
    )
    assert (
        0
        < windowed
        < Limits(bytes_per_row=bytes_per_row(Target(tiny_target("llama")))).cache_bytes(10**4)
    )


def test_many_turns_are_left_out_several_at_a_time(limited: Engine) -> None:
    """So that the next turns begin with the same messages, and reuse their rows."""
    limited.limits = Limits(max_context=180)
    session = limited.session()
    dropped, cached = [], []
    for turn in range(16):
        *_, last = session.ask(f"question {turn}?", max_tokens=1, overflow="truncate", tree=TREE)
        dropped.append(last.stats.dropped_messages)
        cached.append(last.stats.cached_tokens)
    assert dropped[-1] > 0
    assert len(set(dropped[-9:])) <= 4
    assert sum(n > 60 for n in cached[-9:]) >= 5


def test_the_memory_of_this_machine_is_known() -> None:
    assert 10**9 < device_memory() < 10**13


def test_clearing_a_conversation_gives_its_memory_back(tiny_target: Any, head_config: Any) -> None:
    model = tiny_target("llama", head_dim=256, max_position_embeddings=2048)
    ids = [5 + n % 100 for n in range(130)]
    session = make_engine(model, head_config, Letters()).session()
    list(session.stream_generate([5, 6, 7], max_tokens=3, tree=TREE))
    session.clear()
    before = mx.get_active_memory()
    for _ in range(2):
        list(session.stream_generate(ids, max_tokens=8, tree=TREE))
        assert mx.get_active_memory() - before > 2 * 10**6
        assert session.usage().cache_bytes > 2 * 10**6
        session.clear()
        assert abs(mx.get_active_memory() - before) < 10**5
        assert session.usage().tokens == 0
