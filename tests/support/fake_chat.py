"""A chat whose conversation is an echo and whose terminal is a buffer."""

import contextlib
import io
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_eagle.answers.sections import Kind, Span
from mlx_eagle.cli.chat.repl import Repl
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.cli.terminal.display import terminal
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.engine import EngineInfo
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.responses import GenerationResponse
from mlx_eagle.session.session import Usage
from mlx_eagle.speculation import ON

INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", ON, "CPU", True)


def piece(text: str, n: int = 1, stats: GenerationStats | None = None) -> GenerationResponse:
    """Return a response that carries `text` as the n-th token."""
    return GenerationResponse(
        text=text,
        token=n,
        logprobs=None,
        from_draft=False,
        prompt_tokens=3,
        prompt_tps=30.0,
        generation_tokens=n,
        generation_tps=8.0,
        peak_memory=0.1,
        finish_reason="stop" if stats else None,
        n_accepted=0,
        tree=None,
        stats=stats,
        spans=(Span(text, Kind.SAID, False),),
    )


class FakeConversation:
    """Echoes what it hears, a token per word; "interrupt" is interrupted after one word."""

    is_loaded = True
    lost = ""

    def __init__(self) -> None:
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self.options: dict[str, Any] = {}
        self.closed = 0
        self.rescued: list[str] = []
        self.error: BaseException | None = None
        self.progress = ("load", 0, 2)
        self.source = ModelSource(None, None)
        self.info = INFO

    @property
    def heard(self) -> list[str]:
        return [m["content"] for m in self.messages if m["role"] == "user"]

    def wait(self) -> EngineInfo:
        if self.error:
            raise self.error
        return self.info

    def failure(self) -> BaseException | None:
        return self.error

    def spell(self, token: int) -> str:
        return "?"

    def rescue(self, reason: str) -> None:
        self.rescued.append(reason)

    def clear(self) -> None:
        self.messages = []

    def undo(self) -> dict[str, str] | None:
        question = self.messages[-2] if self.messages else None
        self.messages = self.messages[:-2]
        return question

    def ask(self, text: str, **options: Any) -> Any:
        return Answering(self.answer(text, options))

    def regenerate(self, **options: Any) -> Any:
        question = self.undo()
        if question is None:
            raise EagleError("nothing was asked yet")
        return self.ask(question["content"], **options)

    def edit(self, text: str, **options: Any) -> Any:
        self.undo()
        return self.ask(text, **options)

    def answer(self, text: str, options: dict[str, Any]) -> Generator[GenerationResponse]:
        self.options = options
        try:
            if text == "fail":
                raise EagleError("the prompt is too long")
            if text == "lost":
                raise ClusterError("rank 1 has ended")
            words = text.split()
            told = [{"role": "user", "content": text}, {"role": "assistant", "content": words[0]}]
            self.messages += told
            stats = GenerationStats(prompt_tokens=3, generation_tokens=len(words))
            stats.add_round(depth=2, n_drafted=2, n_accepted=1)
            for n, word in enumerate(words, start=1):
                yield piece(word, n, stats=stats if n == len(words) else None)
                if text.startswith("interrupt"):
                    raise KeyboardInterrupt
        finally:
            self.closed += 1

    def save(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise EagleError(f"cannot write {path}")
        path.write_text(" ".join(self.heard))

    def load(self, path: Path) -> None:
        if not path.is_file():
            raise EagleError(f"there is no file {path}")
        self.messages = [{"role": "user", "content": path.read_text()}]

    def usage(self) -> Usage:
        return Usage(12, 2048, 3_400_000)

    def reload(self, source: ModelSource) -> "Future[str]":
        job: Future[str] = Future()
        if source.model == "broken" or source.head == "broken":
            job.set_exception(EagleError("no such model"))
        else:
            job.set_result(source.model or "demo")
        return job

    def adopt(self, source: ModelSource, engine: str) -> None:
        self.source = source
        self.info = INFO._replace(target=engine, head=source.head or "")


class Answering:
    """A stream that can be cancelled, as a worker's."""

    def __init__(self, pieces: Generator[GenerationResponse]) -> None:
        self.cancel, self._pieces = pieces.close, pieces

    def __iter__(self) -> Iterator[GenerationResponse]:
        return self._pieces


class Chat:
    """A loop with a fake conversation, whose terminal is a buffer."""

    def __init__(self) -> None:
        self.conversation = FakeConversation()
        self.screen = io.StringIO()
        conversation: Any = self.conversation
        self.repl = Repl(conversation, GenerationOptions(), terminal(self.screen))

    def say(self, line: str) -> str:
        """Send one line and return what appeared, answer included."""
        self.screen.truncate(0)
        self.screen.seek(0)
        self.repl.handle(line)
        return self.screen.getvalue()

    @contextlib.contextmanager
    def keyboard(self, keys: str) -> Iterator[None]:
        """Let the loop read these keys, and write to the screen."""
        with (
            create_pipe_input() as keyboard,
            create_app_session(input=keyboard, output=DummyOutput()),
            contextlib.redirect_stdout(self.screen),
        ):
            keyboard.send_text(keys)
            yield
