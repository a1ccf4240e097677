"""The conversation loop: keys in, slash commands, answers out.

It knows the terminal and the words of the commands. What loads and generates is behind
`Conversation`, and what things look like is in `display`.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.console import Console

from mlx_eagle.cli.display import (
    TITLES,
    Answer,
    Loading,
    Prefill,
    banner,
    count,
    details,
    printable,
    table,
)
from mlx_eagle.cli.explain import explain
from mlx_eagle.cli.options import PARSERS, Settings
from mlx_eagle.errors import EagleError

if TYPE_CHECKING:
    from mlx_eagle.engine import EngineInfo
    from mlx_eagle.responses import GenerationResponse

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'
SETTINGS = [*PARSERS, "tree"]
ALIASES = {"temp": "temperature"}
COMMANDS = ["/help", "/clear", "/system", "/stats", "/set", "/exit", "/quit"]
LEAVE = COMMANDS[-2:]

HELP = """\
  /help            this list
  /clear           forget the conversation; the system prompt stays
  /system [TEXT]   show or change the system prompt; /system none removes it
  /stats           what the last answer cost, and what speculation gave
  /set [NAME [VALUE]]
                   show or change settings: /set temperature 0.7, /set speculate off,
                   /set tree 4 2 8 (depth, width, nodes), /set tree auto
  /exit            leave; Ctrl-D does too

  \"\"\"              before and after a message of several lines; pasting one needs none
  Esc Enter        a new line in a message
  Up, Ctrl-R       earlier messages, and a search in them
  Ctrl-C           stop the answer and keep the conversation"""


class Conversation(Protocol):
    """What the loop needs to talk with; see `EngineThread`."""

    system: str | None
    progress: tuple[str, int, int]  # of loading: phase, steps done, steps in all

    @property
    def loaded(self) -> bool:
        """Whether loading is over, well or not."""

    def wait(self) -> "EngineInfo":
        """Wait for the engine; raises what its loading raised."""

    def failure(self) -> BaseException | None:
        """Return what loading raised, or None."""

    def clear(self) -> None:
        """Forget the conversation."""

    def ask(self, text: str, **options: Any) -> "Generator[GenerationResponse]":
        """Yield the answer; closing the iterator stops it."""


class Repl:
    """A conversation with somebody at a terminal."""

    def __init__(self, conversation: Conversation, settings: Settings, console: Console):
        self.settings = settings
        self._conversation = conversation
        self._console = console
        self._announced = False
        self._answers: list[Answer] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._system,
            "/stats": self._stats,
            "/set": self._set,
        }

    def run(self, history: Path | None) -> None:
        """Talk until the person leaves.

        Raises:
            EagleError: if the engine cannot be loaded.
        """
        self._note(f"mlx-eagle {metadata.version('mlx-eagle')} · /help for help, Ctrl-D to leave")
        prompt = prompt_session(history)
        going = True
        while going:
            try:
                line = self._read(prompt)
                going = line is not None and self.handle(line)
            except KeyboardInterrupt:
                self._note("stopped")

    def _read(self, prompt: "PromptSession[str]") -> str | None:
        """Return the next message, empty after Ctrl-C, or None after Ctrl-D."""
        try:
            return prompt.prompt(pre_run=self._watch, rprompt=self._state)
        except KeyboardInterrupt:
            if not prompt.default_buffer.text:
                self._note("Ctrl-D or /exit leaves")
            return ""
        except EOFError:
            return None

    def _state(self) -> str:
        """Return what stands at the right of the line while it is typed."""
        quiet = self._conversation.loaded or get_app().is_done
        return "" if quiet else f"{TITLES[self._conversation.progress[0]]} ..."

    def handle(self, line: str) -> bool:
        """Act on one message or command; returns False to leave."""
        word, _, rest = line.partition(" ")
        if not line.strip():
            return True
        if not re.fullmatch(r"/[A-Za-z?]*", word) or "\n" in line:
            self._answer(unfenced(line))
        elif word in LEAVE:
            return False
        elif word in self._commands:
            self._commands[word](rest.strip())
        else:
            hint = _suggestion(word, COMMANDS) or "; /help lists them"
            self._note(f"no command {word}{hint} (with a space before it, it is a message)")
        return True

    def _watch(self) -> None:
        """Look out for the end of loading while the prompt is shown."""
        get_app().create_background_task(self._announce_when_loaded())

    async def _announce_when_loaded(self) -> None:
        """Print the banner above the prompt, or end the prompt if the engine cannot be loaded."""
        while not self._conversation.loaded:
            get_app().invalidate()  # what loading has come to stands beside the line
            await asyncio.sleep(0.1)
        error = self._conversation.failure()
        if error is not None:
            get_app().exit(exception=error)
        elif not self._announced:
            await run_in_terminal(self._announce)

    def _announce(self) -> None:
        """Print the banner, waiting for the engine if it must."""
        if self._announced:
            return
        if not self._conversation.loaded:
            with Loading(self._console) as loading:
                while not self._conversation.loaded:
                    loading.update(*self._conversation.progress)
                    time.sleep(0.05)
        self._console.print(banner(self._conversation.wait()))
        self._announced = True

    def _answer(self, text: str) -> None:
        """Stream the answer; Ctrl-C stops it and keeps the conversation."""
        self._announce()
        answer, prefill = Answer(sys.stdout), Prefill(self._console)
        options = self.settings.engine_options()
        pieces = self._conversation.ask(text, progress=prefill.update, **options)
        note = ""
        try:
            with answer, prefill, closing(pieces):
                for piece in pieces:
                    prefill.close()
                    answer.add(piece)
        except KeyboardInterrupt:
            note = "stopped · "
        except EagleError as error:
            self._note(f"error: {error}")
            return
        self._answers.append(answer)
        self._note(f"{note}{answer.summary()}\n")
        if answer.advice():
            self._note(f"{answer.advice()}\n")

    def _help(self, rest: str) -> None:
        """Print the commands and keys."""
        self._console.print(HELP)

    def _clear(self, rest: str) -> None:
        """Forget the conversation."""
        self._announce()
        self._conversation.clear()
        self._note("the conversation is forgotten")

    def _system(self, rest: str) -> None:
        """Show, change or remove the system prompt."""
        self._announce()
        if rest:
            self._conversation.system = None if rest == "none" else rest
        self._note(f"system prompt: {printable(self._conversation.system or 'none')}")

    def _stats(self, rest: str) -> None:
        """Print what the last answer cost, and the sums of this chat."""
        finished = [answer.stats for answer in self._answers if answer.stats]
        if not finished:
            self._note("no answer has been finished yet")
            return
        self._console.print(details(finished[-1]))
        if finished[-1].planned is not None:
            self._console.print(explain(finished[-1]))
        n_tokens = sum(stats.generation_tokens for stats in finished)
        n_rounds = sum(stats.rounds for stats in finished)
        n_accepted = sum(stats.accepted for stats in finished)
        length = n_accepted / n_rounds + 1 if n_rounds else 0.0
        total = f"{count(len(finished), 'answer')}, {count(n_tokens, 'token')}"
        self._console.print(table({"this chat": f"{total}, acceptance length {length:.2f}"}))

    def _set(self, rest: str) -> None:
        """Show or change settings."""
        name, *words = rest.split() or [""]
        name = ALIASES.get(name, name)
        if name and name not in SETTINGS:
            hint = _suggestion(name, SETTINGS) or "; /set lists them"
            self._note(f"no setting {name}{hint}")
            return
        try:
            if words:
                self.settings = self.settings.with_text(name, words)
        except click.UsageError as error:
            self._note(f"{name}: {error.message}")
            return
        shown = [name] if name else SETTINGS
        self._console.print(table({name: _shown(self.settings, name) for name in shown}))

    def _note(self, text: str) -> None:
        """Print a line that is not part of the conversation."""
        self._console.print(printable(text), style="dim")


class CommandCompleter(Completer):
    """Completes slash commands, and the names of settings after /set."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """Yield the words that could stand before the cursor."""
        line, _, word = document.text_before_cursor.rpartition(" ")
        known = {"": COMMANDS if word.startswith("/") else [], "/set": SETTINGS}
        for candidate in known.get(line, []):
            if candidate.startswith(word):
                yield Completion(candidate, start_position=-len(word))


def prompt_session(history: Path | None) -> PromptSession[str]:
    """Return the line editor: history, Tab completion, blocks between fences, Esc Enter."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        PROMPT,
        history=open_history(history),
        completer=CommandCompleter(),
        complete_while_typing=False,
        multiline=Condition(lambda: is_open(get_app().current_buffer.text)),
        prompt_continuation=CONTINUATION,
        key_bindings=keys,
        enable_suspend=True,
        enable_open_in_editor=True,
        style=Style.from_dict({"rprompt": "ansibrightblack"}),
    )


