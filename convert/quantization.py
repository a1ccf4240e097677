"""How weights can be quantized by MLX: the modes, and what each of them allows.

Nothing here imports MLX, so that a command line is refused before anything is loaded or fetched.
"""

from typing import NamedTuple

from mlx_eagle.errors import EagleError


class Quantization(NamedTuple):
    """Bits per weight, weights that share a scale, and how the scales are stored."""

    bits: int
    group_size: int
    mode: str


class Mode(NamedTuple):
    """The bits and group sizes that a mode has; mlx-lm's defaults come first."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]


# As `mx.quantize` has them; affine's 1 bit is not offered.
MODES = {
    "affine": Mode((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": Mode((4,), (32,)),
    "nvfp4": Mode((4,), (16,)),
    "mxfp8": Mode((8,), (32,)),
}
BITS = sorted({bits for mode in MODES.values() for bits in mode.bits})
GROUP_SIZES = sorted({size for mode in MODES.values() for size in mode.group_sizes})
DTYPES = ("float16", "bfloat16", "float32")


def choose_quantization(
    mode: str = "affine", bits: int | None = None, group_size: int | None = None
) -> Quantization:
    """Return a quantization that MLX has; what is left open is as mlx-lm would choose it.

    Raises:
        EagleError: if there is no such mode, or it has no such bits or group size.
    """
    if mode not in MODES:
        raise EagleError(f"there is no mode {mode!r}: the modes are {', '.join(MODES)}")
    known = MODES[mode]
    chosen = Quantization(
        known.bits[0] if bits is None else bits,
        known.group_sizes[0] if group_size is None else group_size,
        mode,
    )
    if chosen.bits not in known.bits or chosen.group_size not in known.group_sizes:
        raise EagleError(
            f"the mode {mode} has {_either(known.bits)} bits in groups of "
            f"{_either(known.group_sizes)} weights, not {chosen.bits} bits in groups of "
            f"{chosen.group_size}"
        )
    return chosen


def _either(numbers: tuple[int, ...]) -> str:
    """Return numbers in order as a choice: `2, 3 or 4`."""
    *first, last = sorted(numbers)
    return f"{', '.join(map(str, first))} or {last}" if first else str(last)
