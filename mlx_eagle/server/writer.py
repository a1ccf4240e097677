"""What turns the events of an answer into what one API sends, and the lines of its streams."""

from typing import Any, Protocol

from mlx_eagle.server.events import Event, Whole
from mlx_eagle.server.refusal import as_json


class Writer(Protocol):
    """Writes one answer in the words of one API; it knows orders and names, and nothing else."""

    def begin(self) -> bytes:
        """Return what a stream sends once its request is accepted."""

    def write(self, event: Event) -> bytes:
        """Return what a stream sends for an event; b"" where that is nothing."""

    def beat(self, seconds: float, done: int, total: int) -> bytes:
        """Return what shows that the server lives while nothing else can be sent.

        Args:
            seconds: since the request was accepted.
            done: tokens of the prompt that are read.
            total: tokens of the prompt.
        """

    def whole(self, answer: Whole) -> dict[str, Any]:
        """Return the body of an answer that is sent at once."""


def sse(data: Any, event: str | None = None) -> bytes:
    """Return one event of a stream: JSON on one line, with its name where the API has names."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + as_json(data) + b"\n\n"


def comment(text: str) -> bytes:
    """Return a comment of a stream, which clients pass over."""
    return f": {text}\n\n".encode()
