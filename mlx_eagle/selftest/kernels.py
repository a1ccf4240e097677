"""What a self-test tells of few-row kernels: calibration has tried them before."""

from typing import NamedTuple

from mlx_eagle.calibration.kernels import Kernels


class KernelLook(NamedTuple):
    """Whether few-row kernels run here.

    Attributes:
        status: in words.
        products: what is multiplied, rows, time over that of MLX's kernel, and why it is not used.
        forward: time of whole forward passes with kernels over that without, by number of rows.
    """

    status: str
    products: list[tuple[str, int, float | None, str]]
    forward: dict[int, float]


def look_at_kernels(kernels: Kernels | None) -> KernelLook:
    """Return what is known of an engine's kernels."""
    if kernels is None or kernels.found is None:
        return KernelLook(kernels.status if kernels else "off", [], {})
    products = [
        (str(shape), verdict.rows, verdict.ratio, verdict.reason)
        for shape, verdicts in kernels.found.table.items()
        for verdict in verdicts
    ]
    return KernelLook(kernels.status, products, kernels.found.forward)
