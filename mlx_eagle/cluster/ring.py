"""The group of processes whose sums make one model of the shards: MLX's ring, or JACCL.

The ring goes over TCP. JACCL goes over Thunderbolt with RDMA, from macOS 26.2 on; what it reads is
set here as `mlx.launch` sets it, and it was never run.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_eagle.cluster.ending import deadline
from mlx_eagle.cluster.messages import Join
from mlx_eagle.cluster.rank import RANK, launched_rank
from mlx_eagle.errors import ClusterError
from mlx_eagle.files.quoting import listed, one_line

GIVING = ("all_sum", "all_gather", "send")  # of `mx.distributed`, with what is given first
TAKING = ("recv", "recv_like")
RING, JACCL, JACCL_RING = "ring", "jaccl", "jaccl-ring"
RING_FILE, COORDINATOR = "MLX_HOSTFILE", "MLX_JACCL_COORDINATOR"
JOIN_SECONDS = 60.0  # in which all ranks must have joined
TOGETHER = "start all of them at once, with mlx.launch"
_GROUPS: list[mx.distributed.Group] = []  # that were joined; one at most


def check_backend(name: str) -> None:
    """Refuse what MLX cannot join hosts with on this machine.

    Raises:
        ClusterError: naming it.
    """
    if name != RING and not mx.distributed.is_available(JACCL):
        raise ClusterError(
            f"the hosts file asks for {name}, which MLX does not have on this machine: it needs "
            "macOS 26.2 or newer, and RDMA over Thunderbolt that is enabled (rdma_ctl enable, in "
            f'recovery); "backend": "{RING}" joins hosts over TCP'
        )


def join_hosts(
    rank: int, join: Join, seconds: float, processes: Sequence[int] = ()
) -> mx.distributed.Group:
    """Join the others; all of them must do so at about the same time.

    Args:
        rank: of this process.
        join: all of them.
        seconds: after which the process ends, if others are missing.
        processes: ids of those that are killed then.

    Raises:
        ClusterError: if the others cannot be reached, or the process is in a group already.
    """
    places = listed(addresses[0] for addresses in join.ring)
    advice = f"every host must reach the others: {places}"
    if _GROUPS:
        raise ClusterError(
            "this process has joined other hosts before, and MLX lets it do so once: start another "
            "process"
        )
    with _described(rank, join), joining(rank, seconds, advice, processes):
        group = mx.distributed.init(strict=True, backend=RING if join.backend == RING else JACCL)
        _GROUPS.append(group)
        if (group.rank(), group.size()) != (rank, len(join.ring)):
            raise ClusterError(
                f"this process is rank {group.rank()} of {group.size()} already, and MLX lets it "
                "be in one group only; start another process"
            )
        _meet(group)
    return group


def join_launched() -> mx.distributed.Group:
    """Join the processes that `mlx.launch` has started.

    Raises:
        ClusterError: if they cannot be reached.
    """
    with joining(launched_rank(), JOIN_SECONDS, TOGETHER):
        group = mx.distributed.init(strict=True)
        _meet(group)
    return group


@contextmanager
def joining(
    rank: int | None, seconds: float, advice: str, processes: Sequence[int] = ()
) -> Iterator[None]:
    """Wait for the others inside, for a while; what goes wrong is one line.

    MLX keeps the interpreter's lock while it joins (0.32.4): who waits too long can only be ended.

    Args:
        rank: of this process, if it is known.
        seconds: after which the process ends.
        advice: what to do, then.
        processes: ids of those that are killed then.

    Raises:
        ClusterError: if the others cannot be reached, or one is lost.
    """
    who = "this process" if rank is None else f"the process of rank {rank}"
    with deadline(seconds, f"{who} has waited {seconds:.0f} s for the others; {advice}", processes):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise ClusterError(
                f"{who} cannot join the others: {one_line(error)}; {advice}"
            ) from error


def _meet(group: mx.distributed.Group) -> None:
    """Wait until all ranks have joined; not on a GPU, which does not wait long for anybody."""
    mx.eval(mx.distributed.all_sum(mx.array([1]), group=group, stream=mx.cpu))


@dataclass
class Traffic:
    """What the forward passes of rank 0 have exchanged with the others.

    Attributes:
        passes: forward passes.
        sums: collectives, canaries included, and rows received from another stage.
        nbytes: of what rank 0 gave to them, or received.
    """

    passes: int = 0
    sums: int = 0
    nbytes: int = 0


@contextmanager
def counted(traffic: Traffic) -> Iterator[None]:
    """Count one forward pass, whose collectives model code asks for inside."""
    plain = {name: getattr(mx.distributed, name) for name in (*GIVING, *TAKING)}

    def counting(name: str) -> Callable[..., mx.array]:
        def exchange(*args: Any, **kwargs: Any) -> mx.array:
            out: mx.array = plain[name](*args, **kwargs)
            traffic.sums += 1
            traffic.nbytes += args[0].nbytes if name in GIVING else out.nbytes
            return out

        return exchange

    traffic.passes += 1
    for name in plain:
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


def environment(rank: int, join: Join, folder: Path) -> dict[str, str]:
    """Return the variables by which MLX knows the others, as `mlx.launch` sets them.

    Args:
        rank: of the process.
        join: all ranks.
        folder: for the files that they name.
    """
    if join.backend == RING:
        (folder / "ring.json").write_text(json.dumps(join.ring))
        return {RANK: str(rank), RING_FILE: str(folder / "ring.json")}
    (folder / "devices.json").write_text(json.dumps(join.devices))
    found = {
        RANK: str(rank),
        "MLX_IBV_DEVICES": str(folder / "devices.json"),
        COORDINATOR: join.ring[0][0],
    }
    return found | ({"MLX_JACCL_RING": "1"} if join.backend == JACCL_RING else {})


@contextmanager
def _described(rank: int, join: Join) -> Iterator[None]:
    """Describe all ranks as MLX reads it, in the environment and a file."""
    with tempfile.TemporaryDirectory(prefix="mlx-eagle-") as folder:
        facts = environment(rank, join, Path(folder))
        before = {name: os.environ[name] for name in facts if name in os.environ}
        os.environ.update(facts)
        try:
            yield
        finally:
            for name in facts:
                del os.environ[name]
            os.environ.update(before)
