"""Kernels of MLX are replaced by those of the emulator."""

from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `mx.fast.metal_kernel` make kernels that run on this CPU, and forget them afterwards."""
    from metal_emulator import metal_kernel
    from mlx_eagle.kernels import few_rows

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    few_rows.launch.cache_clear()
    yield
    few_rows.launch.cache_clear()
