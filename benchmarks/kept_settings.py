"""What the results in a folder were made with, so that no others are taken for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_eagle.files.plain_files import hash_file

FILE = "settings.json"


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write down what a folder's results are made with; go on only with the same.

    Args:
        out: the folder, which exists.
        settings: by name; a file counts by what it holds, a folder by its path.

    Raises:
        SystemExit: if there are results of other settings, or of ones that nobody wrote down.
    """
    ours = {name: _value(value) for name, value in settings.items()}
    file = out / FILE
    if not file.exists():
        if any(out.iterdir()):
            raise SystemExit(f"error: {out} has no {FILE}, but results: give another --out")
        file.write_text(json.dumps(ours, indent=1) + "\n")
        return
    theirs = json.loads(file.read_text())
    if wrong := [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]:
        raise SystemExit(
            f"error: the results in {out} were made with other values of {', '.join(wrong)}: give "
            "the same, or another --out"
        )


def _value(value: Any) -> Any:
    """Return a setting as JSON can hold it."""
    if isinstance(value, Path):
        return hash_file(value) if value.is_file() else str(value.resolve())
    return value