def is_open(text: str) -> bool:
    """Say whether a message started a block that it has not ended."""
    body = text.strip()
    return body.startswith(FENCE) and (len(body) < 2 * len(FENCE) or not body.endswith(FENCE))


def unfenced(text: str) -> str:
    """Return a message without the fences around it and the line ends beside them."""
    body = text.strip()
    if not body.startswith(FENCE) or is_open(text):
        return text
    return body[len(FENCE) : -len(FENCE)].strip("\n")


def history_path() -> Path | None:
    """Return where the typed lines are kept; None if MLX_EAGLE_HISTORY is set but empty."""
    chosen = os.environ.get("MLX_EAGLE_HISTORY")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "mlx-eagle" / "history"


def open_history(path: Path | None) -> History:
    """Return the history in a file that only its owner can read, or in memory if it cannot be."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("a").close()
    except OSError as error:
        click.echo(f"what you type is not kept: {path}: {error.strerror}", err=True)
        return InMemoryHistory()
    return FileHistory(str(path))


def _suggestion(word: str, known: list[str]) -> str:
    """Return the end of a sentence about an unknown word; empty if nothing comes close."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(settings: Settings, name: str) -> str:
    """Return the value of a setting as a user would type it."""
    value = vars(settings)[name]
    if name == "tree":
        return " ".join(map(str, value)) if value else "auto"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
