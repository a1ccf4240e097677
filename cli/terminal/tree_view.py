"""The tree of a round as text: what was drafted, and what of it the model took over.

def ┬─ ●zip ┬─ ●( ── ○a
    │       └─ ○_longest
    └─ ○map
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from mlx_eagle.session.responses import DraftedTree

LONGEST = 16  # characters of a token that are shown
TAKEN, LEFT = "●", "○"
PICTURES = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "␣"})


def draw(tree: "DraftedTree", spell: Callable[[int], str], most: int) -> list[Text]:
    """Return a line for every branch, headed by what became of the round.

    Args:
        tree: what was drafted.
        spell: returns the text of a token.
        most: lines that there is room for.
    """
    n_drafted, n_taken = len(tree.tokens) - 1, len(tree.path) - 1
    title = Text(f"last round: {n_taken} of {n_drafted} drafted tokens accepted", style="dim")
    children: list[list[int]] = [[] for _ in tree.tokens]
    for node, parent in enumerate(tree.parents[1:], start=1):
        children[parent].append(node)
    lines = _lines(0, children, [_label(tree, node, spell) for node in range(len(tree.tokens))])
    shown = lines[: most - 1] if len(lines) >= most else lines
    if len(shown) < len(lines):
        shown[-1:] = [Text(f"... {len(lines) - len(shown) + 1} more branches", style="dim")]
    return [title, *shown]


def _label(tree: "DraftedTree", node: int, spell: Callable[[int], str]) -> Text:
    """Return a node's token with its mark; the root, which stood before, has none."""
    word = spell(tree.tokens[node]).translate(PICTURES)
    word = "".join(c if c.isprintable() else "\ufffd" for c in word)
    if len(word) > LONGEST:
        word = f"{word[: LONGEST - 1]}…"
    if node == 0:
        return Text(word)
    is_taken = node in tree.path
    mark, style = (TAKEN, "bold green") if is_taken else (LEFT, "dim")
    return Text.assemble((f"{mark}{word}", style))


def _lines(node: int, children: list[list[int]], labels: list[Text]) -> list[Text]:
    """Return the lines of a node and all below it."""
    below = children[node]
    if not below:
        return [labels[node]]
    indent, lines = " " * labels[node].cell_len, []
    for child in below:
        is_last = child == below[-1]
        for n, line in enumerate(_lines(child, children, labels)):
            if child == below[0] and n == 0:
                lead = Text.assemble(labels[node], (" ── " if is_last else " ┬─ ", "dim"))
            elif n == 0:
                lead = Text.assemble((f"{indent} {'└' if is_last else '├'}─ ", "dim"))
            else:
                lead = Text.assemble((f"{indent} {' ' if is_last else '│'}  ", "dim"))
            lines.append(lead + line)
    return lines
