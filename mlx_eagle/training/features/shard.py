"""One file of features: those of several texts, their rows one after another, in safetensors.

Streams are kept in 16 bits: bfloat16 as it is, as its bits in uint16, which is how NumPy can hold
it; float32 as float16, which keeps three more bits of each value, unless one is too large for that.
The tensors are written one after another, and read by mapping the file: only the rows that are
looked at are read from the disk.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.safetensors import read_header
from mlx_eagle.training.batch import Features

_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Written(NamedTuple):
    """What was written: its size, and its sha256 in hexadecimal."""

    n_bytes: int
    sha256: str


def in_16_bits(features: Features) -> Features:
    """Return features with their streams as they are kept."""
    taps, final = _halved(features.taps), _halved(features.final)
    return Features(taps, final, features.choices.astype("<i4"))


def _halved(stream: np.ndarray) -> np.ndarray:
    """Return a stream in float16, or as bits of bfloat16 where it is that or needs its range."""
    if stream.dtype in (np.uint16, np.float16):
        return np.ascontiguousarray(stream)
    largest = np.abs(stream).max(initial=0)
    return _as_bfloat16(stream) if largest > np.finfo(np.float16).max else stream.astype("<f2")


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearest bfloat16, of two equally near ones that which is even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return ((bits + rounding) >> 16).astype("<u2")


def write_shard(file: Path, texts: Sequence[Features]) -> Written:
    """Write the features of texts, as `in_16_bits` returns them; the file appears whole or not.

    Raises:
        OSError: if it cannot be written.
    """
    columns = {name: [getattr(text, name) for text in texts] for name in Features._fields}
    tensors = {name: _alike(parts) for name, parts in columns.items() if parts[0].size}
    digest, n_bytes = hashlib.sha256(), 0
    with new_file(file) as partial, partial.open("wb") as stream:
        for part in _serialized(tensors):
            digest.update(part)
            n_bytes += stream.write(part)
    return Written(n_bytes, digest.hexdigest())


def _alike(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return arrays of one type: bfloat16 for all, where a value of one needs its range."""
    if len({part.dtype for part in parts}) == 1:
        return parts
    return [p if p.dtype == np.uint16 else _as_bfloat16(p.astype(np.float32)) for p in parts]


def _serialized(tensors: dict[str, list[np.ndarray]]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in pieces: nothing is joined in memory."""
    header, end = {}, 0
    for name, parts in tensors.items():
        start, end = end, end + sum(part.nbytes for part in parts)
        shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
        dtype = _NAMES[parts[0].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for parts in tensors.values():
        yield from (np.ascontiguousarray(part).data.cast("B") for part in parts)


def map_shard(file: Path) -> Features:
    """Return the features in a file, mapped into memory; taps are [T, 0] where it has none.

    Raises:
        CheckpointError: if it is not a sound file of features.
    """
    infos = read_header(file)
    with file.open("rb") as stream:
        (n_header,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(n_header))
    tensors = {
        name: np.memmap(
            file,
            dtype=_DTYPES[info.dtype],
            mode="r",
            offset=8 + n_header + header[name]["data_offsets"][0],
            shape=info.shape,
        )
        for name, info in infos.items()
    }
    final, choices = tensors["final"], tensors["choices"]
    return Features(tensors.get("taps", final[:, :0]), final, choices)
