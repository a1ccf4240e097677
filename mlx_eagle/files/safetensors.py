"""Safetensors that nobody vouches for: headers checked before MLX maps the file."""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import quote


class TensorInfo(NamedTuple):
    """What a header says about a tensor; `dtype` is the safetensors name, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]


MAX_AXES = 8
MAX_SIZE = 1 << 31  # of an axis: MLX counts in 32 bits
MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors in one file; the safetensors format allows 100 MB


# The element sizes, in bytes, of the safetensors types that MLX loads.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}


def read_tensors(file: Path) -> dict[str, mx.array]:
    """Return every tensor of a safetensors file by name; the file is mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed.
    """
    read_header(file)
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError(f"{file.name}: {error}") from error
    assert isinstance(tensors, dict), "safetensors load as a dict"
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, once its header is known to fit the file exactly.

    Raises:
        CheckpointError: if the header is malformed, or its tensors overlap, leave gaps or lie
            outside the file.
    """
    try:
        return _checked_header(file)
    except (OSError, struct.error, ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{file.name} is not a sound safetensors file: {error}") from error


def _checked_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors header; every tensor begins where another ends."""
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
    metadata = header.pop("__metadata__", None) or {}  # MLX writes null
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("its metadata is not an object of texts")
    spans = sorted((_span(name, entry), name) for name, entry in header.items())
    end = 0
    for (start, stop), name in spans:
        if start != end:
            raise CheckpointError(f"{quote(name)} begins at byte {start}, expected {end}")
        end = stop
    if end != n_bytes - 8 - n_header:
        raise CheckpointError(f"its tensors take {end} bytes of {n_bytes - 8 - n_header}")
    return {name: TensorInfo(e["dtype"], tuple(e["shape"])) for name, e in header.items()}


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor begins and ends, in bytes after the header, if its size is right."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"the entry of {quote(name)} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{quote(name)} has the type {quote(dtype)}, which MLX cannot load")
    if not _are_counts(shape, MAX_SIZE) or not _are_counts(offsets, 1 << 48):
        raise CheckpointError(f"the entry of {quote(name)} is malformed")
    if len(offsets) != 2 or len(shape) > MAX_AXES:
        raise CheckpointError(f"the entry of {quote(name)} is malformed")
    if not name.isprintable() or len(name) > 256:
        raise CheckpointError(f"{quote(name)} is not a name that a tensor can have")
    n_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise CheckpointError(f"{quote(name)} has {offsets} for {n_bytes} bytes")
    return offsets[0], offsets[1]


def _are_counts(values: Any, bound: int) -> bool:
    """Say whether a JSON value is a list of integers that sizes or offsets below a bound can be."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < bound for v in values)
