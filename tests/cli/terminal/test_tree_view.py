"""The tree of a round, drawn."""

from typing import Any

import pytest

from mlx_eagle.cli.terminal.tree_view import draw
from mlx_eagle.session.responses import DraftedTree

WORDS = ["def", " zip", " map", "(", "a", "_longest", "\n\tvery long, this one"]


def drawn(parents: list[int], path: list[int], most: int = 20) -> list[str]:
    tree = DraftedTree(list(range(len(parents))), parents, path, [0.0] * len(parents))
    return [line.plain for line in draw(tree, WORDS.__getitem__, most)]


def test_branches_are_lines_and_the_accepted_path_is_marked() -> None:
    assert drawn([0, 0, 0, 1, 3, 1, 2], [0, 1, 3]) == [
        "last round: 2 of 6 drafted tokens accepted",
        "def ┬─ ●␣zip ┬─ ●( ── ○a",
        "    │        └─ ○_longest",
        "    └─ ○␣map ── ○⏎⇥very␣long,␣th…",
    ]


def test_a_chain_is_one_line() -> None:
    assert drawn([0, 0, 1, 2], [0])[1:] == ["def ── ○␣zip ── ○␣map ── ○("]


def test_a_path_that_skips_siblings_marks_only_itself() -> None:
    assert drawn([0, 0, 0, 0], [0, 2])[1:] == ["def ┬─ ○␣zip", "    ├─ ●␣map", "    └─ ○("]


@pytest.mark.parametrize("most", [2, 3, 4])
def test_more_branches_than_there_is_room_for_are_counted(most: int) -> None:
    lines = drawn([0, 0, 0, 0, 0, 0], [0], most)
    assert len(lines) == most
    assert lines[-1] == f"... {5 - (most - 2)} more branches"


def test_control_characters_of_a_token_are_not_drawn() -> None:
    tree = DraftedTree([0, 1], [0, 0], [0], [0.0, 0.0])
    lines = draw(tree, lambda token: "\x1b[2Jx", 5)
    assert lines[1].plain == "\ufffd[2Jx ── ○\ufffd[2Jx"


def test_a_deep_chain_can_be_drawn() -> None:
    assert len(drawn_chain(255)) == 2


def drawn_chain(depth: int) -> list[Any]:
    parents = [max(node - 1, 0) for node in range(depth + 1)]
    tree = DraftedTree([3] * (depth + 1), parents, [0], [0.0] * (depth + 1))
    return draw(tree, WORDS.__getitem__, 10)
