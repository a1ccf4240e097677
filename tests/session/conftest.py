"""An engine that keeps rows in small blocks, in a folder of each test's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kept_rows import BLOCK
from mlx_eagle.engine import Engine
from mlx_eagle.session import prefix_files
from served import close_files
from turning_pair import make_turning_engine


@pytest.fixture(scope="session")
def small_engine(is_quick: bool, request: pytest.FixtureRequest) -> Any:
    """The small pair, also where more cases are asked for: its size is no matter here."""
    return request.getfixturevalue("turning") if is_quick else make_turning_engine()


@pytest.fixture
def keeping(
    small_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """The small pair, whose blocks are small and whose folder is its own."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", BLOCK)
    monkeypatch.setattr(prefix_files, "LEAST_BLOCKS", 2)
    monkeypatch.setattr(prefix_files, "MOST_BLOCKS", 3)
    yield small_engine
    if small_engine.prefix_cache is not None:
        close_files(small_engine)
    small_engine.prefix_cache = None
