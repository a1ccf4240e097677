"""Names of requests, answers and calls, and the identity of the model on the wire."""

import secrets
from datetime import UTC, datetime
from typing import NamedTuple

DIGITS = 24  # hexadecimal, of a name


def new_id(start: str) -> str:
    """Return a name that nothing else has, such as "call_8c0f...".

    Args:
        start: says what it names.
    """
    return start + secrets.token_hex(DIGITS // 2)


class ServedModel(NamedTuple):
    """The model as clients see it.

    Attributes:
        name: that clients use.
        created: when the server started, in seconds since 1970.
        context: tokens that prompt and answer may have together; None: not known.
        thinks: whether it sets thoughts apart.
        calls: whether it can be offered tools.
        fingerprint: of target and head.
    """

    name: str
    created: int
    context: int | None
    thinks: bool
    calls: bool
    fingerprint: str

    @property
    def created_at(self) -> str:
        """When the server started, as Anthropic's API writes it."""
        return datetime.fromtimestamp(self.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
