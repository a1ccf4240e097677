"""Markdown that is rendered block by block while it is written.

A block is rendered once it is certain that nothing more belongs to it; see `finished`. What the
model wrote as HTML, and where its links go, stays visible.
"""

import re
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown
from rich.theme import Theme

# The terminal's own colours and background, light or dark.
CODE_THEME = "ansi_dark"
THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.block_quote": "dim",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)
OPEN_ENDED = ("bullet_list_open", "ordered_list_open", "blockquote_open")
LONE = ("#", "```", "~~~", "---", "***")  # what begins lines that may end a block
STYLES = re.compile(r"\x1b\[[0-9;]*m")


class LeftHeading(Heading):
    """A heading at the left margin, whatever its level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class Document(Markdown):
    """A document in the colours of the terminal."""

    elements = Markdown.elements | {"heading_open": LeftHeading}


def _parse(source: str) -> list[Any]:
    """Return the tokens of a source, HTML taken as text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    return list(parser.parse(source))


def finished(source: str) -> int:
    """Return how many characters of a source are blocks to which nothing more can belong.

    Args:
        source: whole lines, perhaps with the beginning of another.
    """
    if not _may_end(source):
        return 0
    blocks = [token for token in _parse(source) if token.level == 0 and token.map]
    if not blocks:
        return 0
    last = blocks[-1]
    if _is_over(last, source):
        return len(source)
    return sum(map(len, source.splitlines(keepends=True)[: last.map[0]]))


def _may_end(source: str) -> bool:
    """Say whether the newest whole line is one after which a block may be over.

    It need not be asked after every line of a long list: that would take ever longer.
    """
    lines = source.split("\n")[-3:-1]
    return any(not line.strip() or line.lstrip().startswith(LONE) for line in lines)


def _is_over(block: Any, source: str) -> bool:
    """Say whether the last block of a source is over."""
    if not source.endswith("\n"):
        return False
    if block.type == "fence":
        lines = source.rstrip("\n").split("\n")[block.map[0] :]
        end = lines[-1].strip()
        return len(lines) > 1 and end.startswith(block.markup) and not end.strip(block.markup[0])
    if block.type in ("heading_open", "hr"):
        return True
    return source.endswith("\n\n") and block.type not in (*OPEN_ENDED, "code_block")


def render(console: Console, source: str) -> str:
    """Return a source as this console shows it, each line with its end, no empty line around."""
    document = Document("", code_theme=CODE_THEME, hyperlinks=False)
    document.parsed = _parse(source)
    with console.use_theme(THEME), console.capture() as captured:
        console.print(document, soft_wrap=False)
    lines = [line.rstrip(" ") for line in captured.get().split("\n")]
    full = [n for n, line in enumerate(lines) if STYLES.sub("", line).strip()]
    return "".join(f"{line}\n" for line in lines[full[0] : full[-1] + 1]) if full else ""
