"""Whether whole forward passes with few-row kernels are right and faster, by number of rows."""

import time
from collections.abc import Sequence
from functools import partial
from statistics import median

import mlx.core as mx

from mlx_eagle.cache.model_cache import AnyCache
from mlx_eagle.errors import EagleError
from mlx_eagle.kernels.trial import in_turns
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

FASTER = 0.98  # share of the time of a forward pass without kernels
ALIKE = 0.05  # relative difference of the logits that rounding may explain
PASSES = 5  # timed of each kind; their median counts
N_PREFIX = 64  # tokens before the rows


def rows_that_pay(
    target: Target, rows: Sequence[int], *, is_timed: bool = True
) -> dict[int, float]:
    """Return the numbers of rows that are verified faster with kernels, and by how much.

    Args:
        target: a target that verifies, with kernels on its layers.
        rows: numbers of rows to try.
        is_timed: False takes all that are right; their ratio is 1 then.

    Returns:
        By number of rows, the time with kernels over that without.

    Raises:
        EagleError: if the logits with kernels are not those without.
    """
    n_tokens = target.vocab_size or 1000
    ids = [(7919 * i + 11) % n_tokens for i in range(N_PREFIX + max(rows))]
    cache = target.make_cache()
    target.extend(mx.array(ids[:N_PREFIX], dtype=mx.int32), cache)
    found = {}
    for n in rows:
        tree = DraftTree.chain(mx.array(ids[N_PREFIX : N_PREFIX + n], dtype=mx.int32))
        _check(target, tree, cache)
        ratio = 1.0
        if is_timed:
            passes = partial(_seconds, target, tree, cache)
            ratio = in_turns(partial(passes, is_on=True), partial(passes, is_on=False))
        if not is_timed or ratio <= FASTER:
            found[n] = ratio
    target.few_rows.is_on = True
    return found


def _check(target: Target, tree: DraftTree, cache: AnyCache) -> None:
    """Compare the logits [N, V] with kernels and without."""
    own, stock = (_logits(target, tree, cache, is_on=on) for on in (True, False))
    spread = mx.sqrt(mx.mean((stock - stock.mean(axis=-1, keepdims=True)) ** 2))
    difference = float(mx.sqrt(mx.mean((own - stock) ** 2)) / spread)
    if not difference <= ALIKE:
        raise EagleError(
            f"logits of {tree.tokens.shape[0]} rows differ by {difference:.2g} of their spread"
        )


def _logits(target: Target, tree: DraftTree, cache: AnyCache, *, is_on: bool) -> mx.array:
    target.few_rows.is_on = is_on
    return target.verify(tree, cache).logits.astype(mx.float32)


def _seconds(target: Target, tree: DraftTree, cache: AnyCache, *, is_on: bool) -> float:
    """Return the median seconds of a forward pass."""
    samples = []
    for _ in range(PASSES + 1):
        start = time.perf_counter()
        mx.eval(_logits(target, tree, cache, is_on=is_on))
        samples.append(time.perf_counter() - start)
    return median(samples[1:])
