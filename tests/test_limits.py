"""Limits of context and memory: told beforehand, never silent."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.kv_options import KVOptions
from mlx_eagle.limits import Limits, device_memory, made_for, row_bytes
from mlx_eagle.target import Target
from mlx_eagle.tree import TreeShape

TREE = TreeShape.chain(3)


@pytest.fixture
def limited(demo: Engine) -> Iterator[Engine]:
    """The demo pair with a context of 64 tokens."""
    before = demo.limits
    demo.limits = Limits(max_context=64)
    yield demo
    demo.limits = before


def test_an_answer_ends_where_the_context_does_and_says_so(limited: Engine) -> None:
    for tree in (TREE, TreeShape(4, 4, 8)):
        result = limited.generate([5] * 50, max_tokens=100, ignore_eos=True, tree=tree)
        assert (len(result.tokens), result.finish_reason) == (14, "length")
        assert result.stats.ended_by == "the context of 64 tokens is full"
    shorter = limited.generate([5] * 50, max_tokens=14, ignore_eos=True, tree=TREE)
    assert (shorter.tokens, shorter.stats.ended_by) == (result.tokens, "")


def test_a_prompt_that_does_not_fit_is_refused_with_what_helps(limited: Engine) -> None:
    with pytest.raises(EagleError, match=r"has 64 tokens, but the context of 64 .*overflow='trunc"):
        limited.generate([5] * 64)
    assert limited.generate([5] * 63, max_tokens=9).finish_reason == "length"


def test_a_conversation_that_was_refused_can_go_on(limited: Engine) -> None:
    session = limited.session()
    list(session.ask("why", max_tokens=8))
    with pytest.raises(EagleError, match="the context of 64 tokens is full"):
        session.ask("why " * 60)
    assert len(session.messages) == 2
    assert list(session.ask("so", max_tokens=3))


def test_truncation_leaves_out_the_oldest_turns_keeps_the_system_prompt_and_counts(
    limited: Engine,
) -> None:
    session = limited.session(system="Be brief.")
    options = {"max_tokens": 8, "overflow": "truncate", "tree": TREE}
    dropped = []
    for turn in range(6):
        *_, last = got = list(session.ask(f"question {turn}?", **options))
        dropped.append(last.stats.dropped_messages)
        said = [{"role": "system", "content": "Be brief."}, *session.messages[:-1]]
        kept = [said[0], *said[1 + dropped[-1] :]]
        assert kept[1]["role"] == "user"
        want = limited.generate(kept, max_tokens=8, tree=TREE)
        assert [r.token for r in got] == want.tokens
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] >= 4
    assert len(session.messages) == 12, "the conversation itself is not truncated"


def test_a_single_message_that_is_too_long_cannot_be_truncated(limited: Engine) -> None:
    with pytest.raises(EagleError, match="the context of 64 tokens is full"):
        limited.session().ask("why " * 60, overflow="truncate")


def test_memory_is_a_limit_with_a_way_out(demo: Engine) -> None:
    limits = demo.limits
    assert limits.row_bytes == 2 * 2 * 64 * 4 * 8, "two of 2 heads of 64 float32, in 8 layers"
    demo.limits = Limits(memory=mx.get_active_memory() + 100 * limits.row_bytes, row_bytes=8192)
    try:
        with pytest.raises(EagleError, match=r"the memory of .* GB is full .*--kv-bits 8"):
            demo.generate([5] * 3000)
    finally:
        demo.limits = limits


def test_what_a_row_takes_follows_from_the_kind_of_cache(demo: Engine, tiny_target: Any) -> None:
    whole = row_bytes(demo.target)
    quantized = row_bytes(demo.with_kv(KVOptions(bits=8, group_size=64)).target)
    assert 0.25 < quantized / whole < 0.3, "8 bits of 32, and a scale and a bias per 64"
    assert row_bytes(demo.with_kv(KVOptions(max_size=128)).target) == 0, "it stops growing"
    half_windowed = Target(tiny_target("gemma3_text"))
    assert 0 < row_bytes(half_windowed) < row_bytes(Target(tiny_target("llama")))


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_the_context_that_a_model_was_made_for(config: dict[str, Any], tokens: int | None) -> None:
    assert made_for(config) == tokens


def test_the_memory_of_this_machine_is_known() -> None:
    assert 10**9 < device_memory() < 10**13


def test_clearing_a_conversation_gives_its_memory_back(demo: Engine) -> None:
    session = demo.session()
    list(session.stream_generate([5, 6, 7], max_tokens=3, tree=TREE))
    session.clear()
    before = mx.get_active_memory()
    for _ in range(3):
        list(session.stream_generate(list(range(5, 1400)), max_tokens=8, tree=TREE))
        assert mx.get_active_memory() - before > 10**7
        assert session.usage().cache_bytes > 10**7
        session.clear()
        assert abs(mx.get_active_memory() - before) < 10**5
        assert session.usage().tokens == 0
