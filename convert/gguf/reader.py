"""A GGUF file as metadata and tensors, whose values are read from the file when they are used."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from mlx_eagle.convert.gguf.formats import PLAIN
from mlx_eagle.convert.gguf.structure import Stored, read_structure
from mlx_eagle.errors import CheckpointError


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


def read_gguf(file: Path) -> GGUF:
    """Return the metadata and the tensors of a GGUF file; tensors are mapped, not yet read.

    Raises:
        CheckpointError: if the file is malformed, or only a part of a model.
    """
    metadata, stored, begin = read_structure(file)
    content = np.memmap(file, mode="r")
    tensors = {place.name: _tensor(place, content[begin:]) for place in stored}
    n_parts = metadata.get("split.count")
    if isinstance(n_parts, int) and n_parts > 1:
        raise CheckpointError(
            f"{file.name} is one of {n_parts} parts of a model: join them first, with llama.cpp's "
            "llama-gguf-split --merge"
        )
    return GGUF(file.name, metadata, tensors)


def _tensor(place: Stored, content: NDArray[np.uint8]) -> Tensor:
    """Return a tensor; its bytes [n] stand in `content` at its offset."""
    stored = np.asarray(content[place.offset : place.offset + place.n_bytes])
    if place.kind in PLAIN:
        data: NDArray[Any] = stored.view(PLAIN[place.kind]).reshape(place.shape)
    else:
        data = stored.reshape(*place.shape[:-1], -1)
    return Tensor(place.name, place.kind, place.shape, data)


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
