"""Whether a few-row kernel is right on this machine, and then whether it is faster than MLX.

Right first: on the model's own weights and activations its distance from a product in float32 is
no more than that of MLX's kernel. Then faster: in chains of products that wait for one another,
over several layers of a shape, so that weights come from memory as they do in a forward pass. The
two take turns (first one, then twice the other, then the first again), so that a machine that
becomes slower meanwhile slows down both.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.models.activations import swiglu

from mlx_eagle.kernels.few_rows import Launch, launch
from mlx_eagle.kernels.shapes import (
    MOST_ROWS,
    TILE,
    Shape,
    Variant,
    Weights,
    candidates,
    row_tiles,
)

ROWS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)
AS_RIGHT = 1.25  # times the error of MLX's kernel
WORST = 2.0  # units in the last place of the largest output
FASTER = 0.95  # share of the time of MLX's kernel
CHAINS = 5  # timed of each kind; their median counts
STEPS = 8  # products of a chain, at least
NOT_FASTER = "not faster"  # a reason

Matrices = Sequence[Weights]  # those of one site


class Verdict(NamedTuple):
    """What was found for one number of rows.

    Attributes:
        rows: how many.
        variant: the kernel to use; None for MLX's.
        ratio: its time over that of MLX's kernel; None where none was timed.
        reason: why MLX's kernel is used; "" where it is not.
    """

    rows: int
    variant: Variant | None
    ratio: float | None = None
    reason: str = ""


def try_shape(
    shape: Shape, sites: Sequence[Matrices], rows: mx.array, *, is_timed: bool = True
) -> Iterator[Verdict]:
    """Try the kernel on one shape.

    Args:
        shape: what is multiplied.
        sites: the matrices of each place in the model that has this shape.
        rows: [1, 16, K] activations of the model.
        is_timed: False takes what is right, however slow it is.
    """
    for most in (TILE, MOST_ROWS):
        counts = [n for n in ROWS if row_tiles(n) == row_tiles(most)]
        if not counts:
            continue
        chosen, why = _choose(shape, sites, rows[:, :most], is_timed=is_timed)
        for n in counts:
            if chosen is None:
                yield Verdict(n, None, None, why)
            else:
                yield _judge(shape, sites, rows[:, :n], chosen, is_timed=is_timed)


def fault(kernel: Launch, sites: Sequence[Matrices], rows: mx.array) -> str | None:
    """Return what is wrong with what a kernel computes; None if nothing is.

    Args:
        kernel: as it is laid out.
        sites: the first, a middle and the last of them are tried.
        rows: [1, M, K] activations.
    """
    unit = 2.0**-10 if kernel.shape.dtype == "float16" else 2.0**-7
    for matrices in (sites[0], sites[len(sites) // 2], sites[-1]):
        exact = _in_float32(kernel.shape, rows, matrices)
        stock = stock_product(kernel.shape, rows, matrices)
        # What a kernel leaves out shows: it is not a number.
        found = kernel(rows, matrices, init_value=float("nan"))
        again = kernel(rows, matrices)
        for want, plain, got, same in zip(exact, stock, found, again, strict=True):
            error, usual = _rms(got - want), _rms(plain - want)
            largest, scale = float(mx.abs(got - want).max()), float(mx.abs(want).max())
            if not error <= AS_RIGHT * usual + 0.05 * unit * _rms(want):
                return f"error {error:.2g}, MLX's kernel {usual:.2g}"
            if not largest <= WORST * unit * scale:
                return f"an output is off by {largest:.2g} of {scale:.2g}"
            if not mx.array_equal(got, same).item():
                return "two runs differ"
    return None


def stock_product(shape: Shape, rows: mx.array, matrices: Matrices) -> list[mx.array]:
    """Return what MLX's kernels give for one site: [1, M, N] for each matrix, or for the pair."""
    outputs = [
        mx.quantized_matmul(
            *(rows, part.packed, part.scales, part.biases),
            transpose=True,
            group_size=shape.group,
            bits=shape.bits,
        )
        for part in matrices
    ]
    added = [part.added for part in matrices]
    outputs = [y if b is None else y + b for y, b in zip(outputs, added, strict=True)]
    if shape.is_gated:
        gate, up = outputs
        return [swiglu(gate, up)]
    return outputs


def _in_float32(shape: Shape, rows: mx.array, matrices: Matrices) -> list[mx.array]:
    """Return the same, computed in float32 throughout."""
    wide = [
        Weights(part.packed, *(_widened(array) for array in part[1:]))  # type: ignore[arg-type]
        for part in matrices
    ]
    return stock_product(shape, rows.astype(mx.float32), wide)


def _widened(array: mx.array | None) -> mx.array | None:
    return None if array is None else array.astype(mx.float32)


def _choose(
    shape: Shape, sites: Sequence[Matrices], rows: mx.array, *, is_timed: bool
) -> tuple[Variant | None, str]:
    """Return the fastest variant that is right, or why there is none."""
    best, seconds, why = None, float("inf"), "no variant exists"
    for variant in candidates(shape, rows.shape[1]):
        try:
            kernel = launch(shape, variant, row_tiles(rows.shape[1]))
            wrong = fault(kernel, sites, rows)
            if wrong is not None:
                why = f"wrong ({variant}): {wrong}"
                continue
            if not is_timed:
                return variant, ""
            took = _seconds(kernel, sites, rows)
        except (RuntimeError, ValueError) as error:  # MLX's, for what a GPU refuses or cannot
            why = f"refused ({variant}): {' '.join(str(error).split())[:200]}"
            continue
        if took < seconds:
            best, seconds = variant, took
    return best, why


def _judge(
    shape: Shape,
    sites: Sequence[Matrices],
    rows: mx.array,
    variant: Variant,
    *,
    is_timed: bool,
) -> Verdict:
    """Compare a variant with MLX's kernel at one number of rows."""
    n = rows.shape[1]
    kernel = launch(shape, variant, row_tiles(n))
    try:
        if wrong := fault(kernel, sites, rows):
            return Verdict(n, None, None, f"wrong ({variant}): {wrong}")
        if not is_timed:
            return Verdict(n, variant)
        stock = partial(stock_product, shape)
        ratio = in_turns(
            partial(_seconds, kernel, sites, rows), partial(_seconds, stock, sites, rows)
        )
    except (RuntimeError, ValueError) as error:  # as above
        return Verdict(n, None, None, f"refused ({variant}): {' '.join(str(error).split())[:200]}")
    if ratio > FASTER:
        return Verdict(n, None, ratio, NOT_FASTER)
    return Verdict(n, variant, ratio)


def in_turns(own: Callable[[], float], stock: Callable[[], float]) -> float:
    """Return the seconds of one way over those of another, both taken twice, turn by turn."""
    first, second = stock(), own()
    return (second + own()) / (first + stock())


def _seconds(
    step: Callable[[mx.array, Matrices], list[mx.array]],
    sites: Sequence[Matrices],
    rows: mx.array,
) -> float:
    """Return the median seconds of a product, each waiting for the one before."""
    n_steps = max(STEPS, len(sites))
    samples = []
    for _ in range(CHAINS + 1):
        start = time.perf_counter()
        x = rows
        for i in range(n_steps):
            y = step(x, sites[i % len(sites)])[0]
            # One element is enough to wait for, and changes nothing.
            x = rows + (y[:, :1, :1] * 0).astype(rows.dtype)
        mx.eval(x)
        samples.append((time.perf_counter() - start) / n_steps)
    return median(samples[1:])


def _rms(array: mx.array) -> float:
    return float(mx.sqrt(mx.mean(array.astype(mx.float32) ** 2)))
