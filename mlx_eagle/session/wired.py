"""Memory that the system must keep in place while an answer is made, on GPUs that ask for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit


@contextmanager
def wired() -> Iterator[None]:
    """Let MLX wire what the device recommends, and no longer once the work inside is done.

    What stays wired between answers is lost to every other program.
    """
    before = maybe_set_recommended_wired_limit()
    if before is None:
        yield
        return
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not change under what still runs
        mx.set_wired_limit(before)
