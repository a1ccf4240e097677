"""Failures of the server itself: what their clients and the log are told, which quotes no text.

The message of an unexpected error may hold a prompt or an answer, so neither shows it: they name
the kind of the error, and the log the line of this package that it came from.
"""

import logging
import traceback
from pathlib import Path

from mlx_eagle.server.events import Failed

LOG = logging.getLogger("mlx_eagle.server")
PACKAGE = Path(__file__).parents[1]
MEMORY = ("out of memory", "malloc", "Insufficient Memory")  # in what MLX says then


def failure(what: str, error: Exception) -> Failed:
    """Write an unexpected error to the log, and return what a client is told of it.

    Args:
        what: failed, such as the name of a request.
        error: that was raised.
    """
    LOG.error("%s failed: %s", what, describe(error))
    if is_memory(error):
        return Failed("memory", "the device has no memory left for this answer; try a shorter one")
    return Failed("internal", f"the request failed inside the server ({type(error).__name__})")


def describe(error: Exception) -> str:
    """Return the kind of an error and the line it came from: "KeyError (server/split.py:9)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    name = type(error).__name__
    if not own:
        return name
    return f"{name} ({Path(own[-1].filename).relative_to(PACKAGE)}:{own[-1].lineno})"


def is_memory(error: Exception) -> bool:
    """Say whether an error means that the device has no memory left."""
    return any(words in str(error) for words in MEMORY)
