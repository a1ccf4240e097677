"""Features on disk: what was written is read, whatever was interrupted, damaged or in the way."""

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.training.batch import Example, Features
from mlx_eagle.training.features import shard as feature_shard
from mlx_eagle.training.features import store as feature_store
from mlx_eagle.training.features.compute import as_mlx, as_numpy
from mlx_eagle.training.features.shard import map_shard
from mlx_eagle.training.features.store import Contents, FeatureStore, size_of

LENGTHS = [5, 9, 1, 12, 7, 30, 3, 8]  # with 20 tokens to a shard: 5 + 9 + 1, 12 + 7, 30, 3 + 8
WIDTH = 4
N_SHARDS = 4


def example(length: int, first: int) -> Example:
    return Example(np.arange(first, first + length, dtype=np.int32), np.ones(length, np.bool_))


EXAMPLES = [example(length, 100 * i) for i, length in enumerate(LENGTHS)]


def features_of(tokens: np.ndarray) -> Features:
    """Features that tell which token they are of: in float32, exact in float16."""
    columns = np.arange(2 * WIDTH)
    taps = (tokens[:, None] + columns).astype(np.float32)
    return Features(taps, -taps[:, :WIDTH], (tokens * 7).astype(np.int32))


def contents(examples: list[Example] = EXAMPLES, **changed: Any) -> Contents:
    about = Contents("a target", "float32", (1, 3, 5), WIDTH, examples)
    return about._replace(**changed)


def make(folder: Path, **options: Any) -> FeatureStore:
    return FeatureStore(folder, contents(), shard_tokens=20, **options)


def silent(done: int, total: int) -> None:
    """Show nothing."""


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = make(tmp_path / "features")
    made.complete(features_of, silent)
    return made


def files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def assert_same(got: Features, want: Features) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert np.array_equal(ours, theirs)


