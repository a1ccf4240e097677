"""Sampled hashes: a copy is the same, other weights are not, and little is read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlx_eagle.files.sampled_hash import BLOCK, sampled_hash


def test_a_copy_has_the_same_hash_whenever_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(b"weights")
    copy = Path(shutil.copy(file, tmp_path))
    os.utime(copy, (1, 1))
    assert sampled_hash([copy]) == sampled_hash([file])


@pytest.mark.parametrize("place", [0, 1, 5 * BLOCK, -1])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, place: int) -> None:
    file, data = tmp_path / "f", bytearray(8 * BLOCK + 3)
    file.write_bytes(data)
    before = sampled_hash([file])
    data[place] ^= 1
    file.write_bytes(data)
    assert sampled_hash([file]) != before


def test_a_matrix_that_was_changed_somewhere_in_a_large_file_is_seen_in_few_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_eagle.files.sampled_hash.MOST_BLOCKS", 16)
    file = tmp_path / "f"
    rows = np.random.default_rng(0).bytes(64 * BLOCK)
    file.write_bytes(rows)
    seen = {sampled_hash([file])}
    for start in range(0, 64, 8):  # an eighth of the file at a time
        changed = np.frombuffer(rows, dtype=np.uint8).copy()
        changed[start * BLOCK : (start + 8) * BLOCK] += 1
        file.write_bytes(changed.tobytes())
        seen.add(sampled_hash([file]))
    assert len(seen) == 9
    file.write_bytes(rows + b"!")
    assert sampled_hash([file]) not in seen, "the size and the last bytes count"
