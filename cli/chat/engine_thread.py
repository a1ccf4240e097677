"""A conversation whose engine lives on a thread of its own.

The thread of the terminal stays free to take keys, Ctrl-C above all. The messages are held by the
session, the thread by `worker.py`; `Conversation` puts the two together and can change the model
below them.
"""

import gc
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from mlx_eagle.cli.options import ModelSource
from mlx_eagle.errors import EagleError
from mlx_eagle.worker import Stream, Worker

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine, EngineInfo
    from mlx_eagle.hub.download import Progress
    from mlx_eagle.session.responses import GenerationResponse, Responses
    from mlx_eagle.session.session import Session, Usage

P = ParamSpec("P")
T = TypeVar("T")

Load = Callable[[ModelSource, "Progress"], "Engine"]


class _AwaitedError(Exception):
    """Something waits, so that this machine is measured later."""


class Loaded(NamedTuple):
    """What belongs to the thread: an engine and the conversation with it."""

    engine: "Engine"
    session: "Session"


class Conversation:
    """A conversation with a model that may still be loading.

    Args:
        load: loads a model; called on the thread.
        source: which one, to begin with.
        system: the system prompt, or None.

    Attributes:
        source: the model in use.
        progress: of loading: phase, steps done, steps in all.
        spelling: the texts of the tokens of all trees so far.
    """

    def __init__(self, load: Load, source: ModelSource, system: str | None = None) -> None:
        self.source = source
        self.progress = ("load", 0, 1)
        self.spelling: dict[int, str] = {}
        self._load = load
        self._worker = Worker()
        self._is_measuring = source.loading.calibrate
        self._begun = self._worker.submit(self._begin, source, system)
        self._worker.submit(self._read_ahead)
        self._is_ready = self._worker.submit(self._catch_up)
        self._now: Loaded

    def _begin(self, source: ModelSource, system: str | None) -> None:
        """Load; this machine is measured when there is nothing else to do."""
        engine = self._load(source.with_loading(calibrate=False), self._note)
        if self._is_measuring:
            engine.await_calibration()
        self._now = Loaded(engine, engine.session(system))

    def _read_ahead(self) -> None:
        """Read the system prompt while the first question is typed."""
        if self._begun.exception() is None:
            with suppress(EagleError):  # the question will say it
                self._now.session.read_ahead()

    def _catch_up(self) -> None:
        """Measure this machine, if that is still to be done and nothing is asked meanwhile."""
        is_loaded = self._begun.exception() is None
        if not (is_loaded and self._is_measuring and self._now.engine.head is not None):
            return
        if self._worker.is_awaited:  # a trial of kernels could not be ended
            return
        self._is_measuring = False
        try:
            self._now.engine.catch_up(self._report)
        except _AwaitedError:
            self._is_measuring = True

    def _report(self, done: int, total: int) -> None:
        """Note how far measuring is, or end it where something waits."""
        self._note("calibrate", done, total)
        if self._worker.is_awaited:
            raise _AwaitedError

    def _note(self, phase: str, done: int, total: int) -> None:
        """Note how far loading is; models are here, so what is fetched is not shown again."""
        if phase in ("load", "calibrate"):
            self.progress = (phase, done, total)

    # The model

    @property
    def is_busy(self) -> bool:
        """Whether the engine is still at work, be it loading."""
        return self._worker.is_busy

    @property
    def is_loaded(self) -> bool:
        """Whether the first loading is over, well or not, and this machine measured or asked."""
        return self._is_ready.done()

    @property
    def lost(self) -> str:
        """Why nothing can be computed any more: a machine is lost; "" while all is well."""
        is_there = self._begun.done() and self._begun.exception() is None
        return self._now.engine.target.lost if is_there else ""

    def rescue(self, reason: str) -> None:
        """Write down what was said, if anything was; the thread need not answer any more."""
        from mlx_eagle.session.rescue import rescue_folder, write_conversations

        if self._begun.exception() is not None:
            return
        session, tokenizer = self._now.session, self._now.engine.tokenizer
        write_conversations([session], tokenizer, rescue_folder(), reason)

    def hurry(self) -> None:
        """Ask for what is loaded, so that measuring this machine waits."""
        self._worker.submit(lambda: None)

    def failure(self) -> BaseException | None:
        """Return what loading raised, or None; waits until it is over."""
        return self._begun.exception() or self._is_ready.exception()

    def wait(self) -> "EngineInfo":
        """Wait for the engine and return what is loaded; raises what its loading raised."""
        self._begun.result()
        return self._now.engine.info

    def reload(self, source: ModelSource) -> "Future[Engine]":
        """Begin to load another model, beside the one in use; `adopt` takes it up."""
        self.progress = ("load", 0, 1)
        return self._worker.submit(self._load, source, self._note)

    def adopt(self, source: ModelSource, engine: "Engine") -> None:
        """Go on with another model; what was said stays, and is read anew. Frees the old one."""
        self._call(self._adopt, engine)
        self.source = source
        self.spelling = {}

    def _adopt(self, engine: "Engine") -> None:
        import mlx.core as mx

        session = engine.session(self._now.session.system)
        session.messages = list(self._now.session.messages)
        session.template = self._now.session.template
        self._now = Loaded(engine, session)
        gc.collect()
        mx.clear_cache()

    # What is said

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._now.session.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._now.session.system = text

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far."""
        return self._now.session.messages

    def ask(self, text: str, **options: Any) -> "Stream[GenerationResponse]":
        """Say something; returns the answer as it comes."""
        return self._stream(lambda session: session.ask(text, **options))

    def regenerate(self, **options: Any) -> "Stream[GenerationResponse]":
        """Answer the last question anew."""
        return self._stream(lambda session: session.regenerate(**options))

    def edit(self, text: str, **options: Any) -> "Stream[GenerationResponse]":
        """Ask something else in the place of the last question."""
        return self._stream(lambda session: session.edit(text, **options))

    def undo(self) -> dict[str, Any] | None:
        """Forget the last question and its answer; returns the question."""
        return self._call(self._now.session.undo)

    def clear(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._call(self._now.session.clear)

    def save(self, path: Path) -> None:
        """Write the conversation to a file."""
        self._call(self._now.session.save, path)

    def load(self, path: Path) -> None:
        """Go on with the conversation in a file."""
        self._call(self._load_session, path)

    def _load_session(self, path: Path) -> None:
        self._now = self._now._replace(session=self._now.engine.load_session(path))

    def usage(self) -> "Usage":
        """Return what the conversation takes."""
        return self._call(self._now.session.usage)

    def spell(self, token: int) -> str:
        """Return the text of a token that was in a tree."""
        return self.spelling.get(token, "?")

    def _stream(self, start: Callable[["Session"], "Responses"]) -> "Stream[GenerationResponse]":
        """Return an answer of the session as it comes."""
        self.wait()
        session, engine = self._now.session, self._now.engine
        stream = self._worker.stream(lambda: self._spelled(start(session), engine), session.cancel)
        self._worker.submit(self._catch_up)
        return stream

    def _call(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what a function returns on the engine's thread."""
        try:
            return self._worker.call(function, *args, **options)
        finally:
            self._worker.submit(self._catch_up)

    def _spelled(self, stream: "Responses", engine: "Engine") -> "Responses":
        """Pass an answer on; the tokens of its trees are spelled here, on the engine's thread."""
        try:
            for response in stream:
                new = set(response.tree.tokens) - set(self.spelling) if response.tree else ()
                self.spelling |= {token: engine.tokenizer.decode([token]) for token in new}
                yield response
        finally:
            stream.close()
