"""Rank 0's target and caches: they tell the followers what they do, and otherwise are as ever.

Everything that decides (planner, sampler, grammar, acceptance, limits) sees a `Target` and a
`TreeCache`. Followers are told of a tree's tokens and parents, so these are read before it is
verified.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import cast

import mlx.core as mx

from mlx_eagle.cache.attention_sinks import SINKS, SinkKVCache
from mlx_eagle.cache.model_cache import AnyCache, LayerList, OwnCache, TreeCache
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.cluster.cluster import Cluster, Divided
from mlx_eagle.cluster.messages import (
    Checkpoint,
    Drop,
    Fork,
    Keeps,
    New,
    Pad,
    Run,
    Trim,
    check_rows,
    commit,
)
from mlx_eagle.cluster.part import PartTarget
from mlx_eagle.cluster.ring import counted
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.target.hooks import Undo
from mlx_eagle.target.target import Target, Verified
from mlx_eagle.tree import DraftTree

BACK = min(WindowKVCache.margin, SinkKVCache.margin)  # rows that caches with windows can go back


class LeadingCache(TreeCache):
    """The caches of rank 0's shard, of which every follower has its own under the same number.

    Args:
        layers: as of `TreeCache`.
        cluster: the followers.
        number: by which they know the cache; nobody else has it.
        target: number of the target whose rows it keeps.
        window: positions that some layer of another rank sees at most, of which this one knows
            nothing; None if there is none.
    """

    def __init__(
        self,
        layers: Sequence[OwnCache | LayerList],
        cluster: Cluster,
        number: int,
        target: int,
        window: int | None = None,
    ) -> None:
        super().__init__(layers)
        self.cluster, self.number, self.target = cluster, number, target
        self._window, self._most = window, 0
        weakref.finalize(self, cluster.note, Drop(cache=number))

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows of an accepted path, on all ranks."""
        if path or self.parts[0].pending:
            self.cluster.note(commit(self.number, path))
        super().commit(path)
        self._most = max(self._most, self.rows)  # others may have dropped what these hide

    def checkpoint(self) -> None:
        """Remember the committed rows as a place to go back to, on all ranks."""
        self.cluster.note(Checkpoint(cache=self.number))
        super().checkpoint()

    def can_trim(self, rows: int) -> bool:
        """Say whether every layer of every rank can go back to `rows` tokens."""
        is_held = self._window is None or self._most <= max(self._window, rows + BACK)
        return is_held and super().can_trim(rows)

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` tokens, on all ranks."""
        self.cluster.note(Trim(cache=self.number, rows=rows))
        super().trim(rows)

    def pad(self, n: int) -> None:
        """Append and commit n rows of zeros, on all ranks."""
        self.cluster.note(Pad(cache=self.number, rows=n))
        for part in self.parts:
            part.pad(n)
        super().commit(range(n))
        self._most = max(self._most, self.rows)

    def fork(self) -> "LeadingCache":
        """Return a copy; the followers' rows are copied too."""
        number = self.cluster.new_number()
        self.cluster.note(Fork(cache=number, source=self.number))
        layers = [layer.fork() for layer in self.layers]
        twin = LeadingCache(layers, self.cluster, number, self.target, self._window)
        twin._most = self._most
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return nothing: a rank holds its own heads alone, so saved tokens are run again."""
        return {}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Stay empty, see `arrays`."""


class LeadingTarget(PartTarget):
    """The target of rank 0: what it runs, all followers run.

    Args:
        cluster: the followers.
        divided: the target, as the cluster has loaded it.
        taps: as of `Target`.
        speculate: False is refused: mlx-lm's own caches are not led.

    Raises:
        UnsupportedTargetError: as `Target` does, if a tap is where no whole stream is, and if
            other ranks alone keep states, of which this one does not know how far they go back.
    """

    def __init__(
        self, cluster: Cluster, divided: Divided, taps: Sequence[int] = (), speculate: bool = True
    ) -> None:
        if not speculate:
            raise UnsupportedTargetError(
                "with hosts a target must verify trees or chains, and this one does neither; load "
                "it on one machine"
            )
        self.cluster, self.divided = cluster, divided
        self._traffic = cluster.rounds
        super().__init__(divided.shard, taps)
        if divided.chains_only and not self.chains_only:
            raise UnsupportedTargetError(
                "other hosts have layers that keep one state for all tokens, and this one has "
                "none; use fewer hosts"
            )

    @property
    def hosts(self) -> str:
        """The hosts that hold a part of it each, in words."""
        return self.cluster.describe(self.divided.parallel)

    @property
    def hosts_identity(self) -> dict[str, str]:
        """What the costs of its rounds depend on, beside machine and pair."""
        return self.cluster.identity(self.divided.parallel)

    @property
    def lost(self) -> str:
        """Why the followers are of no more use; "" while they are."""
        return self.cluster.watch.lost

    @cached_property
    def unembed(self) -> Callable[[mx.array], mx.array]:
        """The output layer, see `Target.unembed`.

        Raises:
            UnsupportedTargetError: if it is divided among the hosts.
        """
        self._check_output()
        return super().unembed

    def output_rows(self, ids: mx.array) -> Callable[[mx.array], mx.array]:
        """Return the output layer for some tokens, see `Target.output_rows`.

        Raises:
            UnsupportedTargetError: if it is divided among the hosts.
        """
        self._check_output()
        return super().output_rows(ids)

    def checking(self) -> AbstractContextManager[None]:
        """Let all ranks run the self check, each with its own shard.

        Raises:
            UnsupportedTargetError: if caches would be quantized, in a pipeline.
        """
        if self.kv.bits is not None and self._shard.stage is not None:
            raise UnsupportedTargetError(
                "mlx-lm's pipelines cannot read quantized caches; leave kv_bits out"
            )
        return self.cluster.checking(self.divided, self._keeps, chains_only=self.chains_only)

    @property
    def _keeps(self) -> Keeps:
        """What caches made from now on keep, as the followers are told.

        Raises:
            ClusterError: if that is more than messages hold.
        """
        check_rows("max_kv_size", self.kv.max_size)
        return Keeps(**vars(self.kv))

    def make_cache(self) -> AnyCache:
        """Return an empty cache, which the followers have too."""
        cache = super().make_cache()
        if self.cluster.is_in_step:
            return cache
        assert isinstance(cache, TreeCache), "stock caches are refused"
        number, target = self.cluster.new_number(), self.divided.number
        self.cluster.note(New(cache=number, target=target, keeps=self._keeps))
        return LeadingCache(cache.layers, self.cluster, number, target, self._others_window)

    @property
    def _others_window(self) -> int | None:
        """Positions that layers which only other ranks may have see at most; None if all."""
        if self._shard.stage is None:
            return None
        most = self.kv.max_size
        windows = self.divided.window, None if most is None else most - SINKS
        return min((window for window in windows if window is not None), default=None)

    def forward(self, tokens: mx.array, cache: AnyCache) -> Verified:
        """Run committed tokens and commit their rows; what they exchange counts as the prompt's."""
        self._traffic = self.cluster.prompts
        try:
            return super().forward(tokens, cache)
        finally:
            self._traffic = self.cluster.rounds

    def _tap(self, boundary: int) -> Undo:
        if boundary > self.layers_before + len(self.model.layers):
            self._check_output()
        return super()._tap(boundary)

    def _check_output(self) -> None:
        if not self._shard.has_whole_output:
            raise UnsupportedTargetError(
                "mlx-lm divides this target's output layer among the hosts, so that a head cannot "
                "borrow it or read what it is given; take a head with an output layer of its own"
            )

    def _run(self, tree: DraftTree, cache: AnyCache) -> Verified:
        """Run all nodes of a tree through the target on all ranks, to the end."""
        if self.cluster.is_in_step:
            return super()._run(tree, cache)  # the followers run it by themselves
        assert isinstance(cache, LeadingCache), "a cache of no divided target"
        assert cache.target == self.divided.number, "a cache of another target"
        tokens = cast(list[int], tree.tokens.tolist())  # waits for the draft
        parents = None if tree.is_chain else tree.structure()
        number, end = self.cluster.new_pass(), self._shard.end
        order = Run(
            target=self.divided.number,
            cache=cache.number,
            number=number,
            rows=cache.rows,
            tokens=tokens,
            parents=parents,
            taps=self._taps_of_others(),
        )
        with self.cluster.running(order), counted(self._traffic), end.expected():
            verified = super()._run(tree, cache)
            end.complete(verified.logits, number, tree.n_nodes)
        return verified

    def _taps_of_others(self) -> list[int]:
        """Return the taps that are sent to rank 0."""
        stage = self._shard.stage
        return stage.elsewhere(self.taps) if stage else []

    def _joined(self, recorded: dict[int, mx.array]) -> mx.array:
        """Return the taps' streams; one that is missing is so on rank 0 alone."""
        try:
            return super()._joined(recorded)
        except UnsupportedTargetError as error:
            self.cluster.watch.fail(f"the followers wait for a pass that failed here ({error})")
            raise


def exchanged_per_round(target: Target) -> dict[str, float] | None:
    """Return what a round has exchanged on average; None for a target on one machine."""
    if not isinstance(target, LeadingTarget) or not target.cluster.rounds.passes:
        return None
    rounds = target.cluster.rounds
    per_round = {"sums": rounds.sums, "bytes": rounds.nbytes}
    return {f"{name}_per_round": total / rounds.passes for name, total in per_round.items()}
