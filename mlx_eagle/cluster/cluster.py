"""The followers as rank 0 sees them: what is said to them, and whether they are all there."""

import atexit
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.cluster.facts import fingerprint
from mlx_eagle.cluster.messages import (
    Check,
    Compare,
    Files,
    Keeps,
    Load,
    Measure,
    Note,
    Order,
    Ready,
    Run,
    Stop,
    Train,
    Unload,
    check_rows,
    encode_orders,
)
from mlx_eagle.cluster.ring import Traffic, seconds_per_sum
from mlx_eagle.cluster.shard import PeakMemory, Shard, check_divisible, load_shard
from mlx_eagle.cluster.watch import Patience, Peer, Watch
from mlx_eagle.errors import ClusterError
from mlx_eagle.load_options import TENSOR
from mlx_eagle.target.load import compute_type

MEASURED = 20  # sums, of which the fastest counts
END_SECONDS = 5.0  # in which followers end by themselves once they are told to


class Divided(NamedTuple):
    """A target that all ranks hold, each its part, for as long as rank 0 holds its own.

    Attributes:
        number: by which the followers know it.
        shard: rank 0's part.
        parallel: how it is divided, as `LoadOptions` says it.
        chains_only: whether some follower has layers whose states cannot branch.
        window: positions that some follower's layer sees at most; None if all see all.
        weights: bytes of the weights on every rank, rank 0 first.
        peaks: the most bytes that reading them took, likewise.
    """

    number: int
    shard: Shard
    parallel: str
    chains_only: bool
    window: int | None
    weights: list[int]
    peaks: list[int]


