"""The conversation loop: lines in, commands and messages told apart, answers out.

What the commands do is in `actions` and `setting_actions`; loading and generating is in
`engine_thread`, on another thread; what is shown is made in `terminal/`.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.shortcuts import confirm
from rich.console import Console

from mlx_eagle.cli.chat.commands import COMMANDS, NAMES, find
from mlx_eagle.cli.chat.completion import CommandCompleter
from mlx_eagle.cli.chat.editor import is_text, prompt_session, unfenced
from mlx_eagle.cli.chat.fetching import fetch_models
from mlx_eagle.cli.chat.keyboard import listening
from mlx_eagle.cli.chat.setting_actions import suggestion
from mlx_eagle.cli.options import as_keywords
from mlx_eagle.cli.settings import with_recommended
from mlx_eagle.cli.terminal.answer import Answer
from mlx_eagle.cli.terminal.display import TITLES, Loading, Prefill, about, note_on, printable
from mlx_eagle.cli.terminal.views import Show, open_view
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.sampling.options import LOSSY, TYPICAL

if TYPE_CHECKING:
    from mlx_eagle.cli.chat.engine_thread import Conversation
    from mlx_eagle.cli.options import ModelSource
    from mlx_eagle.session.options import GenerationOptions
    from mlx_eagle.session.responses import GenerationResponse
    from mlx_eagle.worker import Stream

TICK = 0.05  # seconds between looks at how far loading is
EDITING = "editing the last question; Ctrl-C leaves it as it was"


class Repl:
    """A conversation with somebody at a terminal.

    Attributes:
        conversation: what it talks with.
        settings: how answers are generated.
        show: what is shown of them.
        given: settings that the person has decided; others are as the publisher recommends.
        console: the terminal.
        answers: those of this chat.
        file: where the conversation was last saved or loaded; None before that.
        draft: a question that the next prompt begins with, to be asked in place of the last one.
        is_over: whether the person has left.
    """

    def __init__(
        self,
        conversation: "Conversation",
        settings: "GenerationOptions",
        console: Console,
        show: Show = Show(),  # noqa: B008 (it is frozen)
        given: Iterable[str] = (),
    ) -> None:
        self.conversation = conversation
        self.settings = settings
        self.show = show
        self.given = set(given)
        self.console = console
        self.answers: list[Answer] = []
        self.file: Path | None = None
        self.draft: str | None = None
        self.is_over = False
        self._announced = False

    def run(self, history: Path | None) -> None:
        """Talk until the person leaves.

        Raises:
            EagleError: if the engine cannot be loaded, or a machine of the model is lost; what was
                said is written down then.
        """
        try:
            self._talk(history)
        except ClusterError as error:
            self.conversation.rescue(str(error))
            raise

    def _talk(self, history: Path | None) -> None:
        """Do what `run` does."""
        self.note(f"mlx-eagle {metadata.version('mlx-eagle')} · /help for help, Ctrl-D to leave")
        prompt = prompt_session(history, CommandCompleter(COMMANDS))
        while not self.is_over:
            if lost := self.conversation.lost:
                raise ClusterError(lost)
            draft, self.draft = self.draft, None
            try:
                line = self._read(prompt, draft)
                if line is None:
                    return
                self.handle(line, is_edit=draft is not None)
            except KeyboardInterrupt:
                self.note("stopped")

    def _read(self, prompt: "PromptSession[str]", draft: str | None) -> str | None:
        """Return the next message, empty after Ctrl-C, or None after Ctrl-D."""
        state = self._state if draft is None else EDITING
        try:
            return prompt.prompt(default=draft or "", pre_run=self._watch, rprompt=state)
        except KeyboardInterrupt:
            if draft is not None:
                self.note("the last question stays as it was")
            elif not prompt.default_buffer.text:
                self.note("Ctrl-D or /exit leaves")
            return ""
        except EOFError:
            return None

    def _state(self) -> str:
        """Return what stands at the right of the line while it is typed."""
        if self.conversation.is_loaded or get_app().is_done:
            return ""
        phase, done, total = self.conversation.progress
        step = f", step {min(done + 1, total)} of {total}" if phase == "calibrate" else ""
        return f"{TITLES[phase]}{step} ..."

    def handle(self, line: str, *, is_edit: bool = False) -> None:
        """Act on one message or command.

        Args:
            line: what was typed.
            is_edit: a message is asked in place of the last question.
        """
        word, _, rest = line.partition(" ")
        if not line.strip():
            return
        if not is_text(line):
            self.note("that holds bytes that are not UTF-8 text; nothing was sent")
        elif not re.fullmatch(r"/[A-Za-z_?]*", word) or "\n" in line:
            start = self.conversation.edit if is_edit else self.conversation.ask
            self.answer(start, unfenced(line))
        elif (command := find(word)) is not None:
            try:
                command.run(self, rest.strip())
            except ClusterError:
                raise
            except EagleError as error:
                self.note(f"error: {error}")
        else:
            hint = suggestion(word, NAMES) or "; /help lists them"
            self.note(f"no command {word}{hint} (with a space before it, it is a message)")

    def _watch(self) -> None:
        """Look out for the end of loading, and for lost machines, while the prompt is shown."""
        get_app().create_background_task(self._announce_when_loaded())
        get_app().create_background_task(self._leave_when_lost())

    async def _leave_when_lost(self) -> None:
        """End the prompt once a machine of the model is lost."""
        while not (lost := self.conversation.lost):
            await asyncio.sleep(2 * TICK)
        _leave_prompt(ClusterError(lost))

    async def _announce_when_loaded(self) -> None:
        """Print the banner above the prompt, or end the prompt if the engine cannot be loaded."""
        while not self.conversation.is_loaded:
            get_app().invalidate()  # what loading has come to stands beside the line
            await asyncio.sleep(2 * TICK)
        error = self.conversation.failure()
        if error is not None:
            _leave_prompt(error)
        elif not self._announced:
            await run_in_terminal(self.announce)

    def announce(self) -> None:
        """Print the banner if that is still to be done, waiting for the engine if it must."""
        if self._announced:
            return
        if not self.conversation.is_loaded:
            self.conversation.hurry()
            self._show_loading(lambda: self.conversation.is_loaded)
        self._take_recommended()
        self.print(self.about())
        self.print(note_on(self.conversation.wait(), self.conversation.source.model))
        if self.settings.acceptance == TYPICAL:
            self.note(LOSSY)
        self._announced = True

    def about(self) -> str:
        """Return what is loaded, a line per part."""
        info = self.conversation.wait()
        return about(info, self.conversation.usage().max_context)

    def _show_loading(self, is_done: Callable[[], bool]) -> None:
        """Show how far loading is until it is over."""
        with Loading(self.console) as loading:
            while not is_done():
                loading.update(*self.conversation.progress)
                time.sleep(TICK)

    def reload(self, source: "ModelSource") -> None:
        """Go on with another model; the one in use stays if that cannot be loaded."""
        try:
            fetch_models(source, self.console)
            job = self.conversation.reload(source)
            self._show_loading(job.done)
            self.conversation.adopt(source, job.result())
        except EagleError as error:
            self.note(f"error: {error}")
            self.note("the model in use stays")
            return
        except KeyboardInterrupt:
            self.note("stopped; the model in use stays")
            return
        self._take_recommended()
        self.print(self.about())

    def _take_recommended(self) -> None:
        """Let what the person has not decided be as the model's publisher recommends."""
        recommended = self.conversation.wait().recommended
        self.settings = with_recommended(self.settings, recommended, self.given)

    def answer(
        self, start: "Callable[..., Stream[GenerationResponse]]", *text: str, **changes: Any
    ) -> None:
        """Stream an answer; Ctrl-C stops it and keeps the conversation.

        The first Ctrl-C lets the engine end its step, the second one does not wait for that.

        Args:
            start: begins it, e.g. `Conversation.ask`.
            *text: what it is the answer to.
            **changes: options that differ from the settings, this once.
        """
        self.announce()
        prefill = Prefill(self.console)
        options = as_keywords(self.settings) | changes | {"progress": prefill.update}
        talk = self.conversation
        answer = Answer(open_view(self.console, self.show, talk.spell))
        pieces = start(*text, **options)
        is_whole = True
        try:
            with listening(pieces.cancel), answer, prefill:
                for piece in pieces:
                    prefill.close()
                    answer.add(piece)
        except KeyboardInterrupt:
            is_whole = False
        except ClusterError:  # nothing can be asked any more
            raise
        except EagleError as error:
            self.note(f"error: {error}")
            return
        finally:
            pieces.cancel()  # what comes next waits for its turn
        self.answers.append(answer)
        note = "" if is_whole and answer.pieces else "stopped · "
        if self.show.stats or note:
            self.note(f"{note}{answer.summary()}")
        for remark in answer.remarks():
            self.note(remark)
        self.note("")

    def confirm(self, question: str) -> bool:
        """Ask the person something; Ctrl-C and Ctrl-D are a no."""
        try:
            return confirm(printable(question))
        except (KeyboardInterrupt, EOFError):
            return False

    def print(self, text: str) -> None:
        """Print something that was asked for."""
        self.console.print(text)

    def note(self, text: str) -> None:
        """Print a line that is not part of the conversation."""
        self.console.print(printable(text), style="dim")


def _leave_prompt(error: BaseException) -> None:
    """Let the prompt raise an error, unless it has ended already."""
    if not get_app().is_done:
        get_app().exit(exception=error)
