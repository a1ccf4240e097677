"""Markdown, block by block as it comes."""

import io

import pytest
from rich.console import Console

from mlx_eagle.cli.terminal.markdown import STYLES, finished, render

DOCUMENT = """\
# Title

Some *text* with `code`, <b>HTML</b> and
a [link](https://example.org/x).

1. one
2. two
   - nested

   more of two
3. three

```python
def f(x):

    return x
```
| a | b |
|---|---|
| 1 | 2 |

<div>
kept
</div>

the end"""


def blocks(source: str, step: int = 1) -> list[str]:
    """Return the pieces in which a source becomes finished as it comes, then what is left."""
    pieces, left = [], ""
    for at in range(0, len(source), step):
        left += source[at : at + step]
        if n := finished(left):
            pieces.append(left[:n])
            left = left[n:]
    return [piece for piece in [*pieces, left] if piece.strip()]


def shown(source: str, width: int = 60) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    return STYLES.sub("", render(console, source))


def test_blocks_are_finished_as_soon_as_nothing_more_can_belong_to_them() -> None:
    assert [piece.strip().splitlines()[0] for piece in blocks(DOCUMENT)] == [
        "# Title",
        "Some *text* with `code`, <b>HTML</b> and",
        "1. one",
        "```python",
        "| a | b |",
        "<div>",
        "the end",
    ]


@pytest.mark.parametrize("step", [1, 3, 7, 50, 10_000])
def test_blocks_add_up_to_the_source(step: int) -> None:
    pieces = blocks(DOCUMENT, step)
    assert "".join(pieces).split() == DOCUMENT.split()


@pytest.mark.parametrize(
    "source",
    [
        "a paragraph\nthat may go on\n",
        "- a list\n\n",
        "- a list\n\n  with a paragraph\n\n",
        "> a quote\n\n",
        "```\ncode\n\n",
        "~~~~\n```\n~~~\n",
        "    indented code\n\n",
        "# no line end",
        "",
    ],
)
def test_a_block_that_may_go_on_is_not_finished(source: str) -> None:
    assert finished(source) == 0


@pytest.mark.parametrize("source", ["text\n\n", "# head\n", "---\n", "```\ncode\n```\n"])
def test_a_block_that_is_over_is_finished(source: str) -> None:
    assert finished(source) == len(source)


def test_what_is_written_stays_visible() -> None:
    text = shown("Some *text* with `code`, <b>HTML</b> and a [link](https://example.org/x).\n")
    assert text == "Some text with code, <b>HTML</b> and a link\n(https://example.org/x).\n"
    assert shown("<div>\nkept\n</div>\n") == "<div> kept </div>\n"


def test_lists_keep_their_numbers_and_headings_their_place() -> None:
    assert shown("3. three\n4. four\n") == " 3 three\n 4 four\n"
    assert shown("# Title\n") == "Title\n"


def test_nothing_is_shown_of_nothing() -> None:
    assert shown("\n\n") == ""
