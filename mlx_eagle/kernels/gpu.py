"""Which Apple GPU this is, as far as kernels go."""

import re

import mlx.core as mx

# The newest generation on which kernels of this kind were seen to keep working. On later ones such
# kernels won short measurements and then held up generation for minutes (ARahim3/mlx-dspark#14).
NEWEST_GENERATION = 16  # M4


def gpu_generation() -> int | None:
    """Return the generation of the Apple GPU that MLX computes on: 13 for M1; None elsewhere."""
    if not mx.metal.is_available() or mx.default_device() != mx.gpu:
        return None
    named = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return int(named[1]) if named else None
