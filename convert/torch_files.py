"""Tensors out of PyTorch's zip files, `.bin` or `.pt`, without PyTorch and without unpickling.

Such a file is a zip archive: `<prefix>/data.pkl` is a pickle that describes the tensors, which
`pickle_reader.py` interprets without executing anything, and `<prefix>/data/<key>` are their raw
bytes. Every size is compared with the bytes that are really there before memory is allocated.

It is not a reader of anything else that PyTorch can save: sparse, quantized and scripted tensors,
objects, and the format from before PyTorch 1.6 are refused.
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from mlx_eagle.convert.pickle_reader import Storage, View, read_state_dict
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import one_line, quote
from mlx_eagle.files.safetensors import TensorInfo

MAX_FILE_BYTES = 64 << 30
MAX_READ_BYTES = 4 << 20  # the largest data.pkl and zip directory
CHUNK_BYTES = 1 << 20
LOCAL_HEADER_BYTES = 30  # at least, before the bytes of an entry

# What the standard library raises for a damaged or unusual zip archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)

_NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has no bfloat16: its bits
    "F32": np.float32,
    "I64": np.int64,
    "I32": np.int32,
    "BOOL": np.uint8,
}


def read_manifest(
    file: Path | BinaryIO, *, max_bytes: int = MAX_FILE_BYTES
) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor in a file of PyTorch; no tensor data is read.

    Args:
        file: a path, or a seekable binary file.
        max_bytes: refuse files, and tensors out of them, that are larger, in bytes.

    Raises:
        CheckpointError: if the file is not a zip of dense tensors, is malformed or too large.
    """
    with _open_archive(file, max_bytes) as archive:
        views = archive.views()
        return {name: TensorInfo(v.storage.dtype, v.shape) for name, v in views.items()}


def read_tensors(file: Path | BinaryIO, *, max_bytes: int = MAX_FILE_BYTES) -> dict[str, mx.array]:
    """Return every tensor of a file of PyTorch by name.

    Args:
        file: a path, or a seekable binary file.
        max_bytes: refuse files, and tensors out of them, that are larger, in bytes.

    Raises:
        CheckpointError: if the file is not a zip of dense tensors, is malformed or too large.
    """
    with _open_archive(file, max_bytes) as archive:
        views = archive.views()
        by_key: dict[str, list[str]] = {}
        for name, view in views.items():
            by_key.setdefault(view.storage.key, []).append(name)
        arrays: dict[str, mx.array] = {}
        for key, names in by_key.items():
            stored = archive.read(f"data/{key}")
            arrays |= {name: _materialise(views[name], stored) for name in names}
        return {name: arrays[name] for name in views}


def _materialise(view: View, stored: np.ndarray) -> mx.array:
    """Copy a window of `stored` [bytes] uint8, whose bounds were checked, into an array."""
    dtype = view.storage.dtype
    if not math.prod(view.shape):
        elements = np.empty(view.shape, _NUMPY_DTYPES[dtype])
    else:
        typed = stored.view(_NUMPY_DTYPES[dtype])[view.offset :]
        strides = [stride * typed.itemsize for stride in view.strides]
        window = np.lib.stride_tricks.as_strided(typed, view.shape, strides, writeable=False)
        elements = np.ascontiguousarray(window).reshape(view.shape)
    if dtype == "BOOL":
        return mx.array(elements != 0)
    array = mx.array(elements)
    return array.view(mx.bfloat16) if dtype == "BF16" else array


@contextmanager
def _open_archive(file: Path | BinaryIO, max_bytes: int) -> Iterator["_Archive"]:
    """Open a file of PyTorch; whatever is wrong leaves as a CheckpointError with its name."""
    name = file.name if isinstance(file, Path) else "the checkpoint"
    try:
        with open(file, "rb") if isinstance(file, Path) else _left_open(file) as stream:
            yield _Archive(stream, max_bytes)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"{name} is damaged or cut short: {one_line(error)}") from error


@contextmanager
def _left_open(file: BinaryIO) -> Iterator[BinaryIO]:
    """Use a file that the caller opened, and leave closing it to the caller."""
    yield file


