"""What verifying rows would cost with kernels for few rows: calculated from published figures.

No kernel's speed was measured on a Mac by this project. The calculation is a roofline of one
product with quantized weights in groups of 64: reading every weight once, at 0.87 of the chip's
bandwidth, and multiplying in tiles of 8 rows, at 0.76 of its float32 rate. Both shares are what
times of mlx-dspark on an M4 Pro show. The longer of the two counts whole, of the shorter one the
share that does not overlap: half of it fits those times, a tenth would be an ideal kernel.

One row stays with MLX, and so does every number of rows that MLX verifies cheaper, since a machine
decides for each of them; MLX's own costs are published curves of `curves.py`. M5 chips get no such
calculation: they need another kind of kernel, of which there is only an estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from curves import PUBLISHED, Curve, Label

TILE = 8  # rows of a matrix product's tile: fewer cost as much
MOST_ROWS = 16  # two tiles, which share the weights that were read
BANDWIDTH_SHARE, FLOPS_SHARE = 0.87, 0.76
FITTED, IDEAL = 0.5, 0.1  # share of the shorter of reading and multiplying that does not overlap
BYTES = {4: 0.5625, 8: 1.0625}  # of a weight, scale and bias of its group of 64 included
WEIGHTS_8B = 7.5e9  # that an 8B target reads for a token
USED_BANDWIDTH = 0.75  # by plain decoding of a whole model, as in `curves.py`


@dataclass(frozen=True)
class Chip:
    """A chip's published figures.

    Attributes:
        bandwidth: bytes per second.
        flops: of float32, per second.
        stock: the curve of `curves.py` for products of 4 bits as MLX has them on such chips.
    """

    bandwidth: float
    flops: float
    stock: str


def _chips(stock: str, figures: Mapping[str, tuple[float, float]]) -> dict[str, Chip]:
    """Return chips by name from their GB/s and TFLOPS."""
    return {name: Chip(gb * 1e9, tera * 1e12, stock) for name, (gb, tera) in figures.items()}


# MLX multiplies row by row on M1 and M2, and from M3 on in tiles of five rows.
CHIPS = _chips(
    "M1 Ultra Qwen3.8-27B",
    {"M1": (68, 2.617), "M1 Pro": (200, 5.308), "M1 Max": (400, 10.617)}
    | {"M1 Ultra": (800, 21.233), "M2": (100, 3.579), "M2 Pro": (200, 6.8)}
    | {"M2 Max": (400, 13.6), "M2 Ultra": (800, 27.2)},
) | _chips(
    "M4 Pro 8B",
    {"M3": (100, 4.1), "M3 Pro": (150, 7.4), "M3 Max": (400, 14.2), "M3 Ultra": (819, 28.4)}
    | {"M4": (120, 4.6), "M4 Pro": (273, 9.2), "M4 Max": (546, 18.4)},
)
M5_MAX = Chip(614e9, 18e12, "M5 Max 70B, after")


def roofline(chip: Chip, n_rows: int, bits: int = 4, apart: float = FITTED) -> float:
    """Return the cost of `n_rows` in a kernel for few rows, relative to reading the weights once.

    Args:
        chip: whose bandwidth and rate.
        n_rows: rows of activations.
        bits: of a weight.
        apart: share of the shorter of reading and multiplying that does not overlap.
    """
    reading = BYTES[bits] / (BANDWIDTH_SHARE * chip.bandwidth)
    flop = 2 * TILE * -(-n_rows // TILE)
    multiplying = flop / (FLOPS_SHARE * chip.flops)
    longer, shorter = max(reading, multiplying), min(reading, multiplying)
    return (longer + apart * shorter) / reading


def plain_ms(chip: Chip, n_bytes: float) -> float:
    """Return the milliseconds of a plain step that reads so many bytes."""
    return 1e3 * n_bytes / (USED_BANDWIDTH * chip.bandwidth)


def stock(chip: Chip, bits: int = 4) -> Curve:
    """Return what MLX's own products cost on a chip: published for 4 bits, estimated for 8."""
    known = PUBLISHED[chip.stock]
    milliseconds = plain_ms(chip, WEIGHTS_8B * BYTES[bits])
    if bits == 4:
        return replace(known, plain_ms=milliseconds)
    rows, source = dict(known.rows), f"as at 4 bits ({known.source})"
    if chip.stock == "M4 Pro 8B":
        # mlx-dspark times 8 rows of 17408x5120 at 0.664 ms; a row is calculated. Fewer cost less.
        row_ms = 1e3 * 17408 * 5120 * BYTES[8] / (BANDWIDTH_SHARE * CHIPS["M4 Pro"].bandwidth)
        rows = {n: min(cost, 0.664 / row_ms) for n, cost in rows.items()}
        source += ", at most mlx-dspark's 8 rows at 8 bits on an M4 Pro"
    return Curve(rows, milliseconds, source, "estimate")


