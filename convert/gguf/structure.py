"""The header of a GGUF file: its metadata, and where its tensors are.

No count, length, size or offset is believed before it was compared with the size of the file. The
reader of the package gguf does believe them (a count of 2**60 is a loop of that length), and needs
a kilobyte for every token; so only its constants are used here, and the tests compare with it. The
format is described in ggml's `docs/gguf.md`.
"""

import mmap
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import MAX_BYTES_VARIABLE, size_limit
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 4096
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 256
MAX_TEXT_BYTES = 8 << 20
MAX_HEADER_BYTES = 64 << 20  # 262,144 tokens and twice as many merges, of 32 bytes each, fit
MAX_ITEMS = 2_000_000  # of all arrays: a vocabulary of 262,144 tokens takes a million
MAX_AXES = 4
MAX_SIZE = 1 << 31  # of an axis: MLX counts in 32 bits
MAX_ALIGNMENT = 1 << 16

TEXT, ARRAY = 8, 9
# What numbers are, by the number of their type.
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_ALIGNMENT_KEY = "general.alignment"


class Stored(NamedTuple):
    """Where a tensor lies in a file: its bytes begin `offset` bytes behind the header."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # rows last: GGUF counts axes from the other side
    offset: int
    n_bytes: int


class Structure(NamedTuple):
    """A header: keys and values, tensors, and the byte at which their offsets are 0."""

    metadata: dict[str, Any]
    tensors: list[Stored]
    begin: int


def read_structure(file: Path) -> Structure:
    """Return the header of a GGUF file, once all of the file is known to be as it says.

    Raises:
        CheckpointError: if it is no GGUF file of a version that is read, or any count, length,
            size or offset does not fit the file or is beyond what models have.
    """
    n_bytes, limit = check_file(file), size_limit()
    if n_bytes > limit:
        raise CheckpointError(
            f"{file.name} has {n_bytes} bytes, more than the limit of {limit}: set "
            f"{MAX_BYTES_VARIABLE}={n_bytes} if you trust it"
        )
    try:
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise CheckpointError("it does not begin with GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walk(data).structure()
    except (OSError, ValueError, struct.error, CheckpointError) as error:
        raise CheckpointError(f"{file.name} is not a sound GGUF file: {error}") from error


class _Walk:
    """A walk along the header of a mapped file, from its beginning to its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)
        self._n_items = 0

    def structure(self) -> Structure:
        """Walk along the whole header and return what it says."""
        version = self._number("<I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"it is of version {version}, versions {VERSIONS[0]} and {VERSIONS[1]} are read"
            )
        n_tensors = self._bounded("<Q", MAX_TENSORS, "tensors")
        n_keys = self._bounded("<Q", MAX_KEYS, "keys")
        metadata = self._metadata(n_keys)
        found = [self._tensor() for _ in range(n_tensors)]
        alignment = _alignment(metadata)
        begin = self._at + -self._at % alignment
        _check_places(found, len(self._data) - begin, alignment)
        return Structure(metadata, found, begin)

    def _number(self, form: str) -> int:
        """Return the next whole number, of struct's `form`."""
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def _bounded(self, form: str, most: int, what: str) -> int:
        """Return the next number, a count that must not be absurd."""
        count = self._number(form)
        if count > most:
            raise CheckpointError(f"it claims {count} {what}, at most {most} are read")
        return count

    def _take(self, n_bytes: int) -> bytes:
        """Return the next bytes, which must be there."""
        if n_bytes > len(self._data) - self._at:
            raise CheckpointError("it ends before its header does")
        if self._at + n_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(f"its header has more than {MAX_HEADER_BYTES} bytes")
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def _text(self, most: int) -> str:
        """Return the next text, which has a length before it."""
        return self._take(self._bounded("<Q", most, "bytes of a text")).decode()

    def _name(self) -> str:
        """Return the next text, the name of a key or of a tensor."""
        name = self._text(MAX_NAME_BYTES)
        if not name or not name.isprintable():
            raise CheckpointError(f"{quote(name)} is not a name that a key or tensor can have")
        return name

    def _metadata(self, n_keys: int) -> dict[str, Any]:
        """Return the metadata, in which no key comes twice."""
        found: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._name()
            if key in found:
                raise CheckpointError(f"its key {quote(key)} comes twice")
            found[key] = self._value(self._number("<I"))
        return found

    def _value(self, kind: int) -> Any:
        """Return the next value of the metadata."""
        if kind == TEXT:
            return self._text(MAX_TEXT_BYTES)
        if kind == ARRAY:
            return self._array()
        return self._numbers(kind, 1)[0]

    def _array(self) -> list[Any]:
        """Return an array: of texts or of numbers, never of arrays."""
        kind, count = self._number("<I"), self._number("<Q")
        self._n_items += count
        if self._n_items > MAX_ITEMS:
            raise CheckpointError(f"its arrays have more than {MAX_ITEMS} items")
        if kind == TEXT:
            return [self._text(MAX_TEXT_BYTES) for _ in range(count)]
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        """Return the next numbers, all of a type."""
        if kind not in _NUMBERS:
            raise CheckpointError(f"it has a value of type {kind}, which is not known")
        form = np.dtype(_NUMBERS[kind])
        found: list[Any] = np.frombuffer(self._take(count * form.itemsize), form).tolist()
        return found

    def _tensor(self) -> Stored:
        """Return the next tensor."""
        name = self._name()
        n_axes = self._bounded("<I", MAX_AXES, f"axes of {quote(name)}")
        shape = tuple(self._number("<Q") for _ in range(n_axes))[::-1]
        number, offset = self._number("<I"), self._number("<Q")
        if not shape or not all(0 < size < MAX_SIZE for size in shape):
            raise CheckpointError(f"{quote(name)} has an impossible shape")
        if number not in set(GGMLQuantizationType):
            raise CheckpointError(f"{quote(name)} has the type {number}, which is not known")
        kind = GGMLQuantizationType(number)
        block, width = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise CheckpointError(
                f"{quote(name)} has rows of {shape[-1]} values, {kind.name} needs a multiple of "
                f"{block}"
            )
        return Stored(name, kind, shape, offset, prod(shape) // block * width)


def _alignment(metadata: dict[str, Any]) -> int:
    """Return a number of which the place of every tensor is a multiple."""
    value = metadata.get(_ALIGNMENT_KEY, 32)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise CheckpointError(f"its {_ALIGNMENT_KEY} is no power of two up to {MAX_ALIGNMENT}")
    return value


def _check_places(found: list[Stored], n_bytes: int, alignment: int) -> None:
    """Refuse tensors of one name, that lie outside the file, overlap or are not aligned."""
    if len({tensor.name for tensor in found}) != len(found):
        raise CheckpointError("two of its tensors have the same name")
    for tensor, end in _with_ends(sorted(found, key=lambda tensor: tensor.offset)):
        if tensor.offset % alignment or tensor.offset < end:
            raise CheckpointError(
                f"{quote(tensor.name)} overlaps another tensor, or is not aligned"
            )
        if tensor.offset + tensor.n_bytes > n_bytes:
            raise CheckpointError(
                f"{quote(tensor.name)} ends behind the end of the file: its download is "
                "incomplete, start it again"
            )


def _with_ends(in_order: list[Stored]) -> Iterator[tuple[Stored, int]]:
    """Yield each tensor with where the one before it ends."""
    end = 0
    for tensor in in_order:
        yield tensor, end
        end = tensor.offset + tensor.n_bytes
