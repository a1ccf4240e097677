"""What a terminal shows after a program has written to it, as rows of styled text.

It follows the control sequences that the chat and its line editor send: moving, erasing, scrolling,
colours. Others are passed over. What scrolls off the top stays, above the first row.
"""

import re
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

TAB = 8  # columns
PARTS = re.compile(
    r"\x1b\[(?P<numbers>[0-9;:<=>?]*)(?P<end>[@-~])"  # CSI
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|\x1b[()][0-9A-Z]"  # character sets
    r"|\x1b(?P<escape>[ -~])"
    r"|(?P<char>[^\x1b])",
    re.S,
)


class Cell(NamedTuple):
    """A column of a row: its sign ("" in the second column of a wide one), and the style."""

    sign: str = " "
    style: str = ""


class TerminalScreen:
    """A terminal's screen.

    Args:
        width: columns.
        height: rows that are seen at the same time.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._rows: list[list[Cell]] = [[]]
        self._top = 0  # row at the upper margin
        self._row = self._column = 0
        self._saved = (0, 0)
        self._style = ""

    def feed(self, text: str) -> None:
        """Take in all that a program wrote; no sequence may be cut in two."""
        for part in PARTS.finditer(text):
            if part["char"]:
                self._char(part["char"])
            elif part["end"]:
                self._control(part["numbers"], part["end"])
            elif part["escape"]:
                self._escape(part["escape"])

    def lines(self) -> list[Text]:
        """Return the rows as styled text, without empty ones at the end."""
        lines = []
        for row in self._rows:
            runs = groupby(row, key=lambda cell: cell.style)
            parts = [f"{style}{''.join(c.sign for c in cells)}\x1b[0m" for style, cells in runs]
            lines.append(Text.from_ansi("".join(parts)))
            lines[-1].rstrip()
        while lines and not lines[-1].plain:
            lines.pop()
        return lines

    def _char(self, char: str) -> None:
        """Write a sign where the cursor is, or do what a control character says."""
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._down()
        elif char == "\b":
            self._column = max(self._column - 1, 0)
        elif char == "\t":
            self._column = min(self._column + TAB - self._column % TAB, self._width - 1)
        elif char >= " ":
            self._write(char)

    def _write(self, char: str) -> None:
        """Write a sign; one that does not fit goes to the next row."""
        n = cell_len(char)
        if n == 0:
            if self._column:
                row = self._rows[self._row]
                before = row[self._column - 1]
                row[self._column - 1] = before._replace(sign=before.sign + char)
            return
        if self._column + n > self._width:
            self._column = 0
            self._down()
        row = self._rows[self._row]
        row += [Cell()] * (self._column + n - len(row))
        row[self._column : self._column + n] = [
            Cell(char, self._style),
            *[Cell("", self._style)] * (n - 1),
        ]
        self._column += n

    def _down(self) -> None:
        """Go down a row; at the lower margin the screen scrolls."""
        self._go_to(self._row + 1)
        self._top = max(self._top, self._row - self._height + 1)

    def _go_to(self, row: int) -> None:
        """Go to a row, counted from the first that was ever written."""
        self._row = max(row, self._top)
        self._rows += [[] for _ in range(self._row + 1 - len(self._rows))]

    def _escape(self, kind: str) -> None:
        """Do what a short sequence says."""
        if kind == "7":
            self._saved = (self._row, self._column)
        elif kind == "8":
            self._go_to(self._saved[0])
            self._column = self._saved[1]
        elif kind == "D":
            self._down()
        elif kind == "M":
            self._go_to(self._row - 1)

    def _control(self, numbers: str, kind: str) -> None:
        """Do what a control sequence says."""
        if kind == "m":
            self._style = _styled(self._style, numbers)
            return
        given = [int(n) for n in re.findall(r"\d+", numbers)]
        n = max(given[0], 1) if given else 1
        if kind in "AB":
            last = self._top + self._height - 1
            self._go_to(min(self._row + (n if kind == "B" else -n), last))
        elif kind in "CD":
            column = self._column + (n if kind == "C" else -n)
            self._column = min(max(column, 0), self._width - 1)
        elif kind == "G":
            self._column = min(n, self._width) - 1
        elif kind in "Hf":
            self._go_to(self._top + min(n, self._height) - 1)
            self._column = min(given[1] if len(given) > 1 else 1, self._width) - 1
        elif kind in "JK":
            self._erase(kind, given[0] if given else 0)

    def _erase(self, kind: str, which: int) -> None:
        """Erase from the cursor on (0), up to it (1) or all (2), of the row (K) or screen (J)."""
        row = self._rows[self._row]
        if which == 0:
            del row[self._column :]
        else:
            row[: self._column + 1] = [Cell()] * min(self._column + 1, len(row))
        if which == 2:
            row.clear()
        if kind == "J" and which in (0, 2):
            del self._rows[self._row + 1 :]
        if kind == "J" and which in (1, 2):
            self._rows[self._top : self._row] = [[] for _ in range(self._row - self._top)]


def _styled(style: str, numbers: str) -> str:
    """Return the codes of a style after more of them; 0 ends all before it."""
    codes = numbers.split(";") if numbers else ["0"]
    while codes and codes[0] in ("", "0"):
        style, codes = "", codes[1:]
    return f"{style}\x1b[{';'.join(codes)}m" if codes else style
