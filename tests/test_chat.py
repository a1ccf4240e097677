"""The chat on its two threads, and as a whole on a pseudo-terminal.

The tests with a terminal run it in a child process whose engine is a stub.
"""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_eagle.cli.chat import EngineThread
from mlx_eagle.engine import EngineInfo
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.hub import Progress
from mlx_eagle.responses import GenerationResponse

WORDS = ["It ", "joins ", "paths", "."]
INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", "on", "CPU", True)


def responses() -> Iterator[GenerationResponse]:
    """Yield a token per word, slowly."""
    for n, word in enumerate(WORDS, start=1):
        time.sleep(0.01)
        yield GenerationResponse(
            text=word,
            token=n,
            from_draft=False,
            prompt_tokens=3,
            prompt_tps=30.0,
            generation_tokens=n,
            generation_tps=8.0,
            peak_memory=0.1,
            n_accepted=0,
            finish_reason=None,
            stats=None,
        )


class FakeSession:
    """A conversation that answers slowly, and keeps what it was asked."""

    def __init__(self, system: str | None) -> None:
        self.system = system
        self.heard: list[str] = []
        self.closed = False

    def ask(self, text: str, **options: Any) -> Iterator[GenerationResponse]:
        self.heard.append(text)
        self.closed = False
        if text == "fail":
            raise EagleError("the prompt is too long")
        try:
            options["progress"](0, 10)
            options["progress"](10, 10)
            yield from responses()
        finally:
            self.closed = True

    def clear(self) -> None:
        self.heard.clear()


class SessionEngine:
    def __init__(self, progress: Progress) -> None:
        progress("calibrate", 1, 4)
        self.info = INFO

    def session(self, system: str | None) -> FakeSession:
        return FakeSession(system)


def test_the_engine_thread_passes_on_pieces_and_errors() -> None:
    thread = EngineThread(SessionEngine, "Be brief.")  # type: ignore[arg-type]
    assert thread.wait() == INFO
    assert thread.progress == ("calibrate", 1, 4)
    assert thread.system == "Be brief."
    assert "".join(piece.text for piece in thread.ask("a")) == "".join(WORDS)
    with pytest.raises(EagleError, match="too long"):
        list(thread.ask("fail"))
    assert "".join(piece.text for piece in thread.ask("b")) == "".join(WORDS)
    assert thread._session.heard == ["a", "fail", "b"]  # type: ignore[attr-defined]


def test_closing_an_answer_stops_the_engine_before_the_next_one() -> None:
    thread = EngineThread(SessionEngine)  # type: ignore[arg-type]
    answer = thread.ask("a")
    assert next(answer).text == WORDS[0]
    answer.close()
    assert thread._session.closed  # type: ignore[attr-defined]
    assert not thread.busy
    assert len(list(thread.ask("b"))) == len(WORDS)


def test_stopping_while_the_prompt_is_read_ends_the_reading() -> None:
    thread = EngineThread(SessionEngine)  # type: ignore[arg-type]
    thread.wait()
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    assert list(thread.ask("a", progress=interrupt)) == []
    assert seen == [0]
    assert len(list(thread.ask("b"))) == len(WORDS)


def test_what_loading_raised_is_raised_to_whoever_waits() -> None:
    def start(progress: Progress) -> Any:
        raise CheckpointError("no such head")

    thread = EngineThread(start)
    with pytest.raises(CheckpointError, match="no such head"):
        thread.wait()
    assert isinstance(thread.failure(), CheckpointError)


STUB = """
import fcntl, sys, termios, time, types
from types import SimpleNamespace

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C on this terminal reaches this process
LOAD_SECONDS = float(sys.argv.pop())

class Session:
    system = None
    def __init__(self, system):
        self.messages = []
    def ask(self, text, **options):
        self.messages.append(text)
        for n in range(10_000 if text == "long" else 1):
            time.sleep(0.01)
            yield SimpleNamespace(
                text=f"[{len(self.messages)}.{n}] ", from_draft=False, generation_tokens=n + 1,
                generation_tps=10.0, finish_reason=None, stats=None,
            )

def load(*args, **options):
    time.sleep(LOAD_SECONDS)
    info = SimpleNamespace(
        target="toy", target_precision="8-bit", head="", head_precision="", speculation="on",
        device="CPU", is_demo=True,
    )
    return SimpleNamespace(info=info, session=Session)

engine = types.ModuleType("mlx_eagle.engine")
engine.load = load
sys.modules["mlx_eagle.engine"] = engine
tree = types.ModuleType("mlx_eagle.tree")
tree.TreeShape = tuple
sys.modules["mlx_eagle.tree"] = tree
sys.argv = ["mlx-eagle", "chat"]

from mlx_eagle.cli import main
main()
"""


