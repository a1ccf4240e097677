"""A multi-token prediction layer taken out of its target's checkpoint, and nothing else read.

Of a checkpoint, here or on the hub, this reads config.json, the index of its files, the headers of
those that hold the layer, and the bytes of its tensors. They are written as a folder that
`convert/heads.py` converts: the tensors under their published names, and the configuration.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlx_eagle.convert.mtp.facts import SOURCE
from mlx_eagle.convert.mtp.layouts import LAYOUTS, family_of, head_names, is_norm, is_standalone
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.folders import MAX_INDEX_BYTES
from mlx_eagle.files.json_files import MAX_CONFIG_BYTES, parse_json
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.files.safetensors import MAX_HEADER_BYTES

INDEX = "model.safetensors.index.json"
# Where tools put the layer beside a model that is quantized for MLX.
SIDECARS = (
    *("mtp.safetensors", "model-mtp.safetensors", "model_mtp.safetensors"),
    *("mtp/model.safetensors", "mtp/weights.safetensors", "mtp/mtp.safetensors"),
)
CHUNK = 32 << 20  # bytes that are asked for at once
MAX_HEAD_BYTES = 64 << 30

Progress = Callable[[int, int], None]


class Checkpoint(Protocol):
    """The files of a model, of which parts can be read."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file, by its path in the model's folder."""

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end` of a file."""


class LocalCheckpoint:
    """A model's folder on this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        found = [*folder.glob("*"), *folder.glob("mtp/*")]
        self.files = {
            str(file.relative_to(folder)): file.stat().st_size for file in found if file.is_file()
        }

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end` of a file."""
        with (self.folder / file).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)


class Tensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        name: as it is written: published, or as it would be in its target's checkpoint.
        file: that holds it.
        entry: its dtype and shape, as in the file's header.
        start: of its bytes in the file.
        end: likewise.
    """

    name: str
    file: str
    entry: dict[str, Any]
    start: int
    end: int


class Layer(NamedTuple):
    """A layer that was found: its target's configuration, its tensors, and whose copy it is."""

    config: dict[str, Any]
    tensors: list[Tensor]
    is_original: bool


