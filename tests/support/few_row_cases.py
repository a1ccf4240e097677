"""Quantized products of a few rows: cases, and what the exact product is."""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.kernels.shapes import DTYPES, Shape, Weights


class Case(NamedTuple):
    """A product to compute: rows, and the matrices of a shape."""

    shape: Shape
    rows: mx.array
    weights: list[Weights]


def make_case(shape: Shape, n_rows: int, seed: int = 0) -> Case:
    """Return random rows [1, M, K], some inputs of which are large, and matrices for a shape."""
    keys = iter(mx.random.split(mx.random.key(seed), 2 * len(shape.ns) + 2))
    dtype = DTYPES[shape.dtype]
    weights = []
    for n in shape.ns:
        dense = (mx.random.normal((n, shape.k), key=next(keys)) * 0.05).astype(dtype)
        packed, scales, biases = mx.quantize(dense, group_size=shape.group, bits=shape.bits)
        added = mx.random.normal((n,), key=next(keys)).astype(dtype) if shape.has_bias else None
        weights.append(Weights(packed, scales, biases, added))
    rows = mx.random.normal((1, n_rows, shape.k), key=next(keys))
    is_outlier = mx.random.uniform(shape=(shape.k,), key=next(keys)) > 0.99
    return Case(shape, mx.where(is_outlier, 8 * rows, rows).astype(dtype), weights)


def exact(case: Case) -> list[mx.array]:
    """Return the product in float32, written with dequantized matrices."""
    rows, outputs = case.rows.astype(mx.float32), []
    for part in case.weights:
        scales, biases = part.scales.astype(mx.float32), part.biases.astype(mx.float32)
        group, bits = case.shape.group, case.shape.bits
        dense = mx.dequantize(part.packed, scales, biases, group_size=group, bits=bits)
        added = 0.0 if part.added is None else part.added.astype(mx.float32)
        outputs.append(rows @ dense.T + added)
    if not case.shape.is_gated:
        return outputs
    gate, up = outputs
    return [gate / (1 + mx.exp(-gate)) * up]


def error(found: mx.array, expected: mx.array) -> float:
    """Return the largest difference, in parts of the largest expected number."""
    difference = mx.abs(found.astype(mx.float32) - expected).max() / mx.abs(expected).max()
    return float(difference)
