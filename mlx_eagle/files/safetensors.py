"""Safetensors that nobody vouches for: headers checked before MLX maps the file.

The safetensors library refuses headers that are malformed, and tensors of another size than their
shape, that overlap, leave gaps or lie outside the file. What it lets through is refused here:
keys that come twice, and whatever MLX cannot load or that is made to exhaust its reader.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import one_line, quote

MAX_AXES = 8
MAX_SIZE = 1 << 31  # of an axis: MLX counts in 32 bits
MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors in one file; the safetensors format allows 100 MB

# The safetensors types that MLX loads.
_DTYPES = (
    *("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0", "U16", "I16", "F16", "BF16"),
    *("U32", "I32", "F32", "U64", "I64", "C64"),
)
_KEYS = {"dtype", "shape", "data_offsets"}
# What is raised for a file that is no sound safetensors file.
_UNSOUND = (OSError, struct.error, ValueError, RecursionError, SafetensorError, CheckpointError)


class TensorInfo(NamedTuple):
    """What a header says about a tensor; `dtype` is the safetensors name, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]


def read_tensors(file: Path) -> dict[str, mx.array]:
    """Return every tensor of a safetensors file by name; the file is mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed.
    """
    read_header(file)
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError(f"{file.name}: {one_line(error)}") from error
    assert isinstance(tensors, dict), "safetensors load as a dict"
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, once its header is known to fit the file exactly.

    Raises:
        CheckpointError: if the header is malformed, or its tensors overlap, leave gaps or lie
            outside the file.
    """
    try:
        header = _parse_header(file)
        with safe_open(str(file), framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in header}
            found = {n: TensorInfo(p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
        for name, info in found.items():
            _check_entry(name, info, header[name])
    except _UNSOUND as error:
        reason = one_line(error)
        raise CheckpointError(f"{file.name} is not a sound safetensors file: {reason}") from error
    return found


def checksum(arrays: Mapping[str, mx.array]) -> str:
    """Return the CRC-32 of the numbers of all arrays, in the order of their names."""
    crc = 0
    for _, array in sorted(arrays.items()):
        words = array.reshape(-1).view(mx.uint8) if array.size else mx.array([], dtype=mx.uint8)
        crc = zlib.crc32(np.array(words).data, crc)
    return f"{crc:08x}"


def _parse_header(file: Path) -> dict[str, Any]:
    """Return the entries of a header by the names of their tensors, each of which comes once."""
    n_bytes = check_file(file)
    with file.open("rb") as stream:
        (n_header,) = struct.unpack("<Q", stream.read(8))
        if n_header > min(MAX_HEADER_BYTES, n_bytes - 8):
            raise CheckpointError(
                f"its header claims {n_header} bytes of {n_bytes}, at most {MAX_HEADER_BYTES} "
                "are read"
            )
        header = parse_json(stream.read(n_header))
    if not isinstance(header, dict):
        raise CheckpointError("its header is not an object")
    header.pop("__metadata__", None)
    for name in header:
        if not name.isprintable() or len(name) > 256:
            raise CheckpointError(f"{quote(name)} is not a name that a tensor can have")
    return header


def _check_entry(name: str, info: TensorInfo, entry: dict[str, Any]) -> None:
    """Refuse a tensor that MLX cannot load, and an entry that says more than it should."""
    if info.dtype not in _DTYPES:
        raise CheckpointError(f"{quote(name)} has the type {info.dtype}, which MLX cannot load")
    has_many_axes, is_large = len(info.shape) > MAX_AXES, max(info.shape, default=0) >= MAX_SIZE
    if set(entry) != _KEYS or has_many_axes or is_large:
        raise CheckpointError(f"the entry of {quote(name)} is malformed")
