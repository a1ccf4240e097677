"""The source texts of the attention kernels for a shape: constants in front of the Metal source.

Constants are baked into the text instead of template arguments, and names are shortened, since
MLX builds and hashes the whole text on every call.
"""

import math
from functools import cache

import mlx.core as mx

from mlx_eagle.kernels.attention_geometry import Shape, geometry
from mlx_eagle.kernels.attention_source import (
    COMBINE,
    FIELD,
    HEADER,
    PARTIAL,
    SHARE_TOTALS,
    WRITE_TOTALS,
)
from mlx_eagle.kernels.metal_text import short_names, shortened

# Metal's name of a type, and the macro that makes a float of its 16 bits.
TYPES = {
    mx.float16: ("half", "float(as_type<half>(ushort(x)))"),
    mx.bfloat16: ("bfloat16_t", "as_type<float>(uint(x) << 16)"),
}
PACKING = ("key_scales", "key_biases", "value_scales", "value_biases")
INPUTS = ("queries", "keys", *PACKING[:2], "values", *PACKING[2:], "mask")
OUTPUTS = ("out", "sums", "totals")
MACROS = ("SCALE", "FIELD", "FLOAT", "NUMBER", "KEY_SCALE", "VALUE_SCALE", "VISIBLE", "RESULT")
VISIBLE = {
    "none": "true",
    "causal": "(key) <= length - N + (n)",
    "array": "mask[uint(n) * uint(mask_strides[0]) + uint(key) * uint(mask_strides[1])]",
}


def input_names(shape: Shape) -> list[str]:
    """Return the names of the arrays that the kernels of a shape read."""
    names = [name for name in INPUTS if shape.group_size or name not in PACKING]
    return names if shape.mask == "array" else names[:-1]


def whole_source(shape: Shape) -> str:
    """Return the body of the kernel that attends to a context in one split."""
    result = f"{TYPES[shape.dtype][0]}((x) / factor[8 * t + fm])"
    return short(_constants(shape, result) + PARTIAL.replace("FINISH", SHARE_TOTALS))


def split_source(shape: Shape) -> str:
    """Return the body of the kernel that attends to each split of a context."""
    return short(_constants(shape, "(x)") + PARTIAL.replace("FINISH", WRITE_TOTALS))


def combine_source(shape: Shape) -> str:
    """Return the body of the kernel that weighs the sums of splits."""
    sizes = f"constexpr int D = {shape.head_dim}, Q = {shape.queries};"
    return short(f"{sizes}\nusing T = {TYPES[shape.dtype][0]};\n{COMBINE}")


def short(code: str) -> str:
    """Return a part of the kernels' text without comments, needless spaces and long names."""
    return shortened(code, _names())


@cache
def _names() -> dict[str, str]:
    codes = (HEADER, PARTIAL, WRITE_TOTALS, SHARE_TOTALS, COMBINE, FIELD, *MACROS)
    names = short_names(*codes)
    return {name: names[name] for name in names if name not in (*INPUTS, *OUTPUTS)}


def _constants(shape: Shape, result: str) -> str:
    """Return the lines before the source; `result` makes a number of the output of a sum `x`."""
    tiles, _, simdgroups, _, _ = geometry(shape)
    sizes = {
        "D": shape.head_dim,
        "N": shape.rows,
        "G": shape.heads_per_kv_head,
        "Q": shape.queries,
        "QT": tiles,
        "S": simdgroups,
        "CT": shape.head_dim // 8 // simdgroups,
        "BITS": shape.bits,
        "GS": shape.group_size or shape.head_dim,
        "UNIT": _unit(shape.head_dim, shape.bits),
    }
    constants = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    defines = "".join(f"#define {name} {text}\n" for name, text in _macros(shape, result).items())
    return f"constexpr int {constants};\n{defines}"


def _macros(shape: Shape, result: str) -> dict[str, str]:
    quantized = shape.group_size > 0
    return {
        "SCALE": f"{shape.scale * math.log2(math.e)!r}f",
        "FIELD(i)": FIELD,
        "FLOAT(x)": TYPES[shape.dtype][1],
        "NUMBER(x)": "fma(scale, float(x), bias)" if quantized else "FLOAT(x)",
        "KEY_SCALE(row, i)": _scale("key") if quantized else "",
        "VALUE_SCALE(row, i)": _scale("value") if quantized else "",
        "VISIBLE(n, key)": VISIBLE[shape.mask],
        "RESULT(x)": result,
    }


def _unit(head_dim: int, bits: int) -> int:
    """Return how many numbers of a key 4 lanes load at once: 16 bytes each, if the width allows."""
    return next(n for n in (128, 64, 32, 16) if n * bits <= 512 and head_dim % n == 0)


def _scale(of: str) -> str:
    """Return the declarations of the scale and bias of group `i` in `row`."""
    lines = []
    for name, part in (("scale", f"{of}_scales"), ("bias", f"{of}_biases")):
        at = f"uint(head) * uint({part}_strides[1]) + uint(row) * uint({part}_strides[2])"
        lines.append(f"const float {name} = float({part}[{at} + uint(i)]);")
    return " ".join(lines)
