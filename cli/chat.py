"""`mlx-eagle chat`: a conversation in the terminal, or one answer for a script."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from mlx_eagle.cli.generate import load_engine, read_stdin, stream_answer, to_messages
from mlx_eagle.cli.options import ModelSource, Settings, model_options, settings_options

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_eagle.engine import Engine, EngineInfo
    from mlx_eagle.hub import Progress
    from mlx_eagle.responses import GenerationResponse
    from mlx_eagle.session import Session

EXAMPLES = """\b
Examples:
  mlx-eagle chat
  mlx-eagle chat --model mlx-community/Qwen3-4B-4bit
  mlx-eagle chat --model my-model --head my-head --temp 0.7 --seed 1
  mlx-eagle chat -p "What is the signature of shutil.copyfile?"
  mlx-eagle chat < question.txt
"""


@click.command("chat", epilog=EXAMPLES)
@click.option("--prompt", "-p", metavar="PROMPT", help="Answer this and leave; `-` reads stdin.")
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@model_options
@settings_options(max_tokens=2048)
def command(
    prompt: str | None, system: str | None, source: ModelSource, settings: Settings
) -> None:
    """Talk with a model. Without --model: a demo pair that needs no download.

    The history of what you type is kept in a file; MLX_EAGLE_HISTORY names another, and turns
    it off when empty.
    """
    if prompt is None and sys.stdin.isatty():
        if not sys.stdout.isatty():
            raise click.UsageError("a conversation needs a terminal; for a script, give -p PROMPT")
        converse(source, settings, system)
        return
    question = read_stdin() if prompt in (None, "-") else prompt
    if not question or not question.strip():
        raise click.UsageError("the prompt is empty")
    from mlx_eagle.cli.display import terminal

    console = terminal(stderr=True)
    engine = load_engine(source.for_settings(settings), console)
    stream_answer(engine, to_messages(question, system), settings, console, sys.stdout)


def converse(source: ModelSource, settings: Settings, system: str | None) -> None:
    """Run the conversation loop while the engine loads behind the prompt."""
    from mlx_eagle.cli.display import terminal
    from mlx_eagle.cli.repl import Repl, history_path

    console = terminal()
    fetch_models(source, console)

    def start(progress: "Progress") -> "Engine":
        from mlx_eagle.engine import load

        return load(
            source.model,
            source.head,
            dtype=source.dtype,
            calibrate=source.calibrate,
            progress=progress,
        )

    engine = EngineThread(start, system)
    Repl(engine, settings, console).run(history_path())
    if engine.busy:
        # An engine that still loads cannot be interrupted, and Python would wait for it.
        sys.stdout.flush()
        os._exit(0)


def fetch_models(source: ModelSource, console: "Console") -> None:
    """Bring models here, and convert a head, before the prompt: Ctrl-C must reach that."""
    name = source.model or source.head
    if name is None or name == "none":
        return  # the demo pair, or its target alone
    from mlx_eagle.cli.display import Loading, printable
    from mlx_eagle.hub import fetch
    from mlx_eagle.published import choose_head

    with Loading(console) as loading:
        folder = fetch(name, progress=loading.update)
        if source.model is not None:
            choose_head(
                source.model,
                source.head,
                folder,
                progress=loading.update,
                notify=lambda line: console.print(printable(line)),
            )


class EngineThread:
    """A conversation whose engine lives on a thread of its own, which also loads it.

    MLX arrays belong to the thread that made them, so every call to the engine happens there;
    the thread of the terminal stays free to take keys, Ctrl-C above all.
    """

    def __init__(self, start: Callable[["Progress"], "Engine"], system: str | None = None):
        self.progress = ("load", 0, 1)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._job: Future[Any]
        self._session: Session
        self._info: EngineInfo
        self._job = self._loading = self._pool.submit(self._start, start, system)

    def _start(self, start: Callable[["Progress"], "Engine"], system: str | None) -> None:
        engine = start(self._note)
        self._info = engine.info
        self._session = engine.session(system)

    def _note(self, phase: str, done: int, total: int) -> None:
        """Note how far loading is; models are here, so what is fetched is not shown again."""
        if phase in ("load", "calibrate"):
            self.progress = (phase, done, total)

    @property
    def busy(self) -> bool:
        """Whether the engine is still at work, be it loading."""
        return not self._job.done()

    @property
    def loaded(self) -> bool:
        """Whether loading is over, well or not."""
        return self._loading.done()

    def wait(self) -> "EngineInfo":
        """Wait for the engine; raises what its loading raised."""
        self._loading.result()
        return self._info

    def failure(self) -> BaseException | None:
        """Return what loading raised, or None; only once it is over."""
        return self._loading.exception()

    @property
    def system(self) -> str | None:
        """The system prompt."""
        self.wait()
        return self._session.system

    @system.setter
    def system(self, text: str | None) -> None:
        self.wait()
        self._session.system = text

    def clear(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.wait()
        self._job = self._pool.submit(self._session.clear)
        self._job.result()

    def ask(self, text: str, **options: Any) -> "Generator[GenerationResponse]":
        """Yield the answer; closing the iterator stops the engine after its round.

        Raises:
            EagleError: what the engine raises.
        """
        self.wait()
        pieces: queue.SimpleQueue[GenerationResponse | None] = queue.SimpleQueue()
        stop = threading.Event()
        self._job = self._pool.submit(self._answer, text, options, pieces, stop)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            self._job.result()
        finally:
            stop.set()
            wait([self._job])

    def _answer(
        self,
        text: str,
        options: dict[str, Any],
        pieces: "queue.SimpleQueue[GenerationResponse | None]",
        stop: threading.Event,
    ) -> None:
        """Put the answer's pieces into the queue, then None; runs on the engine's thread."""
        report = options.pop("progress", None)

        def progress(done: int, total: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            if report is not None:
                report(done, total)

        try:
            with closing(self._session.ask(text, progress=progress, **options)) as answer:
                for piece in answer:
                    pieces.put(piece)
                    if stop.is_set():
                        return
        except KeyboardInterrupt:
            return
        finally:
            pieces.put(None)
