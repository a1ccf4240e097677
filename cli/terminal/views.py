"""What shows an answer while it comes: as it is in a pipe, with tints, or as Markdown.

In a pipe every byte is the model's. On a terminal control characters are pictures, thoughts are
dimmed, and what `Show` names is added; the text stays what the model wrote, but for Markdown.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from mlx_eagle.answers.sections import Kind, Span
from mlx_eagle.cli.terminal.answer import View
from mlx_eagle.cli.terminal.display import printable
from mlx_eagle.cli.terminal.footer import (
    ERASE_BELOW,
    HIDE_CURSOR,
    SHOW_CURSOR,
    Column,
    below,
    ink,
    rows_of,
)
from mlx_eagle.cli.terminal.tree_view import draw

if TYPE_CHECKING:
    from mlx_eagle.session.responses import DraftedTree, GenerationResponse

HIDDEN_THOUGHT = "(thinking ...)"
ROOM = 0.4  # share of the terminal's rows that may stand below the text


@dataclass(frozen=True)
class Show:
    """What the chat shows beside the text.

    Attributes:
        drafts: tint tokens that were drafted and accepted.
        tree: draw the tree of the newest round below the answer.
        markdown: render blocks once they are complete.
        thinking: show thoughts, dimmed; else only that there are some.
        stats: a line of statistics after every answer.
    """

    drafts: bool = False
    tree: bool = False
    markdown: bool = False
    thinking: bool = True
    stats: bool = True


def open_view(
    console: Console,
    show: Show,
    spell: Callable[[int], str] = str,
) -> View:
    """Return what shows one answer on this console.

    Args:
        console: writes where the answer goes.
        show: what to show beside the text.
        spell: returns the text of a token, for the tree.
    """
    if not console.file.isatty():  # whatever FORCE_COLOR says: a pipe gets the exact text
        return Plain(console.file)
    if console.is_dumb_terminal:
        show = replace(show, tree=False, markdown=False)
    return (Rendered if show.markdown else Screen)(console, show, spell)


class Plain:
    """The exact text, for a pipe or a file."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._is_at_start = True

    def add(self, piece: "GenerationResponse") -> None:
        """Write the text of one token."""
        if piece.text:
            self._out.write(piece.text)
            self._out.flush()
            self._is_at_start = piece.text.endswith("\n")

    def close(self) -> None:
        """End the last line if it is open."""
        if not self._is_at_start:
            self._out.write("\n")
            self._out.flush()


