"""The attention of a model served by another function, and given back."""

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.target.attention_hook import NAME, Call, wrap_attention
from tiny_models import build_target

TOKENS = mx.array([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_target("llama")


def test_it_is_asked_what_attention_is_and_may_serve_it(model: nn.Module) -> None:
    seen: list[Heads | None] = []

    def zeros(*parts: Any) -> mx.array:
        call = Call(*parts)
        seen.append(call.heads)
        return mx.zeros_like(call.queries)

    before = model(TOKENS)
    hooks = wrap_attention(model, zeros)
    assert not mx.array_equal(model(TOKENS), before)
    assert set(seen) == {Heads(4, 2, 16, "float32", 0.25)}
    for undo in reversed(hooks):
        undo()
    assert mx.array_equal(model(TOKENS), before)


def test_what_it_does_not_want_is_computed_as_before(model: nn.Module) -> None:
    before = model(TOKENS)
    hooks = wrap_attention(model, lambda *_: None)
    assert mx.array_equal(model(TOKENS), before)
    for undo in hooks:
        undo()


def test_two_of_them_are_taken_off_in_any_order(model: nn.Module) -> None:
    place = sys.modules[type(model).__module__]
    original = getattr(place, NAME)
    asked: list[str] = []
    first = wrap_attention(model, lambda *_: asked.append("first"))
    second = wrap_attention(model, lambda *_: asked.append("second"))
    for undo in first:
        undo()
    mx.eval(model(TOKENS))
    assert set(asked) == {"second"}
    for undo in second:
        undo()
    asked.clear()
    mx.eval(model(TOKENS))
    assert asked == []
    assert getattr(place, NAME) is original
