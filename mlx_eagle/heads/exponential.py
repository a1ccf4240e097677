"""The exponential function and what is made of it, as fast on a CPU as training needs it.

MLX's CPU backend calls the C library for every number. Training takes the exponential of some
hundred million scores per update there, which then is most of its time. Multiplications and
additions are done many at a time, so a polynomial is several times faster. On a GPU it is MLX's.
"""

import math
from typing import cast

import mlx.core as mx
from mlx_lm.models.activations import swiglu as silu_and_times

# 2^f for f in [-0.5, 0.5]: the terms of exp(f ln 2), whose rest is below 2e-7 of the value.
_TERMS = [math.log(2) ** n / math.factorial(n) for n in range(7)]
_MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to a whole number
_MAGIC_BITS = 0x4B400000
# Below 2^-60 it is 0: beside a 1 that is nothing in float32, and products of numbers so small would
# have no leading bit (denormals), with which a CPU is many times slower.
_LEAST = -60.0


def exponential(x: mx.array) -> mx.array:
    """Return e^x for x [..] at most 0, as scores are once their largest is taken off them."""
    if mx.default_device() != mx.Device(mx.cpu) or x.dtype != mx.float32:
        return mx.exp(x)
    return _polynomial(x)


def softmax(scores: mx.array) -> mx.array:
    """Return the softmax over the last axis of scores [.., N]; -inf stands for 0."""
    weights = exponential(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@mx.compile
def _polynomial(x: mx.array) -> mx.array:
    """Return e^x = 2^n 2^f: n goes into the exponent's bits, f through a polynomial."""
    exponent = mx.maximum(x * (1 / math.log(2)), _LEAST - 1)
    shifted = exponent + _MAGIC
    fraction = exponent - (shifted - _MAGIC)
    power = fraction * _TERMS[-1] + _TERMS[-2]
    for term in reversed(_TERMS[:-2]):
        power = power * fraction + term
    scale = mx.left_shift(shifted.view(mx.int32) - (_MAGIC_BITS - 127), 23).view(mx.float32)
    return power * scale * (exponent >= _LEAST)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return silu(gate) * up, as the MLP of a decoder layer has it; all are of the same shape."""
    if mx.default_device() != mx.Device(mx.cpu) or gate.dtype != mx.float32:
        found: mx.array = silu_and_times(gate, up)
    else:
        found = cast(mx.array, _swiglu(gate, up))
    return found


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return silu(gate) * up."""
    return gate * _sigmoid(gate) * up


@_swiglu.vjp
def _swiglu_gradient(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the gradients of gate and up; the sigmoid is computed again rather than kept."""
    gate, up = mx.depends(list(primals), [cotangent])
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


def _sigmoid(x: mx.array) -> mx.array:
    """Return 1 / (1 + e^-x) by the exponential of what is at most 0."""
    small = _polynomial(-mx.abs(x))
    share = small / (1 + small)  # the sigmoid of -|x|
    return mx.where(x >= 0, 1 - share, share)