class _BoundedReads(io.BufferedIOBase):
    """A file that never returns more than MAX_READ_BYTES at once.

    `zipfile` reads the directory of an archive in one go, as long as the file says that it is.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def seekable(self) -> bool:
        """Tell `zipfile` that it can seek."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, in bytes, as `io` does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        """Return at most `size` bytes, or all that are left; refuse more than the bound."""
        wanted = -1 if size is None else size
        data = self._file.read(wanted if 0 <= wanted <= MAX_READ_BYTES else MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise CheckpointError(f"its directory is larger than {MAX_READ_BYTES} bytes")
        return data


class _Archive:
    """The zip side of such a file: entries that are stored, apart, and as long as they say."""

    def __init__(self, file: BinaryIO, max_bytes: int):
        n_bytes = file.seek(0, io.SEEK_END)
        if n_bytes > max_bytes:
            raise CheckpointError(f"{n_bytes} bytes, more than the limit of {max_bytes}")
        file.seek(0)
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                "not a PyTorch zip file. Files from before PyTorch 1.6 are plain pickles: load "
                "one with torch.load(file, weights_only=True) and torch.save it again"
            )
        self._max_bytes = max_bytes
        self._zip = zipfile.ZipFile(_BoundedReads(file))
        infos = self._zip.infolist()
        _check_entries(infos, n_bytes)
        self._entries = {info.filename: info for info in infos}
        self._prefix = _find_prefix(self._entries)
        order = bytes(self.read("byteorder", 16)) if "byteorder" in self else b"little"
        if order != b"little":
            raise CheckpointError("its numbers are not little-endian, which is all that is read")

    def __contains__(self, name: str) -> bool:
        """Say whether there is an entry of that name under the archive's prefix."""
        return f"{self._prefix}/{name}" in self._entries

    def n_bytes(self, name: str) -> int:
        """Return the size of an entry in bytes."""
        if name not in self:
            raise CheckpointError(f"it refers to {quote(name)}, which is not in the archive")
        return self._entries[f"{self._prefix}/{name}"].file_size

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> np.ndarray:
        """Return an entry as [bytes] uint8; its checksum is verified on the way."""
        if self.n_bytes(name) > max_bytes:
            raise CheckpointError(f"{name} is larger than {max_bytes} bytes")
        buffer = np.empty(self.n_bytes(name), np.uint8)
        with self._zip.open(self._entries[f"{self._prefix}/{name}"]) as entry:
            filled = 0
            while filled < len(buffer):
                chunk = np.frombuffer(entry.read(CHUNK_BYTES), np.uint8)
                if not len(chunk):
                    raise CheckpointError(f"{name} ends early")
                buffer[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        return buffer

    def views(self) -> dict[str, View]:
        """Return the tensors that `data.pkl` describes, each within the bytes of its storage."""
        views = read_state_dict(bytes(self.read("data.pkl", MAX_READ_BYTES)))
        storages = {view.storage for view in views.values()}
        if len({storage.key for storage in storages}) < len(storages):
            raise CheckpointError("data.pkl describes one storage in two ways")
        for storage in storages:
            declared = storage.numel * _item_bytes(storage)
            if (found := self.n_bytes(f"data/{storage.key}")) != declared:
                raise CheckpointError(
                    f"{quote(f'data/{storage.key}')} has {found} bytes where {declared} are "
                    "declared"
                )
        stored = sum(storage.numel * _item_bytes(storage) for storage in storages)
        wanted = sum(math.prod(v.shape) * _item_bytes(v.storage) for v in views.values())
        if wanted > min(4 * stored, self._max_bytes):
            raise CheckpointError(f"{stored} stored bytes would become {wanted} bytes of tensors")
        return views


def _item_bytes(storage: Storage) -> int:
    """Return the size of one element in bytes."""
    return np.dtype(_NUMPY_DTYPES[storage.dtype]).itemsize


def _check_entries(infos: list[zipfile.ZipInfo], n_bytes: int) -> None:
    """Refuse entries that are compressed, encrypted, repeated, overlapping or out of the file."""
    if len({info.filename for info in infos}) < len(infos):
        raise CheckpointError("two entries of the archive have the same name")
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"entry {quote(info.filename)} is compressed or encrypted; PyTorch stores plainly"
            )
        if info.header_offset < end or info.compress_size != info.file_size:
            raise CheckpointError(f"entry {quote(info.filename)} overlaps or has two sizes")
        end = info.header_offset + LOCAL_HEADER_BYTES + info.file_size
        if end > n_bytes:
            raise CheckpointError(f"entry {quote(info.filename)} reaches beyond the file")


def _find_prefix(names: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder that holds `data.pkl`, which differs from file to file."""
    prefixes = [name[:-9] for name in names if name.endswith("/data.pkl")]
    if len(prefixes) != 1 or "/" in prefixes[0]:
        raise CheckpointError("a zip file, but not one of PyTorch's: it needs one data.pkl")
    return prefixes[0]
