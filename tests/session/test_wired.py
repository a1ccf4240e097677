"""What is wired for an answer is not wired after it, however it ends."""

from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.session import wired as module

QUESTION = [{"role": "user", "content": "What does zip do?"}]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that recommends 1000 bytes, and the limits that were set on it."""
    found = [7]

    def set_limit(limit: int) -> int:
        found.append(limit)
        return found[-2]

    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(module, "maybe_set_recommended_wired_limit", lambda: set_limit(1000))
    return found


def test_the_limit_is_raised_for_an_answer_and_put_back(turning: Engine, limits: list[int]) -> None:
    turning.generate(QUESTION, max_tokens=3)
    assert limits == [7, 1000, 7]
    turning.session().read(QUESTION)
    assert limits == [7, 1000, 7] * 1 + [1000, 7]


def test_it_is_put_back_when_an_answer_is_left_or_fails(turning: Engine, limits: list[int]) -> None:
    stream = turning.stream_generate(QUESTION, max_tokens=9)
    next(stream)
    assert limits[-1] == 1000
    stream.close()
    assert limits[-1] == 7

    def fail(tokens: Any, logits: Any) -> Any:
        raise RuntimeError("a processor fails")

    with pytest.raises(RuntimeError, match="a processor fails"):
        turning.generate(QUESTION, logits_processors=[fail])
    assert limits[-1] == 7


def test_a_device_that_recommends_nothing_is_left_alone(
    turning: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "set_wired_limit", lambda _: pytest.fail("was set"))
    turning.generate(QUESTION, max_tokens=2)