def find_layer(checkpoint: Checkpoint) -> Layer:
    """Return where the layer of a checkpoint lies; its tensors are not read.

    Raises:
        CheckpointError: if it has none, or its files are malformed.
    """
    config = _json(checkpoint, "config.json", MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise CheckpointError(f"{checkpoint.name}: config.json is not an object")
    is_original = "quantization" not in config and not is_standalone(config)
    tensors = list[Tensor]()
    for file in _files_with_heads(checkpoint, config):
        found, metadata = _header(checkpoint, file)
        names = _names(found, config, file)
        tensors += [found[name]._replace(name=theirs) for name, theirs in names.items()]
        is_original = is_original and file not in SIDECARS and metadata.get("format") == "pt"
    if not tensors:
        raise CheckpointError(_why_none(checkpoint, config))
    if sum(tensor.end - tensor.start for tensor in tensors) > MAX_HEAD_BYTES:
        raise CheckpointError(f"{checkpoint.name}: its layer has more than {MAX_HEAD_BYTES} bytes")
    return Layer(config, sorted(tensors, key=lambda t: (t.file, t.start)), is_original)


def only_norms(layer: Layer) -> Layer:
    """Return the norms of a layer alone, some ten thousand bytes."""
    names = head_names([tensor.name for tensor in layer.tensors], layer.config)
    return layer._replace(tensors=[t for t in layer.tensors if is_norm(names.get(t.name, ""))])


def write_layer(
    checkpoint: Checkpoint, layer: Layer, out: Path, report: Progress = lambda done, total: None
) -> None:
    """Read the tensors of a layer and write them to a new folder `out`, with its configuration.

    Raises:
        EagleError: if `out` exists, or a file cannot be read.
    """
    source = {"name": checkpoint.name, "is_original": layer.is_original}
    with new_folder(out) as folder:
        config = json.dumps(layer.config | {SOURCE: source}, indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        with (folder / "model.safetensors").open("wb") as stream:
            at = stream.write(_new_header(layer))
            total = sum(t.end - t.start for t in layer.tensors)
            for file, start, end in _ranges(layer.tensors):
                stream.write(checkpoint.read(file, start, end))
                report(stream.tell() - at, total)


def _ranges(tensors: list[Tensor]) -> Iterator[tuple[str, int, int]]:
    """Yield what to read, (file, start, end): neighbours together, a chunk at most."""
    runs: list[tuple[str, int, int]] = []
    for tensor in tensors:
        if runs and runs[-1][0] == tensor.file and runs[-1][2] == tensor.start:
            runs[-1] = (tensor.file, runs[-1][1], tensor.end)
        else:
            runs.append((tensor.file, tensor.start, tensor.end))
    for file, start, end in runs:
        for at in range(start, end, CHUNK):
            yield file, at, min(at + CHUNK, end)


def _new_header(layer: Layer) -> bytes:
    """Return the header of a safetensors file that holds the tensors in their order."""
    at, header = 0, dict[str, Any]()
    for tensor in layer.tensors:
        n_bytes = tensor.end - tensor.start
        header[tensor.name] = tensor.entry | {"data_offsets": [at, at + n_bytes]}
        at += n_bytes
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data


def _files_with_heads(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    """Return the files that may hold the layer: those that an index names, or one beside it."""
    files = checkpoint.files
    beside = [file for file in SIDECARS if file in files]
    if INDEX not in files:
        return beside or [file for file in ("model.safetensors",) if file in files]
    index = _json(checkpoint, INDEX, MAX_INDEX_BYTES)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(f"{checkpoint.name}: {INDEX} has no weight_map")
    shards = sorted({places[name] for name in head_names(places, config)})
    if missing := [quote(file) for file in shards if file not in files]:
        raise CheckpointError(
            f"{checkpoint.name} lacks {listed(missing)}, which its index says hold the layer"
        )
    return shards or beside


def _names(found: Mapping[str, Tensor], config: dict[str, Any], file: str) -> dict[str, str]:
    """Return the tensors of the layer in a file, and the names that they are written under."""
    names = {name: name for name in head_names(found, config)}
    if not names and file in SIDECARS:
        return {name: f"mtp.{name}" for name in found}
    return names


def _header(checkpoint: Checkpoint, file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file by name, and its metadata."""
    n_bytes = checkpoint.files[file]
    first = checkpoint.read(file, 0, min(8, n_bytes))
    (length,) = struct.unpack("<Q", first) if len(first) == 8 else (n_bytes,)
    where = f"{checkpoint.name}: {file} is not a sound safetensors file"
    if length > min(MAX_HEADER_BYTES, n_bytes - 8):
        raise CheckpointError(f"{where}: its header claims {length} bytes of {n_bytes}")
    try:
        header = parse_json(checkpoint.read(file, 8, 8 + length))
        metadata = header.pop("__metadata__", None) or {}
        found = {n: _tensor(n, file, entry, 8 + length) for n, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: its header is malformed") from error
    if outside := [quote(n) for n, t in found.items() if not t.start <= t.end <= n_bytes]:
        raise CheckpointError(f"{where}: {listed(outside)} lie outside of it")
    return found, metadata


def _tensor(name: str, file: str, entry: dict[str, Any], base: int) -> Tensor:
    """Return what an entry of a header says; whether it fits is looked at when it is loaded."""
    start, end = (int(offset) for offset in entry["data_offsets"])
    if start < 0:
        raise ValueError("an offset is negative")
    kept = {"dtype": str(entry["dtype"]), "shape": [int(n) for n in entry["shape"]]}
    return Tensor(name, file, kept, base + start, base + end)


def _json(checkpoint: Checkpoint, file: str, most: int) -> Any:
    """Return what a JSON file of a checkpoint says."""
    n_bytes = checkpoint.files.get(file)
    if n_bytes is None or n_bytes > most:
        found = "none" if n_bytes is None else f"one of {n_bytes} bytes"
        raise CheckpointError(
            f"{checkpoint.name} should have a {file} of at most {most} bytes, and has {found}"
        )
    try:
        return parse_json(checkpoint.read(file, 0, n_bytes))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint.name}: {file} is not readable JSON") from error


def _why_none(checkpoint: Checkpoint, config: dict[str, Any]) -> str:
    """Say why a checkpoint has no layer, and where there may be one."""
    text = json.dumps(config)
    announced = any(key in text for key in ("mtp_num_hidden_layers", "num_nextn_predict_layers"))
    claim = "config.json announces one, and no file holds it" if announced else "no file holds one"
    family = family_of(config)
    known = f"; the publisher's {LAYOUTS[family].label} checkpoint may have it" if family else ""
    return f"{checkpoint.name} has no multi-token prediction layer: {claim}{known}"
