"""The end of a forward pass on a shard: evaluated on every rank, and checked to be the same one.

Two things would turn sums over ranks into nonsense without an error. A lazy rank leaves out what
nobody reads, as the last layer of a prefill, collectives included; and ranks that run different
passes add what does not belong together. So every pass is evaluated to the last layer's output on
every rank, and the last sum of each is a *canary*: number of the pass and its rows, which must come
out as many times as there are ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.errors import ClusterError
from mlx_eagle.target.hooks import wrap_method

MOST = 1 << 24  # numbers of passes are counted modulo this: their sum stays an int32


class ForwardEnd:
    """Where the forward passes of one shard end.

    Args:
        network: the shard; its last layer is hooked.
        group: of all ranks.
        needs_logits: whether logits are gathered from all ranks, so that all must evaluate them.
    """

    def __init__(
        self, network: nn.Module, group: mx.distributed.Group, *, needs_logits: bool
    ) -> None:
        self._group, self._needs_logits = group, needs_logits
        self._last: mx.array | None = None
        self._is_expected = False

        def note(plain: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._is_expected:
                raise ClusterError(
                    "a part of a model was run alone, which would wait for the other hosts for "
                    "ever: this is not supported with hosts"
                )
            out = plain(module, *args, **kwargs)
            self._last = out[0] if isinstance(out, tuple) else out
            return out

        wrap_method(network.layers[-1], "__call__", note)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Let passes be run inside, because all ranks do so; elsewhere running one is an error."""
        before, self._is_expected = self._is_expected, True
        try:
            yield
        finally:
            self._is_expected = before

    def complete(
        self, logits: mx.array, number: int, n_rows: int, buffers: Sequence[mx.array] = ()
    ) -> None:
        """Evaluate the pass that was built last; all ranks do so.

        Args:
            logits: [N, V] of the pass; evaluated where that takes all ranks.
            number: of the pass.
            n_rows: that it runs, N.
            buffers: what is to be evaluated as well.

        Raises:
            ClusterError: if the ranks did not run the same pass.
            RuntimeError: of MLX, if a rank is lost.
        """
        assert self._last is not None, "a forward pass comes first"
        ends = [self._last, *([logits] if self._needs_logits else [])]
        self._last = None
        own = [number % MOST, n_rows]
        canary = mx.depends([mx.array(own, dtype=mx.int32)], ends)[0]  # the last sum of the pass
        summed = mx.distributed.all_sum(canary, group=self._group)
        mx.eval(summed, ends, buffers)
        expected = [self._group.size() * value for value in own]
        if summed.tolist() != expected:
            raise ClusterError(
                f"the hosts did not run the same pass (sums {summed.tolist()} instead of "
                f"{expected}), so its text would be wrong; start anew"
            )
