"""Conversations written down by a process that must end at once, because a host is lost."""

import json
import sys
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.session.session import Session


def rescue_folder() -> Path:
    """Return the folder of such conversations; it need not exist."""
    return cache_folder() / "conversations"


def write_conversations(
    sessions: Iterable[Session], tokenizer: Any, folder: Path, reason: str
) -> list[Path]:
    """Write what was said in every conversation that has begun, as JSON; name the files on stderr.

    Args:
        sessions: conversations; an answer that is being written is in their tokens alone.
        tokenizer: that turns tokens into text.
        folder: where the files go, made if it does not exist.
        reason: why the process ends.
    """
    files: list[Path] = []
    for session in sessions:
        tokens = list(session.prefix.tokens)
        if not tokens:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        said = {
            "reason": reason,
            "system": session.system,
            "messages": session.messages,
            "text": tokenizer.decode(tokens),
            "tokens": tokens,
        }
        file = _unused(folder, f"conversation-{time.strftime('%Y%m%d-%H%M%S')}")
        with new_file(file, mode=0o600) as partial:
            partial.write_text(json.dumps(said, indent=1, default=str))
        print(f"the conversation was written to {file}", file=sys.stderr, flush=True)
        files.append(file)
    return files


def _unused(folder: Path, name: str) -> Path:
    """Return a file that does not exist yet: several engines write at the same time."""
    files = (folder / f"{name}-{number}.json" for number in count())
    return next(file for file in files if not file.exists())
