"""A target of which this rank has a part: every layer in part, or some of the layers.

Boundaries of taps count all layers, wherever they are.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlx_eagle.cluster.shard import Shard
from mlx_eagle.errors import ClusterError
from mlx_eagle.target.hooks import Undo
from mlx_eagle.target.target import Target, check_recorded


class PartTarget(Target):
    """One rank's part of a target.

    Args:
        shard: the part.
        taps: as of `Target`; the same on all ranks but for those that rank 0 has itself.

    Raises:
        UnsupportedTargetError: as `Target` does.
    """

    foreign_errors = (ClusterError, RuntimeError)  # the latter as MLX loses a rank

    def __init__(self, shard: Shard, taps: Sequence[int] = ()) -> None:
        self._shard = shard
        super().__init__(shard.loaded.network, taps)

    @property
    def layers_before(self) -> int:
        """Layers that other ranks run before those of this one."""
        return self._shard.stage.start if self._shard.stage else 0

    def _tap(self, boundary: int) -> Undo:
        """Record the stream at a boundary, if it is handed out by this rank."""
        stage = self._shard.stage
        if stage is not None and boundary >= 0 and stage.owner(boundary) != stage.rank:
            return _nothing
        return super()._tap(boundary)

    def _joined(self, recorded: dict[int, mx.array]) -> mx.array:
        """Return all streams side by side [N, A * D], those of other ranks exchanged."""
        stage, end = self._shard.stage, self._shard.end
        if stage is None:
            return super()._joined(recorded)
        own = [b for b in self.taps if stage.owner(b) == stage.rank]
        check_recorded(recorded, own)
        if end.is_in_step:  # nobody reads them in the self check, in which others tap nothing
            found = {b: mx.zeros_like(end.last) for b in stage.elsewhere(self.taps)}
        else:
            found = stage.exchange(recorded, self.taps, end)
        return super()._joined(recorded | found)


def _nothing() -> None:
    """Undo nothing."""
