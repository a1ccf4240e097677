"""Kernels of the package on the emulator: put in place of `mx.fast.metal_kernel`, and recorded."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from metal_emulator import Kernel, metal_kernel

UNROLL = '_Pragma("clang loop unroll(full)")'


class Emulated:
    """Takes the place of `mx.fast.metal_kernel`.

    Unrolled loops take most of the time of the C++ compiler and compute the same, so the request
    to unroll is left out unless `unrolls` is set.

    Attributes:
        launch: options of the emulator for every launch, such as `seed`.
        edit: changes the arguments a kernel is made with, or returns them as they are.
        strict: raise what the emulator finds.
        options: with which the emulator makes kernels, such as `max_threads`.
        launched: the kernels in the order of their launches.
    """

    def __init__(self, *, strict: bool = True, unrolls: bool = False) -> None:
        self.launch: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.edit: Callable[[dict[str, Any]], dict[str, Any]] = dict
        self.extra_inputs: list[mx.array] = []
        self.strict, self.unrolls = strict, unrolls
        self.launched: list[Kernel] = []

    def __call__(self, **arguments: Any) -> Callable[..., list[mx.array]]:
        edited = self.edit(arguments)
        if not self.unrolls:
            edited["header"] = edited["header"].replace(UNROLL, "")
        kernel = metal_kernel(**edited, strict=self.strict, **self.options)

        def launch(*, inputs: list[mx.array], **options: Any) -> list[mx.array]:
            self.launched.append(kernel)
            return kernel(inputs=[*inputs, *self.extra_inputs], **options, **self.launch)

        return launch

    def find(self, word: str) -> Kernel:
        """Return the last kernel launched whose name contains `word`."""
        return next(kernel for kernel in reversed(self.launched) if word in kernel.name)

    def findings(self) -> list[str]:
        """Return the kinds of all findings of the last runs."""
        return sorted({kind for kernel in self.launched for kind in kernel.report.kinds()})
