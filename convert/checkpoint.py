"""Weights and configurations from folders that nobody vouches for: found, checked, then read.

Safetensors headers are validated here, before MLX maps the file; PyTorch's `.bin` files go to
`pickles`. Only these two formats are read, and only files of the folder itself. What the tensors
mean is the business of `dialects`.
"""

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_eagle.convert import pickles
from mlx_eagle.convert.opcodes import quote
from mlx_eagle.convert.pickles import TensorInfo
from mlx_eagle.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MAX_JSON_BYTES = 64 << 20

# The element sizes, in bytes, of the safetensors types that MLX loads.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder: safetensors if there are any, else PyTorch's.

    Raises:
        CheckpointError: if there are none, or an index names a file that is missing or elsewhere.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        files = (
            _shards(index, suffix) if index.exists() else sorted(folder.glob(stem + "*" + suffix))
        )
        if files:
            return files
    raise CheckpointError(
        f"{folder.name} has no weights: looked for model*.safetensors and pytorch_model*.bin"
    )


def read_manifest(folder: Path) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor in a folder, from the headers alone.

    Raises:
        CheckpointError: if a file is malformed or two files have a tensor of the same name.
    """
    manifest: dict[str, TensorInfo] = {}
    for file in find_weights(folder):
        part = pickles.read_manifest(file) if file.suffix == ".bin" else read_header(file)
        if repeated := sorted(set(part) & set(manifest)):
            raise CheckpointError(f"{file.name}: {quote(repeated[0])} is in another file as well")
        manifest |= part
    return manifest


def read_weights(file: Path) -> dict[str, mx.array]:
    """Return every tensor of one weight file by name; safetensors are mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed.
    """
    if file.suffix == ".bin":
        return pickles.read_tensors(file)
    read_header(file)
    try:
        weights = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError(f"{file.name}: {error}") from error
    assert isinstance(weights, dict), "safetensors load as a dict"
    return weights


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
    n_bytes = file.stat().st_size
    with file.open("rb") as stream:
        (n_header,) = struct.unpack("<Q", stream.read(8))
        if n_header > min(MAX_HEADER_BYTES, n_bytes - 8):
            raise CheckpointError(f"its header claims {n_header} bytes of {n_bytes}")
        header = json.loads(stream.read(n_header), object_pairs_hook=_without_repeats)
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
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise CheckpointError(f"the entry of {quote(name)} is malformed")
    if not name.isprintable() or len(name) > 256:
        raise CheckpointError(f"{quote(name)} is not a name that a tensor can have")
    n_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise CheckpointError(f"{quote(name)} has {offsets} for {n_bytes} bytes")
    return offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    """Say whether a JSON value is a list of integers that sizes or offsets can be."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, unless a key comes twice."""
    items = dict(pairs)
    if len(items) < len(pairs):
        raise CheckpointError("a key comes twice")
    return items


def _shards(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index names: files of its own folder, and nothing else."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    names = list(weight_map.values())
    for name in names:
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not plain or not name.endswith(suffix):
            raise CheckpointError(
                f"{index.name} names {quote(name)}, which is not a {suffix} file of its folder"
            )
    files = sorted(index.parent / name for name in set(names))
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{index.parent.name} lacks {', '.join(missing)}, which its index names"
        )
    return files


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file of bounded size.

    Raises:
        CheckpointError: if the file is missing, too large, or not a JSON object.
    """
    where = f"{file.parent.name}/{file.name}"
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{where} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{where} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return value


def read_count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is missing without a default, or is not a positive integer.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(f"config.json: {key} is {quote_value(value)}, not a positive integer")
    return value


def read_number(config: dict[str, Any], key: str, default: float) -> float:
    """Return a positive, finite number of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is there and is not a positive, finite number.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 < value < 1e15:
        raise CheckpointError(f"config.json: {key} is {quote_value(value)}, not a positive number")
    return float(value)


def language_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a target's configuration that describes its language model."""
    nested = config.get("text_config")
    return config | nested if isinstance(nested, dict) else config


def quote_value(value: Any) -> str:
    """Return a JSON value as it may be shown in an error, or its kind if it has parts."""
    if value is None:
        return "missing"
    return str(value)[:80] if type(value) in (int, float, bool) else quote(value)


def hash_file(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_name(folder: Path) -> str:
    """Return the repository that a folder of the Hugging Face cache is of, else its own name."""
    folder = Path(os.path.abspath(folder))
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/", 1)
    return folder.name
