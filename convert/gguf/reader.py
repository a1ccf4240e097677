"""A GGUF file as metadata and tensors: read by the package gguf once it was checked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from mlx_eagle.convert.gguf.structure import check_structure
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import one_line

SUFFIX = ".gguf"
# What the package raises for what it cannot read.
_UNSOUND = (OSError, ValueError, LookupError, TypeError, OverflowError)


class Tensor(NamedTuple):
    """A tensor of a GGUF file; its values are read from the file when they are used.

    Attributes:
        name: in the file.
        kind: how its values are stored.
        shape: of its values, rows last.
        data: as stored: numbers, or the bytes [..., bytes of a row] of quantized blocks.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[Any]

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes in the file."""
        return int(self.data.nbytes)


class GGUF(NamedTuple):
    """What a GGUF file says, and its tensors by name."""

    name: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def is_gguf(file: Path) -> bool:
    """Say whether a path is a file that begins as GGUF files do, whatever it is called."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def read_gguf(file: Path) -> GGUF:
    """Return the metadata and the tensors of a GGUF file; tensors are mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed, or only a part of a model.
    """
    stored = check_structure(file)
    try:
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {t.name: t for t in map(_tensor, reader.tensors)}
    except _UNSOUND as error:
        raise CheckpointError(f"{file.name} is not a sound GGUF file: {one_line(error)}") from error
    if list(tensors) != [tensor.name for tensor in stored]:
        raise CheckpointError(f"{file.name} is not a sound GGUF file: its tensors are ambiguous")
    n_parts = metadata.get("split.count")
    if isinstance(n_parts, int) and n_parts > 1:
        raise CheckpointError(
            f"{file.name} is one of {n_parts} parts of a model: join them first, with llama.cpp's "
            "llama-gguf-split --merge"
        )
    return GGUF(file.name, metadata, tensors)


def _tensor(found: Any) -> Tensor:
    """Return a tensor of the package's as one of ours."""
    shape = tuple(int(size) for size in reversed(found.shape))
    data = np.asarray(found.data)
    if found.tensor_type == GGMLQuantizationType.BF16:
        data = data.view(np.uint16).reshape(shape)
    return Tensor(found.name, found.tensor_type, shape, data)


def chunks(rows: int, width: int, most: int = 1 << 22) -> Iterator[slice]:
    """Yield slices of rows that have at most so many values together, and one row at least.

    Args:
        rows: how many there are.
        width: values of a row.
        most: values of a slice.
    """
    step = max(most // max(width, 1), 1)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))
