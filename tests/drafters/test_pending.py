"""Tokens that wait are observed as if they had been observed one by one."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.pending import PendingRows
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape


class Counting:
    """A drafter that notes what it observes."""

    buffers: tuple[mx.array, ...] = ()

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        assert taps is None or taps.shape[0] == next_tokens.shape[0]
        self.seen.append(next_tokens.tolist())


def test_what_waits_is_observed_together_and_once() -> None:
    drafter = Counting()
    pending = PendingRows(drafter)  # type: ignore[arg-type]
    pending.observe()
    for token in range(5):
        pending.add(mx.zeros((1, 6)), mx.array([token]))
    pending.add(mx.zeros((2, 6)), mx.array([5, 6]))
    assert drafter.seen == []
    pending.observe()
    pending.observe()
    assert drafter.seen == [[0, 1, 2, 3, 4, 5, 6]]


def test_no_more_tokens_wait_than_the_limit() -> None:
    drafter = Counting()
    pending = PendingRows(drafter)  # type: ignore[arg-type]
    for token in range(2 * PendingRows.LIMIT + 3):
        pending.add(None, mx.array([token]))
    assert [len(part) for part in drafter.seen] == [PendingRows.LIMIT] * 2


def test_without_a_drafter_nothing_is_kept() -> None:
    pending = PendingRows(None)
    pending.add(mx.zeros((1, 6)), mx.array([1]))
    pending.observe()
    assert pending._next_tokens == []


@pytest.mark.parametrize("waiting", [1, 7])
def test_a_head_drafts_the_same_after_a_backlog(
    waiting: int, tiny_target: Callable[..., nn.Module], head_config: HeadConfig
) -> None:
    config = HeadConfig(
        **vars(head_config)
        | {"target_hidden_size": 64, "target_vocab_size": 128, "hidden_size": 64}
    )
    mx.random.seed(2)
    head: Any = EagleHead(config)
    target = Target(tiny_target("llama"), taps=config.taps)
    drafts = []
    for at_once in (1, waiting):
        drafter, cache = EagleDrafter(head, target), target.make_cache()
        pending = PendingRows(drafter)
        for token in range(14):
            pending.add(target.extend(mx.array([token]), cache), mx.array([token + 1]))
            if (token + 1) % at_once == 0:
                pending.observe()
        drafts.append(drafter.draft(mx.array([14]), TreeShape(3, 2, 5)))
    one, other = drafts
    assert one.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(one.log_probs.tolist(), other.log_probs.tolist(), atol=1e-5)
