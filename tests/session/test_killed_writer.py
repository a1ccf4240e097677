"""A process that is killed while it writes rows leaves files that are whole, or removed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import writes_rows
from cases import broad
from mlx_eagle.session import prefix_files
from mlx_eagle.session.rows_folder import prefix_folder
from served import close_files
from turning_pair import make_turning_engine

PATIENCE = 300.0  # seconds for a process to begin
LONGEST = 1.0  # seconds for which it writes


def kill_a_writer(seed: int, seconds: float) -> None:
    """Let a process write for a while, and kill it whatever it does."""
    folder = Path(writes_rows.__file__)
    path = os.pathsep.join(filter(None, [str(folder.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(folder), str(seed)]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writes\n"
        time.sleep(seconds)
        process.kill()


@pytest.mark.parametrize("n_kills", [broad(10)])
def test_who_follows_a_killed_process_finds_whole_rows(
    n_kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    for name in ("BLOCK", "MOST_BLOCKS"):
        monkeypatch.setattr(prefix_files, name, getattr(prefix_files, name))
    engine, rng = make_turning_engine(), random.Random(1)
    n_interrupted = n_found = 0
    for number in range(n_kills):
        first = 1000 * number
        kill_a_writer(first, rng.uniform(0, LONGEST))
        writes_rows.keep_in_small_files(engine)
        kept = engine.prefix_cache
        assert kept is not None and kept.files is not None and kept.files.writes
        assert not list(prefix_folder().rglob("*.partial*"))
        n_interrupted += kept.files.n_interrupted
        for seed in (first, first + 1, first + 2):
            ids = writes_rows.draw(seed)
            warm = engine.generate(ids, max_tokens=6)
            engine.prefix_cache = None
            assert warm.tokens == engine.generate(ids, max_tokens=6).tokens
            engine.prefix_cache = kept
            n_found += warm.stats.cached_tokens > 0
        assert kept.files.n_damaged == 0
        close_files(engine)
    assert n_found > 0
    print(f"{n_kills} kills, {n_interrupted} files interrupted, {n_found} prompts found")
