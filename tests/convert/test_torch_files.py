"""The reader of PyTorch's `.bin` files: equal to PyTorch on good files, harmless on bad ones."""

import contextlib
import io
import pickle
import random
import resource
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert import torch_files
from mlx_eagle.convert.torch_files import read_manifest, read_tensors
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.safetensors import TensorInfo


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(key: str, kind: str, numel: int, offset: int, *axes: tuple[int, int]) -> bytes:
    """Return the pickle of a tensor; `axes` are pairs of size and stride."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    block = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    block += number(numel) + b"tQ" + number(offset)
    for values in zip(*axes, strict=True):  # sizes, then strides
        block += b"(" + b"".join(map(number, values)) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + block + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(**tensors: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02}(" + items + b"u."


def archive(program: bytes, *blocks: bytes, byteorder: bytes = b"little") -> bytes:
    """Return a `.bin` file with `blocks` as storages 0, 1, ..."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr("archive/data.pkl", program)
        bundle.writestr("archive/version", b"3")
        bundle.writestr("archive/byteorder", byteorder)
        for key, block in enumerate(blocks):
            bundle.writestr(f"archive/data/{key}", block)
    return file.getvalue()


def read(data: bytes) -> dict[str, mx.array]:
    return read_tensors(io.BytesIO(data))


WEIGHT = np.arange(12, dtype=np.float32)
IDS = np.array([5, -7, 9], dtype=np.int64)
PROGRAM = state_dict(
    weight=tensor("0", "FloatStorage", 12, 0, (3, 4), (4, 1)),
    flipped=tensor("0", "FloatStorage", 12, 0, (4, 1), (3, 4)),
    ids=tensor("1", "LongStorage", 3, 1, (2, 1)),
)
GOOD = archive(PROGRAM, WEIGHT.tobytes(), IDS.tobytes())
EXPECTED = {"weight": WEIGHT.reshape(3, 4), "flipped": WEIGHT.reshape(3, 4).T, "ids": IDS[1:]}


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bits(array: mx.array) -> np.ndarray:
    """Return the raw bytes of an array, whatever its type."""
    return np.array(array.reshape(-1).view(mx.uint8))


class Watch:
    """Notes what Python's own audit says is executed; a hook can never be removed again."""

    suspicious = frozenset(
        {"os.system", "os.exec", "subprocess.Popen", "exec", "pickle.find_class"}
    )
    active = False
    executed: ClassVar[list[str]] = []

    @classmethod
    def see(cls, event: str, _: Any) -> None:
        if cls.active and event in cls.suspicious:
            cls.executed.append(event)


sys.addaudithook(Watch.see)


@contextlib.contextmanager
def harmless(seconds: float = 2.0, n_bytes: int = 64 << 20) -> Iterator[None]:
    """Fail if the block executes something, works for long, or makes the process much larger."""
    peak, start = peak_bytes(), time.process_time()
    Watch.executed.clear()
    Watch.active = True
    try:
        yield
    finally:
        Watch.active = False
    assert not Watch.executed
    assert time.process_time() - start < seconds
    assert peak_bytes() - peak < n_bytes


def test_good_file_gives_its_tensors() -> None:
    tensors = read(GOOD)
    assert list(tensors) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert np.array_equal(np.array(tensors[name]), expected)
    assert tensors["ids"].dtype == mx.int64


def test_manifest_reads_no_tensor_data() -> None:
    damaged = GOOD.replace(WEIGHT.tobytes(), bytes(WEIGHT.nbytes))
    manifest = read_manifest(io.BytesIO(damaged))
    assert manifest["weight"] == TensorInfo("F32", (3, 4))
    assert manifest["ids"] == TensorInfo("I64", (2,))
    with pytest.raises(CheckpointError, match="CRC"):
        read(damaged)


def deflated() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bundle:
        bundle.writestr("archive/data.pkl", PROGRAM)
        with bundle.open("archive/data/0", "w") as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
    return file.getvalue()


def duplicated() -> bytes:
    file = io.BytesIO(GOOD)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as bundle:
        warnings.simplefilter("ignore")
        bundle.writestr("archive/data/0", bytes(48))
    return file.getvalue()


def overlapping() -> bytes:
    """Let the directory's second entry begin one byte into the first."""
    second = GOOD.rindex(b"archive/byteorder") - 4
    return GOOD[:second] + (1).to_bytes(4, "little") + GOOD[second + 4 :]


def oversized_directory() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for i in range(80):
            entry = zipfile.ZipInfo(f"{i}")
            entry.extra = b"\xfe\xca" + (65_000).to_bytes(2, "little") + bytes(65_000)
            bundle.writestr(entry, b"")
    return file.getvalue()


