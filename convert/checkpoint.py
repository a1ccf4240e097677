"""Weights and configurations from folders that nobody vouches for: found, checked, then read.

Safetensors headers are validated here, before MLX maps the file; PyTorch's `.bin` and `.pt` files
go to `pickles`. Only these two formats are read, and only files of the folder itself. Sizes are
bounded before anything is allocated. What the tensors mean is the business of `dialects`.
"""

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_eagle.convert import torch_files as pickles
from mlx_eagle.convert.pickle_reader import MAX_AXES, MAX_SIZE, quote
from mlx_eagle.convert.torch_files import TensorInfo
from mlx_eagle.errors import CheckpointError, EagleError

MAX_TOTAL_BYTES = 256 << 30  # of all weight files of a folder: 120 billion parameters in 16 bits
MAX_BYTES_VARIABLE = "MLX_EAGLE_MAX_BYTES"
MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors in one file; the safetensors format allows 100 MB
MAX_CONFIG_BYTES = 8 << 20
MAX_INDEX_BYTES = 24 << 20  # that of a target with 200,000 tensors
MAX_JSON_PARTS = 500_000  # objects and lists: a header needs three for a tensor
MAX_JSON_DEPTH = 24
MAX_INTEGER_DIGITS = 40  # such integers still become floats
MAX_SHARDS = 10_000

PICKLES = (".bin", ".pt")

# The element sizes, in bytes, of the safetensors types that MLX loads.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder: safetensors if there are any, else PyTorch's.

    They are plain files of this folder, and together within the limit of their size.

    Raises:
        CheckpointError: if there are none, an index names a file that is missing or elsewhere, or
            they are too large.
    """
    files = _list_weights(folder)
    n_bytes, limit = sum(check_file(file) for file in files), size_limit()
    if n_bytes > limit:
        raise CheckpointError(
            f"{folder.name} has {n_bytes} bytes of weights, more than the limit of {limit}: set "
            f"{MAX_BYTES_VARIABLE}={n_bytes} if you trust it"
        )
    return files


def _list_weights(folder: Path) -> list[Path]:
    """Return the weight files that a folder's index or their names tell; they are not checked."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if os.path.lexists(index):
            return _shards(index, suffix)
        if files := sorted(folder.glob(stem + "*" + suffix)):
            return files
    files = sorted(folder.glob("*.pt"))
    if len(files) > 1:
        names = listed(quote(file.name) for file in files)
        raise CheckpointError(f"{folder.name} has {names}: keep the one that holds the weights")
    if not files:
        raise CheckpointError(
            f"{folder.name} has no weights: looked for model*.safetensors, pytorch_model*.bin "
            "and *.pt"
        )
    return files


def size_limit() -> int:
    """Return how many bytes of weights a folder may have: the environment may raise it.

    Raises:
        EagleError: if the environment has something else than a number.
    """
    text = os.environ.get(MAX_BYTES_VARIABLE, str(MAX_TOTAL_BYTES))
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise EagleError(f"{MAX_BYTES_VARIABLE} is {quote(text)}, not a number of bytes")
    return int(text)


def check_file(file: Path) -> int:
    """Return the size of a file in bytes, once it is known to be a plain file of its folder.

    It may be a link to another file of the folder or, from a snapshot in the Hugging Face cache,
    to a blob of the same repository: that is how the cache stores files.

    Raises:
        CheckpointError: if it is missing, not a regular file, or a link that leads elsewhere.
    """
    where = f"{file.parent.name}/{file.name}" if file.name.isprintable() else quote(file.name)
    folder, real = Path(os.path.realpath(file.parent)), Path(os.path.realpath(file))
    if folder not in real.parents and real.parent != _blobs(folder):
        raise CheckpointError(
            f"{where} is a link to {quote(str(real))}, which is outside of its folder: put a copy "
            "in its place if you trust it"
        )
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{where} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{where} is not readable: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not file.name.isprintable():
        raise CheckpointError(f"{where} is not a regular file, expected one with a plain name")
    return status.st_size


def _blobs(folder: Path) -> Path | None:
    """Return where the Hugging Face cache keeps the contents of a snapshot that has a folder."""
    for snapshot in (folder, *folder.parents):
        repo = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repo.name.startswith("models--"):
            return repo / "blobs"
    return None


