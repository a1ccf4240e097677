"""Metal kernels on a CPU: what `mx.fast.metal_kernel` takes, run and checked on Linux."""

from metal_emulator.kernel import Kernel, metal_kernel
from metal_emulator.report import EmulationError, Finding, Report
from metal_emulator.run import Launch

__all__ = ["EmulationError", "Finding", "Kernel", "Launch", "Report", "metal_kernel"]