def test_what_was_written_is_read(store: FeatureStore) -> None:
    again = make(store.folder, verify=True)
    assert again.is_complete
    assert again.damaged == []
    for index, (tokens, _) in enumerate(EXAMPLES):
        whole = features_of(tokens)
        for start, stop in ((0, len(tokens)), (len(tokens) // 2, len(tokens)), (0, 0)):
            part = Features(*(array[start:stop] for array in whole))
            assert_same(again.read(index, start, stop), part)


def test_reading_maps_the_file_and_copies_nothing(store: FeatureStore) -> None:
    got = store.read(3, 2, 5)
    mapped = store._mapped[1]
    assert isinstance(mapped.taps, np.memmap)
    assert all(np.shares_memory(a, b) for a, b in zip(got, mapped, strict=True))
    assert list(store._mapped) == [1]


def test_safetensors_reads_the_shards_as_well(store: FeatureStore) -> None:
    tensors = load_file(store.folder / "features-00001.safetensors")
    want = features_of(np.concatenate([EXAMPLES[3].tokens, EXAMPLES[4].tokens]))
    for name, array in want._asdict().items():
        assert np.array_equal(tensors[name], array)
    loaded = mx.load(str(store.folder / "features-00001.safetensors"))
    assert isinstance(loaded, dict)
    assert loaded["final"].dtype == mx.float16


def test_bfloat16_stays_bit_by_bit(tmp_path: Path) -> None:
    values = mx.random.normal((30, 2 * WIDTH), key=mx.random.key(0)).astype(mx.bfloat16)

    def compute(tokens: np.ndarray) -> Features:
        taps = as_numpy(values[: len(tokens)])
        return Features(taps, taps[:, :WIDTH], tokens)

    made = make(tmp_path / "features")
    made.complete(compute, silent)
    header = feature_shard.read_header(tmp_path / "features" / "features-00002.safetensors")
    assert (header["taps"].dtype, header["final"].dtype) == ("BF16", "BF16")
    assert mx.array_equal(as_mlx(made.read(5, 3, 30).taps), values[3:])


def test_a_shard_with_values_beyond_float16_is_kept_in_bfloat16(tmp_path: Path) -> None:
    """The values are those to which MLX rounds; other shards and final states stay float16."""
    rng = np.random.default_rng(0)
    large = {300: rng.normal(size=(12, 2 * WIDTH)).astype(np.float32) * 1e5}

    def compute(tokens: np.ndarray) -> Features:
        plain = features_of(tokens)
        return plain._replace(taps=large.get(int(tokens[0]), plain.taps))

    made = make(tmp_path / "features")
    made.complete(compute, silent)
    shards = [map_shard(tmp_path / "features" / f"features-{i:05}.safetensors") for i in range(4)]
    kinds = [shard.taps.dtype for shard in shards]
    assert kinds == [np.float16, np.uint16, np.float16, np.float16]
    assert {shard.final.dtype for shard in shards} == {np.dtype(np.float16)}
    assert mx.array_equal(
        as_mlx(made.read(3, 0, 12).taps), mx.array(large[300]).astype(mx.bfloat16)
    )
    beside = mx.array(features_of(EXAMPLES[4].tokens).taps).astype(mx.bfloat16)
    assert mx.array_equal(as_mlx(made.read(4, 0, 7).taps), beside)


@pytest.mark.parametrize(
    ("boundaries", "names"),
    [((5,), {"final", "choices"}), ((5, 5), {"final", "choices"}), ((1, 5, 5), None)],
)
def test_a_tap_that_is_the_final_state_is_kept_once(
    boundaries: tuple[int, ...], names: set[str] | None, tmp_path: Path
) -> None:
    n_taps = len(boundaries) - 1

    def compute(tokens: np.ndarray) -> Features:
        final = features_of(tokens).final
        taps = np.concatenate([final] * n_taps, axis=1) if n_taps else final[:, :0]
        return Features(taps, final, tokens)

    about = contents(boundaries=boundaries)
    made = FeatureStore(tmp_path / "features", about, shard_tokens=20)
    made.complete(compute, silent)
    assert_same(made.read(4, 1, 6), Features(*(a[1:6] for a in compute(EXAMPLES[4].tokens))))
    tensors = load_file(tmp_path / "features" / "features-00001.safetensors")
    assert set(tensors) == (names or {"taps", "final", "choices"})
    n_bytes = sum(array.nbytes for array in tensors.values())
    assert n_bytes == size_of(19, len(set(boundaries)), WIDTH)


def test_the_size_announced_is_that_of_the_files(store: FeatureStore) -> None:
    on_disk = sum(file.stat().st_size for file in store.folder.glob("*.safetensors"))
    assert store.n_bytes == size_of(sum(LENGTHS), 3, WIDTH)
    assert 0 < on_disk - store.n_bytes < N_SHARDS * 400
    assert store.missing_bytes == 0


def test_shards_end_with_texts_and_have_about_a_gigabyte() -> None:
    about = Contents("", "float16", (2, 16, 29, 33), 4096, [example(1000, 0)] * 100)
    shards = feature_store._plan([1000] * 100, feature_store.SHARD_BYTES // about.token_bytes)
    assert [shard.stop - shard.first for shard in shards] == [32, 32, 32, 4]


def test_a_disk_with_less_room_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    made = make(tmp_path / "features")
    with pytest.raises(EagleError, match=r"need 2\.1 kB and the disk of .* has 1\.0 kB left"):
        made.complete(features_of, silent)
    assert not (tmp_path / "features").exists()


def test_progress_counts_the_tokens_of_all_texts(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make(tmp_path / "features").complete(features_of, lambda *done: seen.append(done))
    assert [done for done, _ in seen] == np.cumsum(LENGTHS).tolist()
    assert {total for _, total in seen} == {sum(LENGTHS)}


def interrupted(n_texts: int, error: BaseException) -> Callable[[np.ndarray], Features]:
    """Features of so many texts, then an error."""
    left = iter(range(n_texts))

    def compute(tokens: np.ndarray) -> Features:
        if next(left, None) is None:
            raise error
        return features_of(tokens)

    return compute


@pytest.mark.parametrize("n_texts", range(8))
def test_who_was_interrupted_goes_on_and_ends_with_the_same_files(
    n_texts: int, store: FeatureStore, tmp_path: Path
) -> None:
    other = make(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        other.complete(interrupted(n_texts, KeyboardInterrupt()), silent)
    again, computed = make(tmp_path / "other"), []

    def compute(tokens: np.ndarray) -> Features:
        computed.append(len(tokens))
        return features_of(tokens)

    kept = max(n for n in (0, 3, 5, 6) if n <= n_texts)  # texts of complete shards
    assert again.missing_bytes == size_of(sum(LENGTHS[kept:]), 3, WIDTH)
    again.complete(compute, silent)
    assert computed == LENGTHS[kept:]
    assert files(tmp_path / "other") == files(store.folder)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_store as t
from mlx_eagle.training.features import shard as feature_shard

class Killing:
    def __init__(self, parts):
        self.parts = list(parts)
    def __iter__(self):
        yield from self.parts[:2]
        if len(list(Path(sys.argv[2]).glob("features-*"))) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from self.parts[2:]

serialized = feature_shard._serialized
feature_shard._serialized = lambda tensors: Killing(serialized(tensors))
t.make(Path(sys.argv[2])).complete(t.features_of, t.silent)
"""


def test_a_process_killed_while_it_writes_leaves_what_can_be_gone_on_with(
    store: FeatureStore, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(folder.glob(".*.partial.*"))) == 1
    again = make(folder, verify=True)
    assert again.missing_bytes == size_of(30 + 3 + 8, 3, WIDTH)
    again.complete(features_of, silent)
    assert files(folder) == files(store.folder)


def test_a_disk_that_becomes_full_loses_nothing_that_is_complete(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, serialized, written = tmp_path / "full", feature_shard._serialized, []

    def fail(tensors: dict[str, Any]) -> Any:
        written.append(tensors)
        for number, part in enumerate(serialized(tensors)):
            if len(written) == 3 and number == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield part

    monkeypatch.setattr(feature_shard, "_serialized", fail)
    with pytest.raises(
        EagleError, match=r"the disk is full\. 2 of 4 shards are kept: free"
    ) as told:
        make(folder).complete(features_of, silent)
    assert "\n" not in str(told.value)
    names = ["features-00000.safetensors", "features-00001.safetensors", "index.json"]
    assert sorted(files(folder)) == names
    make(folder).complete(features_of, silent)
    assert files(folder) == files(store.folder)


@pytest.mark.parametrize(
    ("damage", "fault", "verify"),
    [
        (lambda file: file.unlink(), "is missing", False),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-1]),
            "has 731 bytes instead of 732",
            False,
        ),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"), "has another sha256", True),
    ],
)
def test_a_damaged_shard_is_reported_and_computed_again(
    damage: Callable[[Path], None], fault: str, verify: bool, store: FeatureStore
) -> None:
    before = files(store.folder)
    damage(store.folder / "features-00001.safetensors")
    again = make(store.folder, verify=verify)
    (line,) = again.damaged
    assert f"features-00001.safetensors {fault}" in line
    assert again.missing_bytes == size_of(19, 3, WIDTH)
    again.complete(features_of, silent)
    assert files(store.folder) == before


OTHER_TOKENS = [*EXAMPLES[:-1], example(8, 1)]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"target": "another"}, "target 'a target' instead of 'another'"),
        ({"dtype": "bfloat16"}, "dtype 'float32' instead of 'bfloat16'"),
        ({"boundaries": (2, 3, 5)}, r"boundaries \[1, 3, 5\] instead of \[2, 3, 5\]"),
        ({"examples": OTHER_TOKENS}, r"\(tokens_sha256 '\w+' instead of '\w+'\)"),
        ({"examples": EXAMPLES[:-1]}, "texts 8 instead of 7, tokens 75 instead of 67"),
    ],
)
def test_a_folder_with_other_contents_is_refused_by_what_differs(
    changed: dict[str, Any], told: str, store: FeatureStore
) -> None:
    with pytest.raises(EagleError, match=f"holds features of something else.*{told}"):
        FeatureStore(store.folder, contents(**changed), shard_tokens=20)


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(EagleError, match=r"has files and no index\.json of features: choose"):
        make(tmp_path)


def test_an_index_that_is_no_index_is_refused(store: FeatureStore) -> None:
    (store.folder / "index.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        make(store.folder)
    (store.folder / "index.json").write_text(json.dumps({"contents": 3}))
    with pytest.raises(EagleError, match="holds features of something else"):
        make(store.folder)
