"""What an answer looks like: exact in a pipe, tinted on a terminal, rendered as Markdown.

A terminal is played here, so that what is below the text can be told from what became of it.
"""

import io
import random
import re
from typing import Any

import pytest
from rich.console import Console

from mlx_eagle.answers.answer_format import COMMON
from mlx_eagle.answers.sections import MarkedSections
from mlx_eagle.cli.terminal.views import Show, open_view
from mlx_eagle.session.responses import DraftedTree, GenerationResponse

TREE = DraftedTree([0, 1, 2, 3], [0, 0, 0, 1], [0, 1], [0.0] * 4)
DRAWN = ["last round: 1 of 3 drafted tokens accepted", "0 ┬─ ●1 ── ○3", "  └─ ○2"]
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def piece(text: str, from_draft: bool = False, tree: DraftedTree | None = None) -> Any:
    """Return a response with some text."""
    return GenerationResponse(
        text=text,
        token=1,
        logprobs=None,
        from_draft=from_draft,
        prompt_tokens=3,
        prompt_tps=30.0,
        generation_tokens=1,
        generation_tps=8.0,
        peak_memory=0.1,
        finish_reason=None,
        n_accepted=0,
        tree=tree,
        stats=None,
    )


class Terminal(io.StringIO):
    """A terminal of a few rows, as far as the chat uses one; it forgets no row.

    As in a real one, the cursor behind a full row stays in it until the next character comes.
    """

    WORDS = re.compile(r"\x1b\[(\?|)([0-9;]*)([A-Za-z])|\x1b([D78])|([\r\n])|(.)", re.DOTALL)

    def __init__(self, width: int = 20, height: int = 10) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.rows = [""]
        self.wrapped: set[int] = set()  # rows that go on in the next
        self.row = self.column = 0
        self.saved = (0, 0)
        self.is_cursor_shown = True

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for private, number, letter, escape, end, char in self.WORDS.findall(text):
            if letter == "A":
                self.row = max(self.row - int(number), self.top)
                self.column = min(self.column, self.width - 1)
            elif letter == "J":
                self.rows[self.row] = self.rows[self.row][: min(self.column, self.width - 1)]
                del self.rows[self.row + 1 :]
            elif private:
                self.is_cursor_shown = letter == "h"
            elif letter:
                assert letter == "m", (private, number, letter)
            elif escape == "D":
                self.down()
            elif escape == "7":
                self.saved = (self.row, min(self.column, self.width - 1))
            elif escape == "8":
                self.row, self.column = self.saved
            elif end == "\r":
                self.column = 0
            elif end:
                self.down()
                self.column = 0  # a terminal in its usual mode returns as well
            else:
                self.put(char)
        return len(text)

    @property
    def top(self) -> int:
        return max(len(self.rows) - self.height, 0)

    def down(self) -> None:
        self.row += 1
        self.column = min(self.column, self.width - 1)
        while len(self.rows) <= self.row:
            self.rows.append("")

    def put(self, char: str) -> None:
        if self.column == self.width:
            self.wrapped.add(self.row)
            self.down()
            self.column = 0
        line = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = line[: self.column] + char + line[self.column + 1 :]
        self.column += 1

    def text(self) -> str:
        """Return what is shown, rows that were wrapped joined."""
        lines = [row + ("" if n in self.wrapped else "\n") for n, row in enumerate(self.rows)]
        return "".join(lines).rstrip("\n") + "\n"


def show(
    out: io.StringIO, pieces: list[Any], close: bool = True, width: int = 60, **shown: bool
) -> str:
    """Write an answer and return what reached the terminal."""
    console = Console(file=out, width=width, height=10, color_system="standard", highlight=False)
    view, sections = open_view(console, Show(**shown)), MarkedSections(COMMON)
    for n, response in enumerate(pieces, start=1):
        spans = sections.add(response.text, response.from_draft)
        rest = sections.finish() if close and n == len(pieces) else []
        view.add(response._replace(spans=(*spans, *rest)))
    if close:
        view.close()
    return out.text() if isinstance(out, Terminal) else out.getvalue()


