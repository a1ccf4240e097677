"""The processes that train one head together, through `mx.distributed`; mostly there is one.

Each has its own batches: the rows of an update are those of all processes together. Whatever is
exchanged is evaluated at once, on the CPU: a Metal graph that waits longer than a few seconds for
another machine is ended by the system.
"""

import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class Processes:
    """A group of processes, seen from one of them.

    Args:
        group: as `mx.distributed.init` gives it; None for this process alone.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    @classmethod
    def joined(cls) -> "Processes":
        """Return the group that `mlx.launch` has started this process in, or this process alone.

        Raises:
            RuntimeError: if it was started in one that cannot be joined.
        """
        if "MLX_RANK" not in os.environ:
            return cls()
        return cls(mx.distributed.init(strict=True))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average(self, gradients: Any) -> Any:
        """Return the mean over all processes of a tree of arrays."""
        if self.size == 1:
            return gradients
        mx.eval(gradients)
        mean = nn.average_gradients(
            gradients, self._group, communication_stream=mx.default_stream(mx.Device(mx.cpu))
        )
        mx.eval(mean)
        return mean

    def total(self, values: list[float]) -> list[float]:
        """Return sums over all processes; float32 where there are several."""
        if self.size == 1:
            return values
        summed = mx.distributed.all_sum(mx.array(values), group=self._group, stream=mx.cpu)
        return [float(value) for value in np.array(summed)]

    def of_first(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the arrays of the first process, bit for bit.

        Args:
            arrays: of the same names, shapes and types in every process.
        """
        if self.size == 1:
            return arrays
        return {name: self._of_first(array) for name, array in arrays.items()}

    def _of_first(self, array: mx.array) -> mx.array:
        """Add up the bits: those of the others are zeros. As numbers, -0.0 would become 0.0."""
        bits = array.view(_UNSIGNED[array.itemsize])
        mx.eval(bits)
        sent = bits if self.is_first else mx.zeros_like(bits)
        found = mx.distributed.all_sum(sent, group=self._group, stream=mx.cpu).view(array.dtype)
        mx.eval(found)
        return found
