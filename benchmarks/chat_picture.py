"""A conversation in the real chat, recorded on a pseudo-terminal, as an SVG picture.

The command is started as a person would, the lines are typed, and what the terminal then shows
becomes the picture: text, tints and statistics are the program's own. Only works on systems with
pseudo-terminals (Linux, macOS).
"""

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text
from terminal_screen import TerminalScreen

from mlx_eagle.files.atomic import new_file

LINES = ("/show drafts", "What is the signature of shutil.copyfile?")
ENVIRONMENT = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm-256color", "MLX_EAGLE_HISTORY": ""}
LOADED = "speculation"  # a word of the banner, which comes once the model is loaded
ASKING = "\x1b[?2004h"  # what the line editor sends when it begins to take a line
CTRL_D = "\x04"
QUIET = 1.0  # seconds without output after which the line editor is taken to wait
NEEDLESS = re.compile(
    r"\s*@font-face \{.*?\}"  # fonts that a viewer would have to fetch
    r"|<text [^>]*>\n</text>",  # ends of lines
    re.S,
)


class Chat:
    """The chat on a pseudo-terminal.

    Args:
        arguments: of `mlx-eagle chat`.
        rows: of the terminal.
        columns: of the terminal.
        patience: seconds to wait for an answer.

    Attributes:
        shown: all that it wrote.
    """

    def __init__(self, arguments: Sequence[str], rows: int, columns: int, patience: float) -> None:
        self.shown = ""
        self._patience = patience
        self._keys, child = pty.openpty()
        termios.tcsetwinsize(child, (rows, columns))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_eagle.cli", "chat", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )
        os.close(child)

    def talk(self, lines: Sequence[str]) -> str:
        """Type lines, each once the one before is answered, then leave; returns all that it wrote.

        Raises:
            SystemExit: if it ends by itself or says nothing for too long.
        """
        try:
            self._wait(LOADED, 1)
            for line in lines:
                n_asked = self.shown.count(ASKING)
                self._type(f"{line}\r")
                self._wait(ASKING, n_asked + 1)
            self._type(CTRL_D)
            while self._read(self._patience):
                pass
            return self.shown
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._keys)

    def _type(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def _wait(self, text: str, times: int) -> None:
        """Wait until it has written a text so many times, and then nothing for a while."""
        deadline = time.monotonic() + self._patience
        while self.shown.count(text) < times:
            if not self._read(max(deadline - time.monotonic(), 0)):
                raise SystemExit(f"error: the chat did not answer; it showed:\n{self.shown}")
        while self._read(QUIET):
            pass

    def _read(self, seconds: float) -> bool:
        """Take in what it writes within some time; returns whether it wrote anything."""
        if not select.select([self._keys], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._keys, 1 << 16)
        except OSError:  # Linux reports the closed terminal so
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


def draw(lines: Sequence[Text], columns: int, title: str) -> str:
    """Return rows of a terminal as an SVG picture, which fetches no fonts.

    Not every viewer shows a space at the end of a text without being told to keep it.
    """
    console = Console(
        record=True, width=columns, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(line, no_wrap=True, crop=False, highlight=False)
    picture = NEEDLESS.sub("", console.export_svg(title=title, unique_id="chat"))
    return picture.replace("<svg ", '<svg xml:space="preserve" ', 1)


def without_last_prompt(lines: list[Text]) -> list[Text]:
    """Return rows without the last, where the chat asked for one more line."""
    while lines and lines[-1].plain.strip() in ("", ">>>"):
        lines = lines[:-1]
    return lines


def main() -> None:
    """Record a conversation and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the SVG file")
    parser.add_argument("--say", action="append", metavar="LINE", help="a line to type; repeatable")
    parser.add_argument("--columns", type=int, default=88)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for an answer")
    parser.add_argument("chat", nargs="*", help="arguments of `mlx-eagle chat`, after --")
    given = parser.parse_args()
    chat = Chat(given.chat, given.rows, given.columns, given.patience)
    screen = TerminalScreen(given.columns, given.rows)
    screen.feed(chat.talk(given.say or LINES))
    title = " ".join(["mlx-eagle chat", *given.chat])
    with new_file(given.out) as partial:
        picture = draw(without_last_prompt(screen.lines()), given.columns, title)
        partial.write_text(picture, encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