class Tape(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


HOSTILE = "\n<think>c\x1b[31mb"


def test_an_answer_is_exact_in_a_pipe_and_clean_on_a_terminal() -> None:
    everything = {"drafts": True, "tree": True, "markdown": True, "thinking": False}
    assert show(io.StringIO(), [piece(HOSTILE, True, TREE)], **everything) == f"{HOSTILE}\n"
    assert show(Tape(), [piece(HOSTILE)]) == "\n\x1b[2m<think>\x1b[0m\x1b[2mc␛[31mb\x1b[0m\n"


def test_a_pipe_gets_the_exact_text_even_where_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert show(io.StringIO(), [piece(HOSTILE, True, TREE)], drafts=True) == f"{HOSTILE}\n"


def test_a_terminal_without_escape_sequences_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = show(Tape(), words_of(MARKDOWN), tree=True, markdown=True)
    assert shown == f"{MARKDOWN}\n"


@pytest.mark.parametrize("out", [io.StringIO, Tape, Terminal])
def test_an_answer_that_ends_its_line_gets_no_second_line_end(out: Any) -> None:
    assert show(out(), [piece("a\n"), piece("")]) == "a\n"
    assert show(out(), [piece("a"), piece("b")]) == "ab\n"


def test_accepted_drafts_are_tinted_and_the_targets_own_tokens_are_not() -> None:
    pieces = [piece("one "), piece("two ", True), piece("three")]
    assert show(Tape(), pieces, drafts=True) == "one \x1b[36mtwo \x1b[0mthree\n"
    assert show(Tape(), pieces) == "one two three\n"


def test_drafts_are_underlined_where_colours_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(Tape(), [piece("a", True)], drafts=True) == "\x1b[4ma\x1b[0m\n"


def test_thoughts_are_dimmed_or_left_out() -> None:
    pieces = [piece(text) for text in ("<thi", "nk>hm", "m</think>", "\nyes")]
    shown = show(Tape(), pieces)
    assert STYLES.sub("", shown) == "<think>hmm</think>\nyes\n"
    assert shown.startswith("\x1b[2m<thi")
    assert "\nyes" in shown.split("\x1b[0m")[-1]
    assert show(Terminal(), pieces, thinking=False) == "(thinking ...)\n\nyes\n"


def test_the_newest_tree_stands_below_the_answer_while_it_comes() -> None:
    terminal = Terminal(60)
    pieces = [piece("one\ntwo", tree=TREE), piece(" three", True)]
    assert show(terminal, pieces, close=False, tree=True).splitlines() == [
        "one",
        "two three",
        *DRAWN,
    ]
    assert (terminal.row, terminal.column) == (1, len("two three"))
    assert show(Terminal(60), pieces, tree=True).splitlines() == ["one", "two three", *DRAWN]


def test_a_terminal_of_few_rows_has_few_rows_below_the_text() -> None:
    wide = DraftedTree(list(range(20)), [0] * 20, [0], [0.0] * 20)
    shown = show(Terminal(60), [piece("a", tree=wide)], close=False, tree=True)
    assert shown.splitlines()[1:] == [
        "last round: 0 of 19 drafted tokens accepted",
        "0 ┬─ ○1",
        "  ├─ ○2",
        "... 17 more branches",
    ]


def test_what_is_below_never_touches_the_text(is_quick: bool) -> None:
    """Words of all lengths, so that rows are filled to the last column, in terminals of any."""
    chance = random.Random(3)
    for _ in range(20 if is_quick else 60):
        words = ["".join(chance.choices("ab \n", k=chance.randint(1, 9))) for _ in range(40)]
        terminal = Terminal(width := chance.randint(8, 30))
        pieces = [piece(word, tree=TREE if chance.random() < 0.4 else None) for word in words]
        shown = show(terminal, [piece("."), *pieces], width=width, tree=True)
        above, tree, _ = shown.partition("last r")
        assert tree
        text = "." + "".join(words)
        assert [line.rstrip() for line in above.splitlines()] == [
            line.rstrip() for line in text.splitlines()
        ]


MARKDOWN = "# Title\n\nSome *text*, it\ngoes on.\n\n- a\n- b\n\nThe `end`"


def words_of(text: str, n: int = 3) -> list[Any]:
    return [piece(text[at : at + n]) for at in range(0, len(text), n)]


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_markdown_is_rendered_however_it_is_cut(n: int) -> None:
    terminal = Terminal(40, 20)
    shown = show(terminal, words_of(MARKDOWN, n), width=40, markdown=True)
    assert [line.rstrip() for line in shown.splitlines()] == [
        "Title",
        "",
        "Some text, it goes on.",
        "",
        " • a",
        " • b",
        "",
        "The end",
    ]
    assert terminal.is_cursor_shown


def test_the_open_block_is_shown_as_it_is_until_it_is_complete() -> None:
    terminal = Terminal(40, 20)
    shown = show(terminal, words_of("# Title\n\nSome *te"), close=False, markdown=True)
    assert shown.split() == ["Title", "Some", "*te"]
    assert not terminal.is_cursor_shown


def test_of_a_long_open_block_the_end_is_shown() -> None:
    code = "```\n" + "".join(f"line {n}\n" for n in range(50))
    shown = show(Terminal(40), words_of(code), close=False, markdown=True)
    assert shown.split("\n")[-4:] == ["line 47", "line 48", "line 49", ""]
    assert "line 40" not in shown


def test_calls_of_tools_and_thoughts_are_not_rendered() -> None:
    call = '<tool_call>\n{"a": "*b*",   "c": "_d_"}\n</tool_call>'
    text = f"<think>*hm*</think>\n\n*So*:\n\n{call}\n\n*done*"
    shown = show(Terminal(60, 30), words_of(text), markdown=True)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines == ["<think>*hm*</think>", "", "So:", "", *call.splitlines(), "", "done"]


def test_markdown_and_tree_share_the_place_below_the_text() -> None:
    terminal = Terminal(60, 30)
    pieces = [*words_of("One.\n\nTwo"), piece(" *three*", tree=TREE)]
    shown = show(terminal, pieces, close=False, tree=True, markdown=True)
    assert shown.splitlines() == ["One.", "", "Two *three*", *DRAWN]
    assert (terminal.row, terminal.column) == (1, 0)
    shown = show(Terminal(60, 30), pieces, tree=True, markdown=True)
    assert [line.rstrip() for line in shown.splitlines()] == ["One.", "", "Two three", *DRAWN]