class Cluster:
    """All ranks of a target, on rank 0; `launch.py` starts it. It is used on one thread.

    Args:
        group: of all ranks.
        peers: the followers, by rank.
        patience: when something is wrong.
        end: called at the end, to see that no process is left.
        wiring: what joins them, as `Hosts.wiring` says it.

    Attributes:
        watch: looks whether the followers are there.
        is_in_step: whether all ranks run the same program by themselves just now.
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
        wiring: str,
    ) -> None:
        self._group, self._peers, self._end_processes = group, list(peers), end
        self._wiring = wiring
        self.watch = Watch(self._peers, patience)
        self.is_in_step = False
        self.rounds, self.prompts = Traffic(), Traffic()
        self._noted: deque[Note] = deque()  # what the followers have not been told yet
        self._numbers, self._targets = count(), count()
        self._orders, self._passes = count(1), count(1)
        self._asked = 0  # the last order that is answered
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

    def identity(self, parallel: str) -> dict[str, str]:
        """Return what the costs of rounds depend on, beside machine and pair.

        Args:
            parallel: how the target is divided.
        """
        link = f"{self._wiring}: {', '.join(self.names)}"
        return {"ranks": str(self.size), "link": link, "parallel": parallel}

    def describe(self, parallel: str) -> str:
        """Return ranks, hosts, and the link's latency as it was measured.

        Args:
            parallel: how the target is divided.
        """
        names = ", ".join(self.names)
        ranks = f"{self.size} ranks ({parallel}): here, {names}"
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

    def note(self, what: Note) -> None:
        """Note what a cache does, or that a target is gone.

        The followers are told before the next forward pass. From any thread: caches are
        collected on whatever thread drops the last reference.
        """
        self._noted.append(what)

    @contextmanager
    def running(self, what: Run) -> Iterator[None]:
        """Let the followers run a forward pass, in which this rank takes part inside.

        Raises:
            ClusterError: if one of them is lost, or the pass does not end here.
        """
        for peer in self._peers:
            peer.expect(what.number, what.rows + len(what.tokens))
        with self._together(what):
            yield

    def load(
        self,
        folder: Path,
        name: str,
        dtype: str | None = None,
        max_context: int | None = None,
        parallel: str = TENSOR,
    ) -> Divided:
        """Read a target on all ranks; those that are loaded already stay as they are.

        Nothing is exchanged meanwhile, so that no rank waits for one that refuses or is lost.

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
        check_rows("max_context", max_context)
        gc.collect()  # what nobody has any more goes first, on all ranks
        files, number = _files(folder, name), next(self._targets)
        self._compare(files)  # no rank reads weights before all have the same files
        try:
            return self._load(number, files, dtype, max_context, parallel)
        except BaseException:
            self.note(Unload(target=number))
            raise

    def _compare(self, files: Files) -> None:
        order = Compare(number=next(self._orders), files=files)
        self._tell(order)
        self._answers(order.number)

    def _load(
        self, number: int, files: Files, dtype: str | None, max_context: int | None, parallel: str
    ) -> Divided:
        """Read a target, which all hosts have, on all ranks."""
        kind = compute_type(dtype)  # of rank 0's device, for all
        how = {"max_context": max_context, "parallel": parallel, "dtype": _name(kind)}
        about = {"number": next(self._orders), "target": number, "files": files}
        order = Load.model_validate(about | how)
        self._tell(order)
        peak = PeakMemory()
        shard = load_shard(Path(files.folder), self._group, kind, max_context, parallel)
        own = shard.nbytes, peak.nbytes
        ready = self._answers(order.number)
        weakref.finalize(shard.end, self.note, Unload(target=number))
        return Divided(
            number,
            shard,
            parallel,
            chains_only=any(one.chains_only for one in ready),
            window=min((one.window for one in ready if one.window is not None), default=None),
            weights=[own[0], *(one.weights for one in ready)],
            peaks=[own[1], *(one.peak for one in ready)],
        )

    def compare(self, folder: Path, name: str) -> None:
        """Let every follower find a target and compare its files with those of this machine.

        Raises:
            ClusterError: naming the first follower that has others, or none.
        """
        self._compare(_files(folder, name))

    @contextmanager
    def checking(self, divided: Divided, keeps: Keeps, *, chains_only: bool) -> Iterator[None]:
        """Let all ranks run the self check at the same time as it is run inside.

        Args:
            divided: the target.
            keeps: what its caches keep.
            chains_only: whether trees are not even tried.

        Raises:
            ClusterError: if a follower is lost.
        """
        end = divided.shard.end
        try:
            order = Check(target=divided.number, chains_only=chains_only, keeps=keeps)
            with self._together(order), end.expected(in_step=True):
                self.is_in_step = True
                yield
        finally:
            self.is_in_step = False

    def measure(self, numbers: int) -> float:
        """Return the least seconds of a sum of so many float32 numbers over all ranks.

        Raises:
            ClusterError: if a follower is lost.
        """
        with self._together(Measure(numbers=numbers, repeats=MEASURED)):
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
        self._end_processes(END_SECONDS)
        for peer in self._peers:
            peer.channel.close()

    @contextmanager
    def _together(self, order: Run | Check | Measure) -> Iterator[None]:
        """Let the followers begin what all ranks compute together; this one does so inside.

        Raises:
            ClusterError: if one of them is lost, or it does not end here.
        """
        self._check_usable()
        for peer in self._peers:  # who was asked for something else is still at it
            peer.settle(self._asked)
        run = (len(order.tokens), order.target) if isinstance(order, Run) else ()
        with self.watch.waiting(*run):
            self._tell(order)
            yield

    def _tell(self, order: Order) -> None:
        """Send what is noted, and one thing more.

        Raises:
            ClusterError: if a follower is lost.
        """
        self._check_usable()
        with self.watch.decisive("the followers were told a part of something"):
            noted = [self._noted.popleft() for _ in range(len(self._noted))]
            data = encode_orders([*noted, order])
            for peer in self._peers:
                try:
                    peer.channel.send(data)
                except OSError:
                    peer.lose("cannot be reached any more")
            if isinstance(order, Compare | Load):
                self._asked = order.number
        self.watch.check()

    def _check_usable(self) -> None:
        """Raise ClusterError if the followers can be told nothing any more."""
        if self._is_over.is_set():
            raise ClusterError("the followers were told to end; start anew")
        self.watch.check()

    def _answers(self, order: int) -> list[Ready]:
        """Return what every follower answers to an order.

        Raises:
            ClusterError: naming the first that is lost or could not do it.
        """
        return [peer.answer(Ready, order) for peer in self._peers]


def _name(kind: mx.Dtype | None) -> str | None:
    """Return a type's name in messages."""
    return None if kind is None else str(kind).removeprefix("mlx.core.")


def _files(folder: Path, name: str) -> Files:
    """Return where the followers find a target, and what its files must be."""
    return Files(folder=str(folder.resolve()), name=name, fingerprint=fingerprint(folder))
