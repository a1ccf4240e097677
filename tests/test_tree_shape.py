"""How large a tree may become, and how users write that."""

import pytest

from mlx_eagle.tree_shape import TreeShape


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
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
    sizes: tuple[int, int | None, int | None], shape: tuple[int, int, int]
) -> None:
    assert TreeShape.complete(*sizes) == TreeShape(*shape)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("4x2x8", (4, 2, 8)),
        ("4x2", (4, 2, 8)),
        ("4", (4, 1, 4)),
        (" 4 x 2 x 8 ", (4, 2, 8)),
        ("4 2 8", (4, 2, 8)),
    ],
)
def test_a_tree_is_read_as_users_write_it(text: str, shape: tuple[int, int, int]) -> None:
    read = TreeShape.parse(text)
    assert read == TreeShape(*shape)
    assert TreeShape.parse(read.text) == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no tree; write DEPTHxWIDTHxNODES"),
        ("4x", "is no tree"),
        ("4x2x8x1", "is no tree"),
        ("four", "is no tree"),
        ("-4", "is no tree"),
        ("٤", "is no tree"),
        ("0", "0 is no size of a tree; sizes are from 1 to 1024"),
        ("4x9999", "9999 is no size of a tree"),
        ("4x1x9", "a tree of depth 4 and width 1 has 4 to 4 nodes, not 9"),
        ("4x2x3", "a tree of depth 4 and width 2 has 4 to 14 nodes, not 3"),
        ("4x32x300", "at most 4096 candidates .* and 255 nodes are possible"),
    ],
)
def test_a_text_that_is_no_tree_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeShape.parse(text)
