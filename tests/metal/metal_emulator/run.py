"""One run of a compiled kernel: its buffers copied in, the grid, and the outputs copied out."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_emulator.arrays import extent
from metal_emulator.build import load_library
from metal_emulator.report import Report, read_report
from metal_emulator.signature import Buffer

ALL_THREADGROUPS = (0, 0xFFFFFFFF)


@dataclass(kw_only=True)
class Launch:
    """What a kernel is called with; from `seed` on these are the emulator's own.

    Attributes:
        seed: other than 0, lanes and SIMD-groups take turns in an order that it decides.
        profile: count the cache lines that each load and store touches.
        threadgroups: the first threadgroup to run and how many; all of them if None.
        misalign: inputs start so many elements after a 64 KiB boundary.
        spaces: check the address spaces of pointers, in a second compilation.
    """

    inputs: Sequence[Any]
    output_shapes: Sequence[Sequence[int]]
    output_dtypes: Sequence[Any]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    template: Sequence[tuple[str, Any]] | None = None
    init_value: float | None = None
    verbose: bool = False
    stream: Any = None
    seed: int = 0
    profile: bool = False
    threadgroups: tuple[int, int] | None = None
    misalign: int = 0
    spaces: bool = False


class _BufferDescription(ctypes.Structure):
    """The runtime's BufDesc."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("nbytes", ctypes.c_uint64),
        ("element_size", ctypes.c_uint32),
        ("role", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("host", ctypes.c_void_p),
    )


INPUT, OUTPUT, FILLED_OUTPUT = 0, 1, 3


def run_library(file: Path, buffers: Sequence[Buffer], launch: Launch, *, checks: bool) -> Report:
    """Run a compiled kernel over its grid; the arrays of the outputs are written in place."""
    library = load_library(file)
    described = [_describe(buffer, launch) for buffer in buffers]
    first, count = launch.threadgroups or ALL_THREADGROUPS
    three = ctypes.c_uint32 * 3
    library.mtl_run(
        ctypes.cast(library.mtl_entry, ctypes.c_void_p),
        (_BufferDescription * len(described))(*described),
        len(described),
        three(*launch.grid),
        three(*launch.threadgroup),
        ctypes.c_uint32(launch.seed),
        int(checks),
        int(launch.profile),
        ctypes.c_uint32(first),
        ctypes.c_uint32(count),
    )
    try:
        sizes = [(item.name.decode(), item.nbytes) for item in described]
        return read_report(library, file, sizes)
    finally:
        library.mtl_cleanup()


def _describe(buffer: Buffer, launch: Launch) -> _BufferDescription:
    """Describe a buffer to the runtime; only the caller's own inputs are misaligned."""
    values = buffer.array.values
    role = FILLED_OUTPUT if launch.init_value is not None else OUTPUT
    return _BufferDescription(
        buffer.name.encode(),
        max(extent(values), 1),
        values.itemsize,
        role if buffer.is_output else INPUT,
        launch.misalign * values.itemsize if buffer.is_caller_input else 0,
        values.ctypes.data,
    )