def cheaper(own: Curve, rows: Mapping[int, float], source: str, label: Label) -> Curve:
    """Return the curve of a machine that takes what is cheaper at every number of rows."""
    numbers = sorted({*own.rows, *rows})
    costs = {n: min(known[n] for known in (own.rows, rows) if n in known) for n in numbers}
    return replace(own, rows=costs, source=f"{source}, or {own.source}", label=label)


def with_kernel(chip: Chip, bits: int = 4, apart: float = FITTED) -> Curve:
    """Return what products cost with a kernel for 2 to 16 rows beside MLX's own."""
    rows = {n: roofline(chip, n, bits, apart) for n in range(2, MOST_ROWS + 1)}
    kind = "fitted to mlx-dspark's times" if apart == FITTED else "an ideal kernel"
    return cheaper(stock(chip, bits), rows, f"roofline, {apart} apart: {kind}", "calculated")


@dataclass(frozen=True)
class Attention:
    """A target's shapes, where several query heads share a head of keys and values.

    Where attention is one pass, further rows are taken to read nothing more: too cheap, since
    vllm-metal#503 times 4 rows at 8k tokens at 2.1 times one. What matters here is the step.

    Attributes:
        weights: that are read for a token.
        layers, heads, kv_heads, head_dim: as its configuration says.
    """

    weights: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128

    def fused(self, n_tokens: int) -> float:
        """Return the bytes that attention to cached tokens reads where MLX does it in one pass."""
        return 4.0 * self.layers * self.kv_heads * self.head_dim * n_tokens

    def is_fused(self, n_rows: int) -> bool:
        """Say whether MLX does attention of so many rows in one pass: 8 at most, or very many."""
        return n_rows > TILE or n_rows * (self.heads // self.kv_heads) <= 32

    def unfused(self, n_rows: int, n_tokens: int, *, are_shared: bool) -> float:
        """Return the bytes moved otherwise: scores in 16 bits are written and read back twice.

        Keys and values are read once where query heads that share them find them in a cache (if
        `are_shared`), else once per query head.
        """
        reads = 1 if are_shared else self.heads // self.kv_heads
        scores = 2.0 * self.layers * self.heads * n_rows * n_tokens
        return reads * self.fused(n_tokens) + 4 * scores


# Five and eight query heads to one of keys: MLX's kernel ends above 6 and above 4 rows.
SHARING = {
    "Qwen3-14B": Attention(14.0e9, 40, 40, 8),
    "Qwen3-32B": Attention(32.0e9, 64, 64, 8),
}
CACHED = 8192  # tokens
READS = {"read once": True, "read by each head": False}
MLX, KERNEL, BEST_KERNEL = "MLX", "kernel", "ideal kernel"  # ends of names


def with_attention(products: Curve, chip: Chip, target: Attention, *, are_shared: bool) -> Curve:
    """Return a curve of products of 4 bits with attention to 8192 tokens as MLX has it."""
    weights, cached = target.weights * BYTES[4], target.fused(CACHED)

    def cost(n_rows: int) -> float:
        is_fused = target.is_fused(n_rows)
        moved = cached if is_fused else target.unfused(n_rows, CACHED, are_shared=are_shared)
        return (weights * products.rows[n_rows] + moved) / (weights + cached)

    rows = {n: cost(n) for n in products.rows}
    source = f"{products.source}; attention by the bytes that MLX's source says it moves"
    return Curve(rows, plain_ms(chip, weights + cached), source, "calculated")


def _of_chips(bits: int) -> dict[str, Curve]:
    """Return the curves of all chips, by chip and kernel."""
    found = {}
    for name, chip in CHIPS.items():
        found[f"{name}, {bits} bits, {MLX}"] = stock(chip, bits)
        found[f"{name}, {bits} bits, {KERNEL}"] = with_kernel(chip, bits)
        found[f"{name}, {bits} bits, {BEST_KERNEL}"] = with_kernel(chip, bits, IDEAL)
    return found


def _of_m5() -> dict[str, Curve]:
    """Return the curves of an M5 Max."""
    own = stock(M5_MAX)
    flat = dict.fromkeys(range(2, MOST_ROWS + 1), 1.2)
    source = "1.2 flat with the neural accelerators, whose rate others estimate"
    name = "M5 Max, 4 bits"
    return {f"{name}, {MLX}": own, f"{name}, {KERNEL}": cheaper(own, flat, source, "estimate")}


def _of_attention() -> dict[str, Curve]:
    """Return curves of targets whose attention leaves MLX's kernel: the cheap and the dear end."""
    found = {}
    for name, target, reads in product(("M1 Max", "M3 Max", "M4 Pro"), SHARING, READS):
        chip, machine = CHIPS[name], f"{name}, {target}, cache {reads}"
        for kind, products in ((MLX, stock(chip)), (KERNEL, with_kernel(chip))):
            found[f"{machine}, {kind}"] = with_attention(
                products, chip, SHARING[target], are_shared=READS[reads]
            )
    return found


BY_TABLE = {
    "4 bits": _of_chips(4) | _of_m5(),
    "8 bits": _of_chips(8),
    "attention": _of_attention(),
}
KERNEL_CURVES: dict[str, Curve] = {
    name: curve for curves in BY_TABLE.values() for name, curve in curves.items()
}
