"""Metal kernels on a CPU: what `mx.fast.metal_kernel` takes, run and checked on Linux."""

from metal_emulator.driver import EmulationError, Kernel, Report, metal_kernel

__all__ = ["EmulationError", "Kernel", "Report", "metal_kernel"]
