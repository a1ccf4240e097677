"""Several threads at one engine: right, or refused with the way out; never a riddle."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session.turn import Turn

QUESTION = [{"role": "user", "content": "What does zip do?"}]


class Gate:
    """A logits processor that holds an answer up in the middle of a step."""

    def __init__(self) -> None:
        self.is_reached, self.is_open = threading.Event(), threading.Event()

    def __call__(self, tokens: Any, logits: Any) -> Any:
        self.is_reached.set()
        assert self.is_open.wait(20)
        return logits


@pytest.mark.parametrize("is_same_session", [True, False])
def test_b12_a_second_thread_at_the_same_moment_is_told_of_worker(
    is_same_session: bool, turning: Engine
) -> None:
    expected = turning.generate(QUESTION, max_tokens=6).tokens
    session, gate, warm = turning.session(), Gate(), turning.session()
    warm.read(QUESTION)
    other = session if is_same_session else turning.session()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            lambda: list(session.stream_generate(QUESTION, max_tokens=6, logits_processors=[gate]))
        )
        assert gate.is_reached.wait(20)
        with pytest.raises(EagleError, match="another thread is using this engine.*Worker"):
            list(other.ask("And map?", max_tokens=2))
        with pytest.raises(EagleError, match="another thread"):
            turning.calibrate()
        held = list(warm.prefix.tokens)
        with pytest.raises(EagleError, match="another thread"):
            warm.read(QUESTION)
        assert warm.prefix.tokens == held != []
        gate.is_open.set()
        assert [response.token for response in first.result()] == expected
        assert other.messages == []


def test_threads_that_take_turns_and_streams_that_alternate_are_right(turning: Engine) -> None:
    expected = turning.generate(QUESTION, max_tokens=6).tokens
    with ThreadPoolExecutor(1) as pool:
        assert (
            pool.submit(lambda: turning.generate(QUESTION, max_tokens=6).tokens).result()
            == expected
        )
    left, right = (turning.stream_generate(QUESTION, max_tokens=6) for _ in range(2))
    pairs = [(a.token, b.token) for a, b in zip(left, right, strict=True)]
    assert pairs == [(token, token) for token in expected]


def test_what_mlx_says_of_arrays_of_another_thread_is_explained() -> None:
    turn = Turn()
    with pytest.raises(EagleError, match="belongs to another thread .*Worker"), turn.taken():
        raise RuntimeError("There is no Stream(gpu, 1) in current thread.")
    with pytest.raises(RuntimeError, match="another fault"), turn.taken():
        raise RuntimeError("another fault")
    with turn.taken(), turn.taken():
        pass  # a step may ask the engine something itself
