"""The group of processes whose sums make one model of the shards: MLX's ring over TCP."""

import faulthandler
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_eagle.errors import ClusterError
from mlx_eagle.files.quoting import one_line

COLLECTIVES = ("all_sum", "all_gather")
Ring = Sequence[Sequence[str]]  # by rank, the addresses "host:port" at which it is reached


def join_ring(rank: int, ring: Ring, seconds: float) -> mx.distributed.Group:
    """Join the others; all of them must do so at about the same time.

    MLX keeps the interpreter's lock while it waits (0.32.4), so no other thread can look at a
    clock: a process that the others have left waiting is ended by the one of `faulthandler`, with
    a traceback that names this function.

    Args:
        rank: of this process.
        ring: of all.
        seconds: after which the process is ended.

    Raises:
        ClusterError: if the others cannot be reached, or the process is in a group already.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        with _described(rank, ring):
            group = mx.distributed.init(strict=True, backend="ring")
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"rank {rank} cannot join the others: {one_line(error)}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    if (group.rank(), group.size()) != (rank, len(ring)):
        raise ClusterError(
            f"this process is rank {group.rank()} of {group.size()} already, and MLX lets it be "
            "in one group only; start another process"
        )
    mx.eval(mx.distributed.all_sum(mx.array([1]), group=group))
    return group


@dataclass
class Traffic:
    """What the forward passes of rank 0 have exchanged with the others.

    Attributes:
        passes: forward passes.
        sums: collectives, canaries included.
        nbytes: of what rank 0 gave to them.
    """

    passes: int = 0
    sums: int = 0
    nbytes: int = 0


@contextmanager
def counted(traffic: Traffic) -> Iterator[None]:
    """Count one forward pass, whose collectives model code asks for inside."""
    plain = {name: getattr(mx.distributed, name) for name in COLLECTIVES}

    def counting(name: str) -> Callable[..., mx.array]:
        def collective(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            traffic.sums += 1
            traffic.nbytes += x.nbytes
            out: mx.array = plain[name](x, *args, **kwargs)
            return out

        return collective

    traffic.passes += 1
    for name in COLLECTIVES:
        setattr(mx.distributed, name, counting(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(mx.distributed, name, function)


def seconds_per_sum(group: mx.distributed.Group, numbers: int, repeats: int) -> float:
    """Return the least seconds of a sum of float32 numbers [numbers]; all ranks take part."""
    rows, samples = mx.ones((numbers,)), list[float]()
    for _ in range(repeats):
        mx.eval(rows)
        start = time.perf_counter()
        mx.eval(mx.distributed.all_sum(rows, group=group))
        samples.append(time.perf_counter() - start)
    return min(samples)


@contextmanager
def _described(rank: int, ring: Ring) -> Iterator[None]:
    """Describe the ring as MLX reads it, in the environment and a file."""
    with tempfile.TemporaryDirectory(prefix="mlx-eagle-") as folder:
        file = Path(folder) / "ring.json"
        file.write_text(json.dumps([list(addresses) for addresses in ring]))
        facts = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)}
        before = {name: os.environ[name] for name in facts if name in os.environ}
        os.environ.update(facts)
        try:
            yield
        finally:
            for name in facts:
                del os.environ[name]
            os.environ.update(before)
