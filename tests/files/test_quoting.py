"""Text that nobody vouches for is shown short, on one line and without control characters."""

import pytest

from mlx_eagle.files.quoting import listed, one_line, printable, quote, quote_value


def test_a_text_becomes_one_printable_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x\x1b[2J\u202ey") == "x?[2J?y"
    assert one_line(ValueError("no\nway")) == "no way"
    assert one_line("x" * 1000) == "x" * 300
    assert one_line("abc", 2) == "ab"
    assert printable("caf\xe9 \x00") == "caf\xe9 ?"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "missing"), (3, "3"), ("x\n", r"'x\n'"), ([1], "list"), ("x" * 99, repr("x" * 80))],
)
def test_a_value_is_shown_escaped_and_short(value: object, shown: str) -> None:
    assert quote_value(value) == shown
    assert value is None or isinstance(value, int) or quote(value) == shown


def test_lists_in_errors_stay_short() -> None:
    assert listed([]) == ""
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(20))) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
    assert listed("abc", most=2) == "a, b and 1 more"