HOLLOW = state_dict(x=tensor("0", "FloatStorage", 12, 0, (0, 1), *[(1 << 30, 1)] * 3))
REFUSED_FILES = {
    "deflated bomb": (deflated, "compressed"),
    "entry twice": (duplicated, "same name"),
    "overlapping entries": (overlapping, "overlaps"),
    "huge directory": (oversized_directory, "larger than"),
    "big-endian": (lambda: archive(PROGRAM, byteorder=b"big"), "little-endian"),
    "endless byte order": (lambda: archive(PROGRAM, byteorder=bytes(100)), "byteorder is larger"),
    "storage missing": (lambda: archive(PROGRAM), "not in the archive"),
    "storage too short": (lambda: archive(PROGRAM, bytes(47), bytes(24)), "47 bytes where 48"),
    "storage too long": (lambda: archive(PROGRAM, bytes(49), bytes(24)), "49 bytes where 48"),
    "no elements in too many places": (lambda: archive(HOLLOW, bytes(48)), "too big"),
    "flipped bit": (lambda: GOOD.replace(IDS.tobytes(), (IDS ^ 1).tobytes()), "CRC"),
    "other zip file": (lambda: GOOD.replace(b"data.pkl", b"data.txt"), "one of PyTorch's"),
    "encrypted": (
        lambda: GOOD.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0"),
        "encrypted",
    ),
    "truncated": (lambda: GOOD[:-30], "zip"),
    "plain pickle": (lambda: PROGRAM, "before PyTorch 1.6"),
    "empty": (lambda: b"", "not a PyTorch zip"),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_hostile_archive_is_refused(name: str) -> None:
    make, message = REFUSED_FILES[name]
    data = make()
    with harmless(), pytest.raises(CheckpointError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("key", "numel", "message"),
    [
        ("0", 1 << 30, "16 bytes where 4294967296 are declared"),
        ("../../etc/passwd", 4, "not in the archive"),
        ("../byteorder", 4, "not in the archive"),
        ("7", 4, "not in the archive"),
    ],
)
def test_storage_that_is_not_there_is_refused(key: str, numel: int, message: str) -> None:
    program = state_dict(x=tensor(key, "FloatStorage", numel, 0, (numel, 1)))
    with harmless(), pytest.raises(CheckpointError, match=message):
        read(archive(program, bytes(16)))


def test_one_storage_cannot_become_many_tensors() -> None:
    view = tensor("0", "FloatStorage", 1024, 0, (1024, 1))
    with pytest.raises(CheckpointError, match="4096 stored bytes would become 409600"):
        read(archive(state_dict(**{f"x{i}": view for i in range(100)}), bytes(4096)))
    with pytest.raises(CheckpointError, match="would become 8192"):
        read_tensors(io.BytesIO(archive(state_dict(x=view, y=view), bytes(4096))), max_bytes=8191)


def test_program_that_is_too_large_is_refused() -> None:
    assert torch_files.MAX_READ_BYTES >= 5_000 * 400  # tensors of a file, bytes of data.pkl each
    with harmless(), pytest.raises(CheckpointError, match="larger than"):
        read(archive(b"\x80\x02" + b"N0" * (3 << 20)))


def test_files_beyond_the_limit_are_refused() -> None:
    with pytest.raises(CheckpointError, match=f"more than the limit of {len(GOOD) - 1}"):
        read_tensors(io.BytesIO(GOOD), max_bytes=len(GOOD) - 1)
    assert set(read_tensors(io.BytesIO(GOOD), max_bytes=len(GOOD))) == set(EXPECTED)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.bin"):
        read_tensors(tmp_path / "gone.bin")


def mutate(data: bytes, source: random.Random) -> bytes:
    """Return data with one to three random bytes replaced, cut out, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 1, 2, 3])):
        at = source.randrange(len(changed))
        match source.randrange(5):
            case 0 | 1:
                changed[at] = source.randrange(256)
            case 2:
                changed[at] ^= 1 << source.randrange(8)
            case 3:
                del changed[at : at + source.choice([1, 2, 8, len(changed)])]
                changed = changed or bytearray(b"\0")
            case 4:
                changed[at:at] = source.randbytes(source.choice([1, 2, 8]))
    return bytes(changed)


def try_read(data: bytes) -> dict[str, mx.array] | None:
    """Return the tensors, or None for a CheckpointError; it may not work for two seconds."""
    start = time.process_time()
    try:
        return read(data)
    except CheckpointError:
        return None
    finally:
        assert time.process_time() - start < 2


def test_mutated_archives_are_refused_or_read_right(is_quick: bool) -> None:
    source = random.Random(0)
    n, n_read = 2000 if is_quick else 5000, 0
    with harmless(seconds=60):
        for _ in range(n):
            tensors = try_read(mutate(GOOD, source))
            if tensors is not None:
                n_read += 1
                assert set(tensors) == set(EXPECTED)
                assert all(np.array_equal(np.array(tensors[k]), EXPECTED[k]) for k in EXPECTED)
    assert 0 < n_read < 0.8 * n


def mutated_programs(n: int) -> list[bytes]:
    source = random.Random(1)
    return [archive(mutate(PROGRAM, source), WEIGHT.tobytes(), IDS.tobytes()) for _ in range(n)]


def is_of_the_file(array: mx.array) -> bool:
    """Say whether every element is one that stands in a storage, byte for byte."""
    size = 1 if array.dtype == mx.bool_ else array.dtype.size
    blocks = [WEIGHT.tobytes(), IDS.tobytes(), b"\0\1" if array.dtype == mx.bool_ else b""]
    there = {block[i : i + size] for block in blocks for i in range(0, len(block), size)}
    data = bits(array).tobytes()
    return {data[i : i + size] for i in range(0, len(data), size)} <= there


def test_mutated_programs_are_refused_or_give_tensors_of_the_file(is_quick: bool) -> None:
    n, n_read = 1500 if is_quick else 5000, 0
    with harmless(seconds=60):
        for data in mutated_programs(n):
            tensors = try_read(data) or {}
            n_read += bool(tensors)
            assert all(is_of_the_file(array) for array in tensors.values())
            assert sum(a.nbytes for a in tensors.values()) <= 4 * (WEIGHT.nbytes + IDS.nbytes)
    assert n_read > n / 160


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is the oracle")


def same_bits(array: mx.array, expected: Any, torch: Any) -> bool:
    flat = expected.detach().contiguous().reshape(-1)
    return array.shape == tuple(expected.shape) and np.array_equal(
        bits(array), flat.view(torch.uint8).numpy()
    )


def saved(torch: Any, value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int64", "int32", "bool"])
def test_every_type_equals_torch_bit_for_bit(torch: Any, dtype: str, protocol: int) -> None:
    torch.manual_seed(0)
    base = (torch.randn(6, 8) * 3).to(getattr(torch, dtype))
    tensors = {
        "whole": base,
        "transposed": base.T,
        "rows": base[1:5:2],
        "columns": base[:, 3:7],
        "scalar": base[2, 3],
        "empty": base[:0],
        "apart": base.clone(),
    }
    found = read(saved(torch, tensors, pickle_protocol=protocol))
    assert list(found) == list(tensors)
    for name, expected in tensors.items():
        assert str(found[name].dtype).removeprefix("mlx.core.").replace("bool_", "bool") == dtype
        assert same_bits(found[name], expected, torch), name


@pytest.mark.torch
def test_state_dict_of_a_module_and_its_parameters_are_read(torch: Any) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for value in (layer.state_dict(), OrderedDict(layer.named_parameters())):
        found = read(saved(torch, value))
        assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert all(same_bits(found[name], value[name], torch) for name in value)


@pytest.mark.torch
def test_format_from_before_torch_1_6_is_refused_with_the_way_out(torch: Any) -> None:
    legacy = saved(torch, {"x": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch\.save it again"):
        read(legacy)


@pytest.mark.torch
def test_what_torch_saves_of_other_kinds_is_refused(torch: Any) -> None:
    sparse = torch.eye(3).to_sparse()
    for value in (sparse, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.uint8)):
        with pytest.raises(CheckpointError, match="only dense tensors"):
            read(saved(torch, {"x": value}))


@pytest.mark.torch
def test_published_head_equals_torch_bit_for_bit(torch: Any, fixtures: Path) -> None:
    file = fixtures / "pydoc-eagle3" / "pytorch_model.bin"
    expected = torch.load(file, weights_only=True)
    found = read_tensors(file)
    assert list(found) == list(expected)
    assert all(same_bits(found[name], expected[name], torch) for name in expected)
    shapes = {name: info.shape for name, info in read_manifest(file).items()}
    assert shapes == {name: tuple(value.shape) for name, value in expected.items()}


@pytest.mark.torch
def test_mutants_that_both_read_are_read_alike(torch: Any, is_quick: bool) -> None:
    n, n_compared = 1500 if is_quick else 5000, 0
    for data in mutated_programs(n):
        found = try_read(data)
        if not found:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = torch.load(io.BytesIO(data), weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, TypeError):
                continue
        n_compared += 1
        assert list(found) == list(expected)
        assert all(same_bits(found[name], expected[name], torch) for name in expected)
    assert n_compared > n / 160
