"""Settings: completed, parsed, and understood by the library."""

from typing import Any

import click
import pytest

from mlx_eagle.cli.options import PARSERS, Settings, Tree, complete_tree
from mlx_eagle.session import GenerationOptions


@pytest.mark.parametrize(
    ("sizes", "tree"),
    [
        ((None, None, None), None),
        ((4, None, None), (4, 1, 4)),
        ((4, 2, None), (4, 2, 8)),
        ((4, None, 8), (4, 2, 8)),
        ((4, None, 4), (4, 1, 4)),
        ((3, None, 7), (3, 3, 7)),
        ((1, 5, None), (1, 5, 5)),
        ((6, 10, 59), (6, 10, 59)),
    ],
)
def test_a_tree_is_completed_from_the_sizes_that_are_given(
    sizes: tuple[int | None, ...], tree: tuple[int, int, int] | None
) -> None:
    assert complete_tree(*sizes) == tree
    Settings(tree=complete_tree(*sizes)).engine_options()


def test_the_library_takes_every_setting_and_shares_its_defaults() -> None:
    assert vars(GenerationOptions(**Settings().engine_options())) == vars(GenerationOptions())
    assert set(PARSERS) < set(vars(Settings()))


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("temperature", ["0.7"], 0.7),
        ("speculate", ["off"], False),
        ("seed", ["12"], 12),
        ("tree", ["4", "1", "4"], Tree(4, 1, 4)),
        ("tree", ["auto"], None),
    ],
)
def test_a_typed_setting_is_parsed(name: str, words: list[str], value: Any) -> None:
    settings = Settings(speculate=True, tree=Tree(2, 1, 2)).with_text(name, words)
    assert vars(settings)[name] == value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("temperature", ["hot"]),
        ("temperature", ["-1"]),
        ("temperature", ["1", "2"]),
        ("speculate", ["maybe"]),
        ("max_tokens", ["0"]),
        ("tree", ["4", "1", "9"]),
        ("tree", ["4", "1", "4", "1"]),
        ("tree", ["0"]),
    ],
)
def test_a_typed_setting_that_is_wrong_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        Settings().with_text(name, words)
