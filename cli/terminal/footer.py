"""Lines below the text that is being written, and colours, as escape sequences.

The cursor stays where the text ends; what is below it is erased and written anew. So nothing above
is ever touched, and a terminal that is resized meanwhile loses nothing: whatever it made of the
lines below, they are below. (`rich.live.Live` moves up over what it wrote and counts rows for that:
the unfinished line would have to be a part of it, wrapped by rich, and after a resize half of it
would stand on the screen twice.)
"""

from rich.cells import cell_len
from rich.console import Console, RenderableType

ERASE_BELOW = "\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
TAB = 8  # columns
UNSURE = 4  # columns from the margin, where a width may have been counted wrongly


def ink(console: Console, style: str) -> tuple[str, str]:
    """Return what begins and ends a style on this console; nothing where it has none."""
    with console.capture() as captured:
        console.print("x", style=style, end="", markup=False)
    start, _, end = captured.get().partition("x")
    return start, end


def rows_of(console: Console, lines: list[RenderableType], most: int) -> list[str]:
    """Return lines as rows for a footer: styled, cut at the margin, at most so many."""
    width = max(console.width - 1, 1)
    with console.capture() as captured:
        for line in lines[:most]:
            console.print(
                line, width=width, soft_wrap=False, no_wrap=True, overflow="ellipsis", crop=True
            )
    return captured.get().splitlines()


class Column:
    """Where the cursor is in its row, as far as the text since the last line end tells."""

    def __init__(self) -> None:
        self._cells = 0
        self._is_sure = True

    @property
    def is_start(self) -> bool:
        """Whether nothing was written since the last line end."""
        return self._cells == 0

    def add(self, text: str) -> None:
        """Follow the cursor over text, without escape sequences."""
        _, newline, rest = text.rpartition("\n")
        if newline:
            self._cells, self._is_sure = 0, True
        self._is_sure = self._is_sure and rest.isascii()
        for n, part in enumerate(rest.split("\t")):
            if n:
                self._is_sure = False
                self._cells += TAB - self._cells % TAB
            self._cells += cell_len(part)

    def is_clear(self, width: int) -> bool:
        """Say whether the cursor stands before the margin and not behind a full row.

        There it waits to wrap, which it forgets when it is moved.
        """
        column = self._cells % width
        if self._is_sure:
            return column > 0 or self._cells == 0
        return UNSURE <= column <= width - UNSURE


def below(rows: list[str], is_own_row: bool) -> str:
    """Return what writes rows and brings the cursor back.

    Args:
        rows: what to write, each no longer than a row of the terminal.
        is_own_row: begin in the cursor's own row, of which it is at the start.
    """
    if not rows:
        return ""
    n_down = len(rows) - is_own_row
    # Moving down by index makes room at the bottom and keeps the column.
    room = "\x1bD" * n_down + (f"\x1b[{n_down}A" if n_down else "")
    lead = "" if is_own_row else "\r\n"
    return f"{room}\x1b7{lead}" + "\r\n".join(rows) + "\x1b8"
