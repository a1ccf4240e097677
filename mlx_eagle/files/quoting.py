"""How text from files, libraries and users that nobody vouches for is shown in messages."""

from collections.abc import Iterable
from typing import Any


def quote(text: Any) -> str:
    """Return text from a file as it may safely be shown: escaped, and not too long."""
    return repr(text[:80]) if isinstance(text, str) else type(text).__name__


def quote_value(value: Any) -> str:
    """Return a JSON value as it may be shown in an error, or its kind if it has parts."""
    if value is None:
        return "missing"
    return str(value)[:80] if type(value) in (int, float, bool) else quote(value)


def listed(items: Iterable[str], most: int = 8) -> str:
    """Return items as a text that stays short: `a, b, c and 12 more`.

    Text from a file has to be quoted before.
    """
    texts = list(items)
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """Return text with a question mark for each character that would control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: object, most: int = 300) -> str:
    """Return the beginning of a text on one line: what a library says about a file may quote it."""
    return printable(" ".join(str(text).split())[:most])
