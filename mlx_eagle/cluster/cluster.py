"""The followers as rank 0 sees them: what is said to them, and whether they are all there."""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import mlx.core as mx

from mlx_eagle.cluster.facts import fingerprint
from mlx_eagle.cluster.messages import (
    CacheOp,
    Check,
    Compare,
    Load,
    Measure,
    Order,
    Ready,
    Run,
    Stop,
    Train,
    encode_orders,
)
from mlx_eagle.cluster.ring import Traffic, seconds_per_sum
from mlx_eagle.cluster.shard import Shard, check_divisible, load_shard
from mlx_eagle.cluster.watch import Patience, Peer, Watch
from mlx_eagle.errors import ClusterError
from mlx_eagle.load_options import TENSOR

MEASURED = 20  # sums, of which the fastest counts
END_SECONDS = 5.0  # in which followers end by themselves once they are told to


class Cluster:
    """All ranks of one target, on rank 0; `launch.py` starts it. It is used on one thread.

    Args:
        group: of all ranks.
        peers: the followers, by rank.
        patience: when something is wrong.
        end: called at the end, to see that no process is left.

    Attributes:
        watch: looks whether the followers are there.
        is_in_step: whether all ranks run the same program by themselves just now.
        parallel: how the target is divided, as `LoadOptions` says it.
        chains_only: whether some follower has layers whose states cannot branch.
        weights: bytes of the weights on every rank, rank 0 first.
        peaks: the most bytes that were in use while they were read, likewise.
        rounds: what verifying trees has exchanged.
        prompts: what reading prompts has exchanged.
        seconds: of the smallest sum over all ranks.
    """

    def __init__(
        self,
        group: mx.distributed.Group,
        peers: Sequence[Peer],
        patience: Patience,
        end: Callable[[float], None],
    ) -> None:
        self._group, self._peers, self._end_processes = group, list(peers), end
        self.watch = Watch(self._peers, patience)
        self.is_in_step = self.chains_only = False
        self.parallel = TENSOR
        self.weights: list[int] = []
        self.peaks: list[int] = []
        self.rounds, self.prompts = Traffic(), Traffic()
        self._noted: deque[CacheOp] = deque()  # what the followers have not been told yet
        self._numbers, self._passes = count(), count(1)
        self._shard: Shard | None = None
        self._is_over = threading.Event()
        atexit.register(self.close)
        self.seconds = self.measure(1)

    @property
    def group(self) -> mx.distributed.Group:
        """All ranks, as MLX knows them."""
        return self._group

    @property
    def size(self) -> int:
        """Number of ranks, this one included."""
        return self._group.size()

    @property
    def is_usable(self) -> bool:
        """Whether all followers are there."""
        return not self._is_over.is_set() and not self.watch.lost

    @property
    def memories(self) -> list[int]:
        """Bytes that MLX may use on each follower's host."""
        return [peer.memory for peer in self._peers]

    @property
    def identity(self) -> dict[str, str]:
        """What the costs of rounds depend on, beside machine and pair."""
        link = ", ".join(self.names)
        return {"ranks": str(self.size), "link": link, "parallel": self.parallel}

    def __str__(self) -> str:
        """Ranks, hosts, and the link's latency as it was measured."""
        names = ", ".join(self.names)
        ranks = f"{self.size} ranks ({self.parallel}): here, {names}"
        return f"{ranks}; {1e3 * self.seconds:.2g} ms per sum"

    @property
    def names(self) -> list[str]:
        """The hosts of the followers."""
        return [peer.name for peer in self._peers]

    def new_number(self) -> int:
        """Return a number for a cache that no other one had."""
        return next(self._numbers)

    def new_pass(self) -> int:
        """Return the number of the next forward pass."""
        return next(self._passes)

    def note(self, what: CacheOp) -> None:
        """Note what a cache does; the followers are told before the next forward pass.

        From any thread: caches are collected on whatever thread drops the last reference.
        """
        self._noted.append(what)

    def run(self, what: Run) -> None:
        """Let the followers begin a forward pass, in which this rank must take part at once.

        Raises:
            ClusterError: if one of them is lost.
        """
        rows = what.rows + len(what.tokens)
        for peer in self._peers:
            peer.expect(what.number, rows)
        self._tell(what)

    def load(
        self,
        folder: Path,
        name: str,
        dtype: str | None = None,
        max_context: int | None = None,
        parallel: str = TENSOR,
    ) -> Shard:
        """Read a target on all ranks; another one that was loaded cannot be used from then on.

        Args:
            folder: where it is on this machine.
            name: by which followers fetch it that have no such folder.
            dtype: of `LoadOptions`.
            max_context: tokens that a text may have, if the user says so.
            parallel: how it is divided.

        Raises:
            EagleError: if it cannot be divided or loaded, or a follower is lost.
        """
        check_divisible(folder, self.size, parallel)
        self._shard = None
        self._noted.clear()
        order = {"dtype": dtype, "max_context": max_context, "parallel": parallel}
        self._tell(Load.model_validate({"files": _files(folder, name), **order}))
        shard = load_shard(folder, self._group, dtype, max_context, parallel)
        ready = [peer.answer(Ready) for peer in self._peers]
        self.parallel, self.chains_only = parallel, any(one.chains_only for one in ready)
        self.weights = [shard.nbytes, *(one.weights for one in ready)]
        self.peaks = [mx.get_peak_memory(), *(one.peak for one in ready)]
        self._shard = shard
        return shard

    def compare(self, folder: Path, name: str) -> None:
        """Let every follower find a target and compare its files with those of this machine.

        Raises:
            ClusterError: naming the first follower that has others, or none.
        """
        self._tell(_files(folder, name))
        for peer in self._peers:
            peer.answer(Ready)

    def check_loaded(self, shard: Shard) -> None:
        """Refuse the shard of a target that is not loaded any more.

        Raises:
            ClusterError: if another one has taken its place.
        """
        if shard is not self._shard:
            raise ClusterError("the hosts have loaded another target since; use that one")

    @contextmanager
    def checking(self, *, chains_only: bool) -> Iterator[None]:
        """Let all ranks run the self check at the same time as it is run inside.

        Args:
            chains_only: whether trees are not even tried.

        Raises:
            ClusterError: if a follower is lost.
        """
        assert self._shard is not None, "a target is loaded first"
        self._tell(Check(chains_only=chains_only))
        self.is_in_step = True
        try:
            with self.watch.waiting(), self._shard.end.expected(in_step=True):
                yield
        finally:
            self.is_in_step = False

    def measure(self, numbers: int) -> float:
        """Return the least seconds of a sum of so many float32 numbers over all ranks.

        Raises:
            ClusterError: if a follower is lost.
        """
        self._tell(Measure(numbers=numbers, repeats=MEASURED))
        with self.watch.waiting():
            return seconds_per_sum(self._group, numbers, MEASURED)

    def train(self, arguments: Sequence[str], folder: Path) -> None:
        """Let the followers train a head, together with this process: those that can.

        Args:
            arguments: of the command line.
            folder: in which they were given.

        Raises:
            ClusterError: if a follower is lost.
        """
        self._tell(Train(arguments=list(arguments), folder=str(folder)))

    def close(self) -> None:
        """End the followers; nothing can be computed any more."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        atexit.unregister(self.close)
        if not self.watch.lost:  # else a thread may be stuck in MLX, which the end waits for
            self.watch.end()
        for peer in self._peers:
            with suppress(OSError):
                peer.channel.send(encode_orders([Stop()]))
        ends = time.monotonic() + END_SECONDS
        self._end_processes(max(ends - time.monotonic(), 0.0))
        for peer in self._peers:
            peer.channel.close()

    def _tell(self, order: Order) -> None:
        """Send what is noted, and one thing more.

        Raises:
            ClusterError: if a follower is lost.
        """
        if self._is_over.is_set():
            raise ClusterError("the followers were told to end; start anew")
        self.watch.check()
        noted = [self._noted.popleft() for _ in range(len(self._noted))]
        data = encode_orders([*noted, order])
        for peer in self._peers:
            try:
                peer.channel.send(data)
            except OSError:
                peer.lose("cannot be reached any more")
        self.watch.check()


def _files(folder: Path, name: str) -> Compare:
    """Return where the followers find a target, and what its files must be."""
    return Compare(folder=str(folder.resolve()), name=name, fingerprint=fingerprint(folder))
