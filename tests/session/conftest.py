"""An engine that keeps rows in small blocks, in a folder of each test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kept_rows import BLOCK
from mlx_eagle.engine import Engine
from mlx_eagle.session import prefix_files
from served import close_files


@pytest.fixture
def keeping(turning: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The small pair, whose blocks are small and whose folder is its own."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", BLOCK)
    monkeypatch.setattr(prefix_files, "LEAST_BLOCKS", 2)
    monkeypatch.setattr(prefix_files, "MOST_BLOCKS", 3)
    yield turning
    if turning.prefix_cache is not None:
        close_files(turning)
    turning.prefix_cache = None