class Screen:
    """The text on a terminal, tinted; below it, perhaps, the tree of the newest round."""

    def __init__(self, console: Console, show: Show, spell: Callable[[int], str]) -> None:
        self._console, self._show, self._spell = console, show, spell
        self._column = Column()
        self._tree: DraftedTree | None = None
        self._kind = Kind.SAID
        self._has_footer = False
        is_coloured = bool(console.color_system) and not console.no_color
        self._draft = ink(console, "cyan" if is_coloured else "underline")
        self._dim = ink(console, "dim")

    def add(self, piece: "GenerationResponse") -> None:
        """Show what one token brought."""
        if self._show.tree and piece.tree is not None:
            self._tree = piece.tree
        elif not piece.spans:
            return
        spans = [span._replace(text=printable(span.text)) for span in piece.spans]
        self._update("".join(map(self._shown, spans)))

    def close(self) -> None:
        """End the line, and leave the last tree below."""
        last = "" if self._column.is_start else self._follow("\n")
        tree = "".join(f"{row}\n" for row in self._tree_rows())
        self._write(f"{self._erased()}{last}{tree}")

    def _update(self, text: str) -> None:
        """Write text where the answer ends, and the footer below it."""
        width = self._console.width
        rows = self._tree_rows() if self._column.is_clear(width) else []
        text = f"{self._erased()}{text}{below(rows, is_own_row=False)}"
        self._has_footer = bool(rows)
        self._write(text)

    def _erased(self) -> str:
        """Return what takes the footer away."""
        return ERASE_BELOW if self._has_footer else ""

    def _shown(self, span: Span) -> str:
        """Return a part of the answer as it is written."""
        if span.kind is Kind.THOUGHT and not self._show.thinking:
            return self._hidden_thought()
        lead = self._end_hidden_thought() if self._kind is not span.kind else ""
        self._kind = span.kind
        start, end = self._style(span)
        return f"{lead}{start}{self._follow(span.text)}{end}"

    def _style(self, span: Span) -> tuple[str, str]:
        """Return what begins and ends the style of a part."""
        start, end = self._dim if span.kind is Kind.THOUGHT else ("", "")
        if span.is_draft and self._show.drafts:
            start, end = start + self._draft[0], self._draft[1]
        return start, end

    def _hidden_thought(self) -> str:
        """Return what stands for thoughts that are not shown, once."""
        if self._kind is Kind.THOUGHT:
            return ""
        self._kind = Kind.THOUGHT
        return f"{self._dim[0]}{self._follow(HIDDEN_THOUGHT)}{self._dim[1]}"

    def _end_hidden_thought(self) -> str:
        """Return the end of the line that stands for thoughts, if there is one."""
        is_hidden = self._kind is Kind.THOUGHT and not self._show.thinking
        return self._follow("\n") if is_hidden else ""

    def _follow(self, text: str) -> str:
        """Return text, after following the cursor over it."""
        self._column.add(text)
        return text

    def _tree_rows(self) -> list[str]:
        """Return the rows of the newest tree, if it is shown."""
        if self._tree is None:
            return []
        most = max(int(ROOM * self._console.height), 2)
        lines: list[RenderableType] = [*draw(self._tree, self._spell, most)]
        return rows_of(self._console, lines, most)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class Rendered(Screen):
    """The text as Markdown: blocks that are complete, and below them the open one as it is."""

    def __init__(self, console: Console, show: Show, spell: Callable[[int], str]) -> None:
        super().__init__(console, show, spell)
        self._open: list[Span] = []  # of the block that is being written
        self._is_first = True
        self._write(HIDE_CURSOR)

    def close(self) -> None:
        """Render what is left, and leave the last tree below."""
        last = self._flush(is_last=True)
        self._write(f"{self._erased()}{last}{SHOW_CURSOR}")
        self._has_footer = False
        super().close()

    def _shown(self, span: Span) -> str:
        """Return what can be written now that a part was added; calls and thoughts as they are."""
        if span.kind is not Kind.SAID:
            lead = self._flush(is_last=True)
            if self._kind is Kind.SAID and not self._is_first:
                lead += self._follow("\n")
            self._is_first = False
            return lead + super()._shown(span)
        lead = ""
        if self._kind is not Kind.SAID:
            lead = "" if self._column.is_start else self._follow("\n")
            self._kind = Kind.SAID
        self._open.append(span)
        return lead + (self._flush(is_last=False) if "\n" in span.text else "")

    def _flush(self, is_last: bool) -> str:
        """Return the complete blocks rendered, or all, and keep the rest open."""
        from mlx_eagle.cli.terminal.markdown import finished, render  # not needed without Markdown

        source = "".join(span.text for span in self._open)
        n = len(source) if is_last else finished(source)
        self._open = _without(self._open, n)
        text = render(self._console, source[:n]) if source[:n].strip() else ""
        if not text:
            return ""
        lead = "" if self._is_first else "\n"
        self._is_first = False
        return lead + self._follow(text)

    def _update(self, text: str) -> None:
        """Write what is complete, and the footer below it: the open block, and the tree."""
        rows = [*self._open_rows(), *self._tree_rows()]
        is_own_row = self._column.is_start
        if not is_own_row and not self._column.is_clear(self._console.width):
            rows = []
        text = f"{self._erased()}{text}{below(rows, is_own_row=is_own_row)}"
        self._has_footer = bool(rows)
        self._write(text)

    def _open_rows(self) -> list[str]:
        """Return the last rows of the open block, as the model wrote it."""
        width = max(self._console.width - 1, 1)
        most = max(int(ROOM * self._console.height), 2)
        block = Text()
        for span in _last(self._open, most * width):
            is_tinted = span.is_draft and self._show.drafts
            block.append(span.text, "cyan" if is_tinted else "")
        if not block.plain.strip():
            return []
        lines = block.wrap(self._console, width)[-most:]
        above = [] if self._is_first else [""]  # as it will be once it is rendered
        return above + rows_of(self._console, [*lines], most)


def _without(spans: list[Span], n: int) -> list[Span]:
    """Return spans without their first n characters."""
    kept = []
    for span in spans:
        if rest := span.text[max(n, 0) :]:
            kept.append(span._replace(text=rest))
        n -= len(span.text)
    return kept


def _last(spans: list[Span], n: int) -> list[Span]:
    """Return the last spans, of at least n characters if there are as many."""
    first = len(spans)
    while first > 0 and n > 0:
        first -= 1
        n -= len(spans[first].text)
    return spans[first:]
