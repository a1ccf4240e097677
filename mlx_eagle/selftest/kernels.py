"""What a self-test tells of few-row kernels: calibration has tried them before."""

from typing import NamedTuple

from mlx_eagle.calibration.kernels import Kernels


class KernelLook(NamedTuple):
    """Whether few-row kernels run here.

    Attributes:
        status: in words.
        tried: what was tried, and by number of rows the time over that of MLX's kernel and why it
            is not used.
        forward: time of whole forward passes with kernels over that without, by number of rows.
    """

    status: str
    tried: list[tuple[str, list[str]]]
    forward: dict[int, float]


def look_at_kernels(kernels: Kernels | None) -> KernelLook:
    """Return what is known of an engine's kernels."""
    if kernels is None or kernels.found is None:
        return KernelLook(kernels.status if kernels else "off", [], {})
    return KernelLook(kernels.status, kernels.found.table.lines, kernels.found.forward)
