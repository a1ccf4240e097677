"""Quantized products of 2 to 16 rows on Apple GPUs, in products of 8x8 matrices.

MLX multiplies few rows by reading the weights once per row (M1, M2) or once per five rows (M3, M4);
from about a dozen rows on it pays for 32. This kernel reads the weights once for up to 16 rows. It
takes MLX's affine format as it is: 4 or 8 bits, groups of 32, 64 or 128, any number of outputs.

One launch serves one layer, or up to three layers that read the same rows (the projections to
queries, keys and values), or the gate and up projections of a SwiGLU layer with their activation.
Which variant is fast, and whether any is, depends on the machine: `trial.py` measures it there.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

import mlx.core as mx

from mlx_eagle.kernels.metal_text import short_names, shortened
from mlx_eagle.kernels.shapes import DTYPES, IN_PLACE, MAGIC, Shape, Variant, Weights

THREADS = 32  # of a SIMD-group
Multiply = Callable[..., list[mx.array]]  # of rows [1, M, K]

BODY, HEADER = "few_rows.metal", "few_rows_header.metal"


class Launch:
    """The kernel for one shape, laid out in one way, for up to 8 or up to 16 rows.

    Args:
        shape: what is multiplied.
        variant: how it is laid out.
        row_tiles: of eight rows each, 1 or 2.
    """

    def __init__(self, shape: Shape, variant: Variant, row_tiles: int) -> None:
        self.shape, self.variant = shape, variant
        self._kernel = _kernel(shape, variant, row_tiles)
        width = variant.width(shape)
        n_threadgroups = sum(math.ceil(n / width) for n in shape.outputs)
        threads = variant.splits * THREADS
        self._fixed = {
            "grid": (n_threadgroups * threads, 1, 1),
            "threadgroup": (threads, 1, 1),
            "output_dtypes": [DTYPES[shape.dtype]] * len(shape.outputs),
        }

    def __call__(self, x: mx.array, weights: Sequence[Weights], **options: Any) -> list[mx.array]:
        """Multiply rows.

        Args:
            x: [1, M, K] in the type of the scales, M up to 8 or 16.
            weights: the shape's matrices, in their order.
            **options: further arguments of the kernel call, such as `init_value`.

        Returns:
            [1, M, N] for each matrix; one array [1, M, N] for a gated pair.
        """
        return self.prepared(weights, x.shape[1])(x, **options)

    def prepared(self, weights: Sequence[Weights], n_rows: int) -> Multiply:
        """Return the product for one place and number of rows, which is cheap to call."""
        n_arrays = 4 if self.shape.has_bias else 3
        arrays = [array for part in weights for array in part[:n_arrays]]
        output_shapes = [(1, n_rows, n) for n in self.shape.outputs]
        call = partial(self._kernel, output_shapes=output_shapes, **self._fixed)

        def multiply(x: mx.array, **options: Any) -> list[mx.array]:
            outputs: list[mx.array] = call(inputs=[x, *arrays], **options)
            return outputs

        return multiply


@cache
def launch(shape: Shape, variant: Variant, row_tiles: int) -> Launch:
    """Return the kernel for a shape; it is made once."""
    return Launch(shape, variant, row_tiles)


def _kernel(shape: Shape, variant: Variant, row_tiles: int) -> Any:
    """Return MLX's kernel for one launch; MLX keeps compiled ones by their name."""
    arrays = ("w", "s", "o", "b") if shape.has_bias else ("w", "s", "o")
    kind = "gated" if shape.is_gated else "bias" if shape.has_bias else "plain"
    facts = (kind, shape.dtype, shape.k, *shape.ns, shape.bits, shape.group, *variant, row_tiles)
    return mx.fast.metal_kernel(
        name="few_rows_" + "_".join(map(str, facts)).replace(" ", "_"),
        input_names=["x", *(f"{a}{i}" for i in range(len(shape.ns)) for a in arrays)],
        output_names=[f"y{i}" for i in range(len(shape.outputs))],
        source=source(shape, variant, row_tiles),
        header=shortened(text(HEADER), _names()),
    )


def source(shape: Shape, variant: Variant, row_tiles: int) -> str:
    """Return the body of the kernel: one line of constants, then few_rows.metal.

    Constants stand in the text, because MLX writes and compares the whole text at every call and
    template arguments make that slower. For the same reason names are short.
    """
    first, rest = text(BODY).split("\n", 1)
    assert first.startswith("//"), "the first line of the body makes room for the constants"
    constants = " ".join(_constants(shape, variant, row_tiles))
    return shortened(f"{constants}\n{rest}", _names())


@cache
def text(name: str) -> str:
    """Return the Metal code of a file of this package."""
    assert __package__ is not None, "this is a module of a package"
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _constants(shape: Shape, variant: Variant, row_tiles: int) -> list[str]:
    """Return the lines that say what this launch is, and which matrix a threadgroup reads."""
    width = variant.width(shape)
    numbers = {
        "K": shape.k,
        "BITS": shape.bits,
        "GROUP": shape.group,
        "NT": variant.tiles,
        "NA": width // 8,
        "RT": row_tiles,
        "SPLITS": variant.splits,
        "IN_PLACE": int(variant.codes == IN_PLACE),
        "MAGIC": int(variant.codes == MAGIC),
        "HAS_BIAS": int(shape.has_bias),
    }
    fragment = "T" if variant.codes == MAGIC else "float"
    return [
        f"using T = {shape.dtype}_t; using F = {fragment};",
        "constexpr int " + ", ".join(f"{name} = {value}" for name, value in numbers.items()) + ";",
        *_pointers(shape, width),
    ]


def _pointers(shape: Shape, width: int) -> list[str]:
    """Return the lines that pick the matrix of a threadgroup, which computes `width` outputs."""
    sizes = [math.ceil(n / width) for n in shape.outputs]
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = range(len(sizes))

    def pick(values: Sequence[object]) -> str:
        chosen = str(values[0])
        for begin, value in zip(begins[1:], values[1:], strict=True):
            chosen = f"(threadgroup_id >= {begin} ? {value} : {chosen})"
        return chosen

    lines = [
        "const int threadgroup_id = int(threadgroup_position_in_grid.x);",
        f"const int N = {pick(shape.outputs)};",
        f"const int n0 = (threadgroup_id - {pick(begins)}) * {width};",
        f"device T* y = {pick([f'y{i}' for i in parts])};",
    ]
    for name, kind in (("w", "uint"), ("s", "T"), ("o", "T")):
        lines.append(f"const device {kind}* {name}_a = {pick([f'{name}{i}' for i in parts])};")
        second = f"{name}1" if shape.is_gated else f"{name}_a"
        lines.append(f"const device {kind}* {name}_b = {second};")
    added = pick([f"b{i}" for i in parts]) if shape.has_bias else "s_a"  # which is not read then
    return [*lines, f"const device T* added = {added};"]


@cache
def _names() -> dict[str, str]:
    return short_names(text(HEADER), text(BODY))
