"""The line editor: history, completion, messages of several lines."""

import os
import sys
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'


def prompt_session(history: Path | None, completer: Completer | None = None) -> PromptSession[str]:
    """Return the line editor: history, Tab completion, blocks between fences, Esc Enter."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        PROMPT,
        history=open_history(history),
        completer=completer,
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


def is_text(line: str) -> bool:
    """Say whether what was typed was UTF-8: other bytes come as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in line)


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
