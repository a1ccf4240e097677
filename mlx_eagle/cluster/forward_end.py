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
    """Where the forward passes of one rank's part of a model end.

    Args:
        last: what runs after the last exchange of a pass, or with it; it is hooked.
        group: of all ranks.
        needs_logits: whether logits are gathered from all ranks, so that all must evaluate them.
        is_eager: whether passes of the self check are evaluated one by one: what is received in
            two passes depends on nothing that would keep it in order.

    Attributes:
        is_in_step: whether all ranks run the self check, each by itself.
    """

    def __init__(
        self,
        last: nn.Module,
        group: mx.distributed.Group,
        *,
        needs_logits: bool = False,
        is_eager: bool = False,
    ) -> None:
        self._group, self._needs_logits = group, needs_logits
        self._last: mx.array | None = None
        self._more: list[mx.array] = []
        self._is_expected = self.is_in_step = False

        def note(plain: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._is_expected:
                raise ClusterError(
                    "a part of a model was run alone, which would wait for the other hosts for "
                    "ever: this is not supported with hosts"
                )
            out = plain(module, *args, **kwargs)
            self._last, self._more = out[0] if isinstance(out, tuple) else out, []
            if is_eager and self.is_in_step:
                mx.eval(self._last)
            return out

        wrap_method(last, "__call__", note)

    @property
    def last(self) -> mx.array:
        """The output [1, N, D] with which the pass that was built last ends."""
        assert self._last is not None, "a forward pass comes first"
        return self._last

    def add(self, array: mx.array) -> None:
        """Let the pass that was built last end with another array, which all ranks exchange."""
        self._more.append(array)

    @contextmanager
    def expected(self, *, in_step: bool = False) -> Iterator[None]:
        """Let passes be run inside, because all ranks do so; elsewhere running one is an error.

        Args:
            in_step: they are those of the self check.
        """
        before = self._is_expected, self.is_in_step
        self._is_expected, self.is_in_step = True, in_step
        try:
            yield
        finally:
            self._is_expected, self.is_in_step = before

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
        ends = [self.last, *([logits] if self._needs_logits else []), *self._more]
        self._last, self._more = None, []
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