def read_manifest(folder: Path) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor in a folder, from the headers alone.

    Raises:
        CheckpointError: if a file is malformed or two files have a tensor of the same name.
    """
    manifest: dict[str, TensorInfo] = {}
    for file in find_weights(folder):
        is_pickle, limit = file.suffix in PICKLES, size_limit()
        part = pickles.read_manifest(file, max_bytes=limit) if is_pickle else read_header(file)
        if repeated := sorted(set(part) & set(manifest)):
            raise CheckpointError(f"{file.name}: {quote(repeated[0])} is in another file as well")
        manifest |= part
    return manifest


def read_weights(file: Path) -> dict[str, mx.array]:
    """Return every tensor of one weight file by name; safetensors are mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed.
    """
    if file.suffix in PICKLES:
        check_file(file)
        return pickles.read_tensors(file, max_bytes=size_limit())
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


def parse_json(data: bytes) -> Any:
    """Return what JSON in UTF-8 says, if it is neither ambiguous nor made to exhaust its reader.

    NaN and Infinity are let through, published configurations have them; `read_number` is not.
    """
    if data.count(b"{") + data.count(b"[") > MAX_JSON_PARTS:
        raise CheckpointError(f"it has more than {MAX_JSON_PARTS} objects and lists")
    value = json.loads(
        data.decode(), object_pairs_hook=_without_repeats, parse_int=_bounded_integer
    )
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        "".join(text for text in level if isinstance(text, str)).encode()  # no lone surrogates
        parts = [part for part in level if isinstance(part, dict | list)]
        if not parts:
            return value
        level = [item for part in parts for item in part]
        level += [item for part in parts if isinstance(part, dict) for item in part.values()]
    raise CheckpointError(f"it is nested more than {MAX_JSON_DEPTH} deep")


def _bounded_integer(digits: str) -> int:
    """Return the integer that a number in JSON stands for, unless it is absurdly long."""
    if len(digits) > MAX_INTEGER_DIGITS:
        raise CheckpointError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, unless a key comes twice."""
    items: dict[str, Any] = {}
    for key, value in pairs:
        if key in items:
            raise CheckpointError(f"its key {quote(key)} comes twice")
        items[key] = value
    return items


def _shards(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index names: files of its own folder, and nothing else."""
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    names = list(weight_map.values())
    for name in names:
        if not isinstance(name, str) or not _is_plain(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{index.name} names {quote(name)}, which is not a {suffix} file of its folder"
            )
    if (n_files := len(set(names))) > MAX_SHARDS:
        raise CheckpointError(f"{index.name} names {n_files} files, more than {MAX_SHARDS}")
    files = sorted(index.parent / name for name in set(names))
    if missing := [quote(file.name) for file in files if not os.path.lexists(file)]:
        raise CheckpointError(f"{index.parent.name} lacks {listed(missing)}, which its index names")
    return files


def _is_plain(name: str) -> bool:
    """Say whether a name is that of a file in a folder on every system: no path, drive or URL."""
    return name.isprintable() and not set(name) & set("/\\:") and not name.startswith(".")


def read_json(file: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return a JSON object from a file of bounded size.

    Raises:
        CheckpointError: if the file is missing, too large, or not a JSON object.
    """
    where = f"{file.parent.name}/{file.name}"
    if check_file(file) > max_bytes:
        raise CheckpointError(f"{where} is larger than {max_bytes} bytes")
    try:
        with file.open("rb") as stream:
            value = parse_json(stream.read(max_bytes))
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{where} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return value


def read_count(
    config: dict[str, Any], key: str, default: int | None = None, *, most: int = (1 << 31) - 1
) -> int:
    """Return a positive integer of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is missing without a default, or is not an integer from 1 to `most`.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= most:
        raise CheckpointError(
            f"config.json: {key} is {quote_value(value)}, not a positive integer up to {most}"
        )
    return value


def read_number(config: dict[str, Any], key: str, default: float) -> float:
    """Return a positive, finite number of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is there and is not a positive, finite number.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 1e-15 < value < 1e15:
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


def listed(items: Iterable[str], most: int = 8) -> str:
    """Return items as a text that stays short: `a, b, c and 12 more`.

    Text from a file has to be quoted before.
    """
    texts = list(items)
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def require_finite(tensors: dict[str, mx.array]) -> None:
    """Refuse weights that are not numbers; the arrays are evaluated one after the other.

    Raises:
        CheckpointError: listing the names of the tensors with NaN or an infinity.
    """
    broken = [name for name in sorted(tensors) if not mx.isfinite(tensors[name]).all().item()]
    if broken:
        raise CheckpointError(
            f"the weights are not finite numbers in {listed(broken)}: they are "
            "damaged, get the file again"
        )


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
