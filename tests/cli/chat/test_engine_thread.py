"""A conversation on a thread of its own, with a session that is none."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_eagle.cli.chat.engine_thread import Conversation
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.errors import CheckpointError, EagleError

WORDS = ["It ", "joins ", "paths", "."]
DEMO = ModelSource(None, None)
OTHER = DEMO._replace(model="other")
TREE = SimpleNamespace(tokens=[5, 6], parents=[0, 0], path=[0])


class FakeSession:
    """A conversation that notes what is done with it."""

    def __init__(self, system: str | None = None) -> None:
        self.system, self.template = system, {"thinking": False}
        self.messages: list[dict[str, str]] = []
        self.is_cancelled = self.is_closed = False
        self.prefix = SimpleNamespace(tokens=[7])

    def ask(self, text: str, **options: Any) -> Iterator[Any]:
        self.messages.append({"role": "user", "content": text})
        self.is_cancelled = self.is_closed = False
        if text == "fail":
            raise EagleError("the prompt is too long")
        try:
            for word in WORDS * (1000 if text == "long" else 1):
                if self.is_cancelled:
                    return
                yield SimpleNamespace(text=word, tree=TREE if word == "." else None)
        finally:
            self.is_closed = True

    def read_ahead(self) -> bool:
        self.is_read = True
        if self.system == "refused":
            raise EagleError("this template has no system prompt")
        return True

    def regenerate(self, **options: Any) -> Iterator[Any]:
        return self.ask("again", **options)

    def edit(self, text: str, **options: Any) -> Iterator[Any]:
        return self.ask(f"edited {text}", **options)

    def undo(self) -> dict[str, str]:
        return self.messages.pop()

    def cancel(self) -> None:
        self.is_cancelled = True

    def clear(self) -> None:
        self.messages = []

    def save(self, path: Path) -> None:
        path.write_text(self.messages[-1]["content"])

    def usage(self) -> tuple[int, int, int]:
        return (len(self.messages), 10, 100)


class Engine:
    """What makes sessions."""

    def __init__(self, name: str) -> None:
        self.info, self.target = SimpleNamespace(target=name), SimpleNamespace(lost="")
        self.head, self.begun, self.is_measured = object(), 0, False
        self.tokenizer = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")

    def session(self, system: str | None) -> FakeSession:
        return FakeSession(system)

    def await_calibration(self) -> None:
        self.is_measured = False

    def catch_up(self, report: Any) -> None:
        """Measure for as long as nobody asks, twice; then at once."""
        self.begun += 1
        while self.begun <= 2 and self.info.target == "slow":
            report(1, 4)
            time.sleep(0.001)
        self.is_measured = True

    def load_session(self, path: Path) -> FakeSession:
        session = FakeSession("of the file")
        session.messages = [{"role": "user", "content": path.read_text()}]
        return session


def load(source: ModelSource, progress: Any) -> Any:
    progress("download x", 1, 2)
    progress("calibrate", 1, 4)
    if source.model == "broken":
        raise CheckpointError("no such model")
    return Engine(source.model or "demo")


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(load, DEMO, "Be brief.")


def until(is_true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def said(stream: Any) -> str:
    return "".join(piece.text for piece in stream)


def test_loading_is_waited_for_and_its_progress_is_known(conversation: Conversation) -> None:
    assert conversation.wait().target == "demo"
    assert conversation.is_loaded
    assert conversation.progress == ("calibrate", 1, 4)
    assert conversation.system == "Be brief."


def test_what_was_said_is_written_down_once_a_machine_of_the_model_is_lost(
    conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    said(conversation.ask("What does zip do?"))
    assert conversation.lost == ""
    conversation._now.engine.target.lost = "rank 1 is gone"
    assert conversation.lost == "rank 1 is gone"
    conversation.rescue(conversation.lost)
    (file,) = tmp_path.rglob("conversation*.json")
    written = json.loads(file.read_text())
    assert written["messages"][0]["content"] == "What does zip do?"
    assert written["reason"] == "rank 1 is gone"


def test_a_model_that_was_not_loaded_has_lost_no_machine_and_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    conversation = Conversation(load, DEMO._replace(model="broken"))
    conversation.rescue("rank 1 is gone")
    assert conversation.lost == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("system", ["Be brief.", "refused"])
def test_what_stands_before_the_first_question_is_read_while_that_is_typed(system: str) -> None:
    conversation = Conversation(load, DEMO, system)
    assert said(conversation.ask("hi")) == "".join(WORDS)
    assert conversation._now.session.is_read  # type: ignore[attr-defined]


def test_a_question_does_not_wait_for_the_machine_to_be_measured() -> None:
    conversation = Conversation(load, DEMO._replace(model="slow"))
    conversation.wait()
    engine: Any = conversation._now.engine
    until(lambda: engine.begun == 1)
    assert not conversation.is_loaded and not engine.is_measured
    conversation.hurry()
    until(lambda: conversation.is_loaded)
    assert said(conversation.ask("hi")) == "".join(WORDS)
    until(lambda: engine.begun == 2)
    conversation.undo()  # commands do not wait either
    until(lambda: not conversation.is_busy)
    assert engine.begun == 3 and engine.is_measured
    assert said(conversation.ask("hi")) == "".join(WORDS)
    until(lambda: not conversation.is_busy)
    assert engine.begun == 3, "it was measured again"


def test_a_machine_that_is_not_to_be_measured_is_not() -> None:
    conversation = Conversation(load, DEMO.with_loading(calibrate=False))
    until(lambda: conversation.is_loaded)
    engine: Any = conversation._now.engine
    assert not engine.begun


def test_what_loading_raised_is_raised_to_whoever_waits() -> None:
    conversation = Conversation(load, DEMO._replace(model="broken"))
    with pytest.raises(CheckpointError, match="no such model"):
        conversation.wait()
    assert isinstance(conversation.failure(), CheckpointError)


def test_answers_and_errors_come_through(conversation: Conversation) -> None:
    assert said(conversation.ask("a")) == "".join(WORDS)
    with pytest.raises(EagleError, match="too long"):
        said(conversation.ask("fail"))
    assert said(conversation.regenerate()) == "".join(WORDS)
    assert said(conversation.edit("b")) == "".join(WORDS)
    heard = [message["content"] for message in conversation.messages]
    assert heard == ["a", "fail", "again", "edited b"]


def test_the_tokens_of_trees_are_spelled(conversation: Conversation) -> None:
    said(conversation.ask("a"))
    assert [conversation.spell(token) for token in (5, 6, 7)] == ["<5>", "<6>", "?"]


def test_closing_an_answer_stops_the_engine_before_the_next_one(
    conversation: Conversation,
) -> None:
    answer = conversation.ask("long")
    assert next(answer).text == WORDS[0]
    answer.close()
    session: Any = conversation._now.session
    assert session.is_closed
    assert not conversation.is_busy
    assert said(conversation.ask("b")) == "".join(WORDS)


def test_cancelling_an_answer_ends_it(conversation: Conversation) -> None:
    answer = conversation.ask("long")
    next(answer)
    answer.cancel()
    assert len(list(answer)) < 4000


def test_the_rest_is_the_sessions(conversation: Conversation, tmp_path: Path) -> None:
    said(conversation.ask("a"))
    assert conversation.usage() == (1, 10, 100)
    conversation.system = "Be long."
    conversation.save(tmp_path / "file")
    assert conversation.undo() == {"role": "user", "content": "a"}
    conversation.load(tmp_path / "file")
    assert conversation.messages == [{"role": "user", "content": "a"}]
    assert conversation.system == "of the file"
    conversation.clear()
    assert conversation.messages == []


def test_another_model_takes_over_what_was_said(conversation: Conversation) -> None:
    said(conversation.ask("a"))
    conversation._now.session.template = "of the old one"
    conversation.adopt(OTHER, conversation.reload(OTHER).result())
    assert conversation.wait().target == "other"
    assert conversation.source == OTHER
    assert conversation.messages == [{"role": "user", "content": "a"}]
    assert conversation.system == "Be brief."
    assert conversation._now.session.template == "of the old one"
    assert conversation.spell(5) == "?"
    assert said(conversation.ask("b")) == "".join(WORDS)


def test_a_model_that_cannot_be_loaded_leaves_the_one_in_use(conversation: Conversation) -> None:
    conversation.wait()
    with pytest.raises(CheckpointError, match="no such model"):
        conversation.reload(DEMO._replace(model="broken")).result()
    assert conversation.wait().target == "demo"
    assert conversation.source == DEMO
    assert said(conversation.ask("b")) == "".join(WORDS)
