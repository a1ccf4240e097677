"""Where the cursor is, and what is written below it."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from mlx_eagle.cli.terminal.footer import Column, below, ink, rows_of


@pytest.mark.parametrize(
    ("text", "is_start", "is_clear"),
    [
        ("", True, True),
        ("abc", False, True),
        ("a" * 10, False, False),  # waits to wrap
        ("a" * 11, False, True),
        ("a" * 20, False, False),
        ("a" * 10 + "\n", True, True),
        ("漢" * 5, False, False),
        ("漢" * 2, False, True),  # column 4 of 10, well inside
        ("漢", False, False),  # not sure how wide it is shown
        ("漢\nabc", False, True),
        ("\t", False, False),
    ],
)
def test_the_column_is_followed_over_text(text: str, is_start: bool, is_clear: bool) -> None:
    for pieces in ([text], list(text)):
        column = Column()
        for piece in pieces:
            column.add(piece)
        assert column.is_start == is_start
        assert column.is_clear(10) == is_clear


def test_rows_below_leave_the_cursor_where_it_was() -> None:
    """Room is made by index (ESC D), the cursor saved (7), rows written, it is restored (8)."""
    assert below([], is_own_row=False) == ""
    assert below(["a", "b"], is_own_row=False) == "\x1bD\x1bD\x1b[2A\x1b7\r\na\r\nb\x1b8"
    assert below(["a", "b"], is_own_row=True) == "\x1bD\x1b[1A\x1b7a\r\nb\x1b8"
    assert below(["a"], is_own_row=True) == "\x1b7a\x1b8"


def console(**options: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=20, **options)


def test_rows_fit_the_terminal_and_are_no_more_than_asked_for() -> None:
    rows = rows_of(console(), [Text("a" * 30), Text("b"), Text("c")], 2)
    assert rows == ["a" * 18 + "…", "b"]


def test_ink_is_what_the_terminal_understands() -> None:
    start, end = ink(console(color_system="standard"), "cyan")
    assert re.fullmatch(r"\x1b\[36m", start)
    assert end == "\x1b[0m"
    assert ink(Console(file=io.StringIO()), "cyan") == ("", "")