class Terminal:
    """The chat with a stub of an engine, on a pseudo-terminal."""

    def __init__(self, load_seconds: float = 0.0):
        self.screen = ""
        self._keys, child = pty.openpty()
        env = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "MLX_EAGLE_HISTORY": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", STUB, str(load_seconds)],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=os.environ | env,
        )
        os.close(child)

    def press(self, keys: str) -> None:
        """Type keys."""
        os.write(self._keys, keys.encode())

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Return the screen up to `text` once it appears, and forget it."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear in {self.screen!r}"
            if select.select([self._keys], [], [], left)[0]:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")
        before, _, self.screen = self.screen.partition(text)
        return before

    def end(self) -> int:
        """Read until the child has ended; returns its exit status."""
        deadline = time.monotonic() + 20
        with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
            while select.select([self._keys], [], [], deadline - time.monotonic())[0]:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")
        return self.process.wait(timeout=1)

    def close(self) -> None:
        """End the child, however the test went."""
        self.process.kill()
        self.process.wait()
        os.close(self._keys)


def test_ctrl_c_on_a_terminal_stops_the_answer_and_keeps_the_conversation() -> None:
    with contextlib.closing(Terminal()) as screen:
        screen.wait_for(">>>")
        screen.press("long\r")
        screen.wait_for("[1.20]")
        screen.press("\x03")
        screen.wait_for("stopped · ")
        screen.wait_for(">>>")
        screen.press("short\r")
        screen.wait_for("[2.0]")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


def test_the_prompt_is_there_while_the_model_loads_and_a_message_waits_for_it() -> None:
    with contextlib.closing(Terminal(load_seconds=3.0)) as screen:
        started = time.monotonic()
        screen.wait_for(">>>")
        screen.wait_for("loading the model")
        assert time.monotonic() - started < 2.5
        screen.press("short\r")
        screen.wait_for("toy · 8-bit")
        screen.wait_for("[1.0]")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


def test_the_banner_appears_above_what_is_being_typed() -> None:
    with contextlib.closing(Terminal(load_seconds=2.0)) as screen:
        screen.wait_for(">>>")
        screen.press("sho")
        screen.wait_for("toy · 8-bit")
        screen.wait_for("sho")
        screen.press("rt\r")
        screen.wait_for("[1.0]")


def test_leaving_does_not_wait_for_a_model_that_still_loads() -> None:
    with contextlib.closing(Terminal(load_seconds=60.0)) as screen:
        screen.wait_for(">>>")
        screen.press("\x04")
        started = time.monotonic()
        assert screen.end() == 0
        assert time.monotonic() - started < 10


def test_ctrl_c_while_a_message_waits_for_the_model_returns_to_the_prompt() -> None:
    with contextlib.closing(Terminal(load_seconds=60.0)) as screen:
        screen.wait_for(">>>")
        screen.press("short\r")
        screen.wait_for("loading ")
        time.sleep(0.5)  # seconds: the key must not reach the line editor
        screen.press("\x03")
        screen.wait_for("stopped")
        screen.wait_for(">>>")
        screen.press("\x04")
        assert screen.end() == 0


def test_no_color_means_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dim text and a moving cursor are no colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.closing(Terminal()) as screen:
        shown = screen.wait_for("toy · 8-bit") + screen.wait_for(">>>")
        screen.press("\x04")
        screen.end()
        shown += screen.screen
    assert re.findall(r"\x1b\[[0-9;]*(?:3[0-7]|4[0-7]|9[0-7])m", shown) == []
