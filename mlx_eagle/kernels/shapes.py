"""What a launch of the few-row product multiplies, and the ways in which it can be laid out."""

from typing import NamedTuple

import mlx.core as mx

MOST_ROWS = 16
TILE = 8  # rows and columns of the matrices that are multiplied
MOST_THREADGROUP_BYTES = 32768  # on every Apple GPU
BITS, GROUPS = (4, 8), (32, 64, 128)
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16}
WIDE = 4096  # outputs from which there are threadgroups enough, however many each computes

# How codes become numbers, and where: few_rows.metal.
CONVERT, IN_PLACE, MAGIC = "convert", "in place", "magic"


class Weights(NamedTuple):
    """A quantized matrix as MLX keeps it.

    Attributes:
        packed: [N, K * bits / 32] uint32.
        scales: [N, K / group] in the type of the activations.
        biases: likewise; what a code times its scale is added to.
        added: [N] what the layer adds to its outputs, or None.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array
    added: mx.array | None = None


class Shape(NamedTuple):
    """What one launch multiplies.

    Attributes:
        k: inputs.
        ns: outputs of each matrix.
        bits: of a code.
        group: codes that share a scale.
        dtype: "float16" or "bfloat16".
        is_gated: whether the two matrices are gate and up of a SwiGLU layer.
        has_bias: whether the layers add something to their outputs.
    """

    k: int
    ns: tuple[int, ...]
    bits: int
    group: int
    dtype: str
    is_gated: bool = False
    has_bias: bool = False

    def __str__(self) -> str:
        """Return it as tables show it."""
        outputs = "+".join(map(str, self.ns))
        kind = " gated" if self.is_gated else ""
        return f"{self.k}->{outputs}{kind}, {self.bits} bits by {self.group}, {self.dtype}"

    @property
    def outputs(self) -> tuple[int, ...]:
        """The widths of what comes out."""
        return self.ns[:1] if self.is_gated else self.ns

    @property
    def fault(self) -> str | None:
        """Why the kernel cannot multiply this; None if it can."""
        if self.bits not in BITS or self.group not in GROUPS:
            return f"{self.bits} bits in groups of {self.group}"
        if self.dtype not in DTYPES:
            return f"scales in {self.dtype}"
        if self.k % self.group or min(self.ns) < TILE:
            return f"{self.k} inputs and {min(self.ns)} outputs"
        return None


class Variant(NamedTuple):
    """How a launch is laid out.

    Attributes:
        tiles: of eight outputs each, in a threadgroup.
        splits: SIMD-groups of a threadgroup; each takes a share of the groups of k.
        codes: how codes become numbers.
    """

    tiles: int
    splits: int
    codes: str

    def __str__(self) -> str:
        """Return it as tables show it."""
        return f"{8 * self.tiles} outputs, {self.splits} splits, {self.codes}"

    def width(self, shape: Shape) -> int:
        """Return how many outputs of a matrix a threadgroup computes."""
        return TILE * (self.tiles // 2 if shape.is_gated else self.tiles)


CANDIDATES = (
    Variant(4, 8, CONVERT),
    Variant(4, 8, IN_PLACE),
    Variant(4, 8, MAGIC),
    Variant(2, 16, CONVERT),
    Variant(2, 8, CONVERT),
    Variant(8, 4, CONVERT),
)


def candidates(shape: Shape, rows: int) -> list[Variant]:
    """Return the variants that exist for a shape and a number of rows, the likeliest first."""
    found = [variant for variant in CANDIDATES if _exists(variant, shape, rows)]
    # Few outputs make few threadgroups: the narrow ones come first.
    return found if min(shape.ns) >= WIDE else sorted(found, key=lambda variant: variant.tiles)


def row_tiles(rows: int) -> int:
    """Return how many tiles of eight rows a launch multiplies at once."""
    return 1 if rows <= TILE else 2


def _exists(variant: Variant, shape: Shape, rows: int) -> bool:
    """Say whether there is such a kernel."""
    partial_sums = variant.splits * row_tiles(rows) * variant.tiles * TILE * TILE
    if 4 * partial_sums > MOST_THREADGROUP_BYTES or variant.splits > shape.k // shape.group:
        return False
    # The offset of bfloat16's eight bits leaves no room for codes of eight.
    return variant.codes != MAGIC or shape.bits == 4 or shape.dtype == "float16"
