"""Arrays on their way into a kernel and out of it, as NumPy holds them."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

# What MLX calls a type in the source that it generates.
METAL_TYPES = {
    "float32": "float",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "bool": "bool",
}


class HostArray(NamedTuple):
    """Values in NumPy with the name of their type; bfloat16 stands there as its bits in uint16."""

    values: NDArray[Any]
    dtype: str


def dtype_name(dtype: Any) -> str:
    """Return the name of a type of MLX or NumPy.

    Raises:
        ValueError: if no kernel takes that type.
    """
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in METAL_TYPES and not isinstance(dtype, mx.Dtype):
        name = str(np.dtype(dtype))
    if name not in METAL_TYPES:
        raise ValueError(f"a Metal kernel takes no {name}; it takes {', '.join(METAL_TYPES)}")
    return name


def to_host(value: Any) -> HostArray:
    """Return an input as a row-contiguous NumPy array, evaluated; Python numbers become scalars."""
    if not isinstance(value, mx.array):
        value = mx.array(value)
    name = dtype_name(value.dtype)
    if name == "bfloat16":  # NumPy has no such type, and MLX views no scalar as another type
        bits = np.array(value.reshape(-1).view(mx.uint16)).reshape(value.shape)
        return HostArray(bits, name)
    # np.ascontiguousarray would turn a scalar into an array of one dimension.
    return HostArray(np.array(value, order="C"), name)


def to_strided_host(value: Any) -> HostArray:
    """Return an input in its own memory with its own strides, as MLX passes it on if told to."""
    value = value if isinstance(value, mx.array) else mx.array(value)
    name = dtype_name(value.dtype)
    if value.ndim == 0:
        return to_host(value)
    return HostArray(np.asarray(value.view(mx.uint16) if name == "bfloat16" else value), name)


def extent(values: NDArray[Any]) -> int:
    """Return the bytes from an array's first element to the end of its last, gaps included."""
    if values.size == 0:
        return 0
    steps = zip(values.shape, values.strides, strict=True)
    return values.itemsize + sum((size - 1) * stride for size, stride in steps)


def to_mlx(array: HostArray) -> mx.array:
    """Return what a kernel wrote as an array of MLX, in its own type."""
    result = mx.array(array.values)
    if array.dtype != "bfloat16":
        return result
    return result.reshape(-1).view(mx.bfloat16).reshape(array.values.shape)


def new_output(shape: tuple[int, ...], dtype: str, init_value: float | None) -> HostArray:
    """Return memory for an output: full of `init_value`, or of bits that are NaN in floats."""
    if init_value is not None:
        wanted = getattr(mx, "bool_" if dtype == "bool" else dtype)
        return to_host(mx.full(shape, init_value, wanted))
    held = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.full(count * held.itemsize, 0xFF, np.uint8)
    return HostArray(bits.view(held).reshape(shape), dtype)
