"""The stand-in for `mx.fast.metal_kernel`: the same arguments, the same source, on a CPU."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metal_emulator.arrays import (
    HostArray,
    dtype_name,
    new_output,
    to_host,
    to_mlx,
    to_strided_host,
)
from metal_emulator.build import build_library, check_spaces
from metal_emulator.report import EmulationError, Report
from metal_emulator.run import Launch, run_library
from metal_emulator.signature import Buffer, input_buffers, output_buffers, program


@dataclass
class Kernel:
    """A kernel to call; the arguments up to `compile_options` are those of `mx.fast.metal_kernel`.

    Attributes:
        checks: watch every load, store, index and shift; without, a run takes less time.
        strict: raise EmulationError if a run finds something; else it stands in `report` only.
        returns: "mlx" for arrays of MLX, "numpy" for NumPy's, where bfloat16 stands as uint16.
        flags: further options for the compiler.
        max_threads: of a threadgroup; a GPU allows fewer the more registers a kernel takes.
        report: what the last run found.
        compile_s: seconds that compiling took for the last run, next to nothing from the cache.
        run_s: seconds of the last run.
    """

    name: str
    input_names: Sequence[str]
    output_names: Sequence[str]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False
    compile_options: Any = None
    checks: bool = field(default=True, kw_only=True)
    strict: bool = field(default=True, kw_only=True)
    returns: str = field(default="mlx", kw_only=True)
    flags: Sequence[str] = field(default=(), kw_only=True)
    max_threads: int = field(default=1024, kw_only=True)
    report: Report = field(default_factory=Report, init=False, repr=False)
    compile_s: float = field(default=0.0, init=False)
    run_s: float = field(default=0.0, init=False)
    _libraries: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, **arguments: Any) -> list[Any]:
        """Run the kernel over a grid.

        Args:
            **arguments: those of a kernel of MLX, and the emulator's own: see Launch.

        Returns:
            The outputs.

        Raises:
            EmulationError: if the run found something and the kernel is strict.
            RuntimeError: if there is no compiler.
            SyntaxError: if the source does not compile.
            ValueError: if the threadgroup has too many threads, in MLX's words.
        """
        launch = Launch(**arguments)
        self._check_threadgroup(launch)
        outputs = self._outputs(launch)
        buffers = self._buffers(launch, outputs)
        file = self._library(buffers, launch)
        start = time.perf_counter()
        self.report = run_library(file, buffers, launch, checks=self.checks)
        self.run_s = time.perf_counter() - start
        self.report.stats |= {"compile_s": self.compile_s, "run_s": self.run_s}
        if self.strict and self.report:
            raise EmulationError(self.report)
        return [output.values if self.returns == "numpy" else to_mlx(output) for output in outputs]

    def _check_threadgroup(self, launch: Launch) -> None:
        width, height, depth = launch.threadgroup
        if (size := width * height * depth) > self.max_threads:
            raise ValueError(
                f"Thread group size ({size}) is greater than  the maximum allowed threads per "
                f"threadgroup ({self.max_threads})."
            )

    def _outputs(self, launch: Launch) -> list[HostArray]:
        asked = zip(launch.output_shapes, launch.output_dtypes, strict=True)
        return [
            new_output(tuple(shape), dtype_name(dtype), launch.init_value) for shape, dtype in asked
        ]

    def _buffers(self, launch: Launch, outputs: Sequence[HostArray]) -> list[Buffer]:
        convert = to_host if self.ensure_row_contiguous else to_strided_host
        inputs = [convert(value) for value in launch.inputs]
        return [
            *input_buffers(self.input_names, inputs, self.source),
            *output_buffers(self.output_names, outputs, self.atomic_outputs),
        ]

    def _library(self, buffers: Sequence[Buffer], launch: Launch) -> Path:
        """Return the library for these types; in this process it is looked for once."""
        text = program(buffers, self.source, self.header, launch.template or ())
        if launch.verbose:
            print(text)
        if launch.spaces:
            check_spaces(text, self.flags)
        start = time.perf_counter()
        if text not in self._libraries:
            self._libraries[text] = build_library(
                self.name, text, self.flags, is_checked=self.checks
            )
        self.compile_s = time.perf_counter() - start
        return self._libraries[text]


def metal_kernel(*arguments: Any, **options: Any) -> Kernel:
    """Make a kernel as `mx.fast.metal_kernel` does; for the emulator's own options see Kernel."""
    return Kernel(*arguments, **options)
