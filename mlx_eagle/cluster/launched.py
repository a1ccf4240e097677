"""Processes that `mlx.launch` has started: those above rank 0 follow, rank 0 leads.

`mlx.launch` gives every process the same command and copies stdin to each; so whatever has a rank
above 0 becomes a follower before it reads or prints anything. There is no channel for a token but
the ring itself, which all of them join first: rank 0 tells where it listens by a sum to which the
others add zeros.
"""

import json
import os
import signal
from collections.abc import Mapping
from typing import cast

import mlx.core as mx

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.control import Channel, Listener, new_token
from mlx_eagle.cluster.follower import REACH_SECONDS, Follower
from mlx_eagle.cluster.hosts import wiring
from mlx_eagle.cluster.launch import LOOK, greet
from mlx_eagle.cluster.watch import PATIENCE, Patience, Peer
from mlx_eagle.errors import ClusterError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.quoting import one_line

RANK, RING_FILE = "MLX_RANK", "MLX_HOSTFILE"
SAID_BYTES = 256  # in which rank 0 says where it listens


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the rank that `mlx.launch` gave to this process; None if it was not started so."""
    said = environment.get(RANK, "")
    return int(said) if said.isdecimal() else None


def follow() -> None:
    """Be a follower until rank 0 ends.

    Raises:
        ClusterError: if the ring cannot be joined.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to end
    group = _join()
    said = bytes(_summed(group, [0] * SAID_BYTES)).rstrip(b"\0")
    facts = parse_json(said)
    channel = Channel.connect((facts["host"], facts["port"]), facts["token"], REACH_SECONDS)
    try:
        Follower(channel, group.rank(), group).serve()
    finally:
        channel.close()


def lead_launched(patience: Patience = PATIENCE) -> Cluster:
    """Return the cluster of the processes that `mlx.launch` has started; this one is rank 0.

    Raises:
        ClusterError: if the others do not follow.
    """
    group = _join()
    token = new_token()
    listener = Listener(_own_address(), token)
    host, port = listener.address
    said = (
        json.dumps({"host": host, "port": port, "token": token}).encode().ljust(SAID_BYTES, b"\0")
    )
    _summed(group, list(said))
    peers: dict[int, Peer] = {}
    try:
        for _ in range(round(patience.start / LOOK)):
            if len(peers) == group.size() - 1:
                break
            if channel := listener.accept(LOOK):
                names = {rank: f"rank {rank}" for rank in range(1, group.size())}
                if peer := greet(channel, names):
                    peers[peer.rank] = peer
        else:
            raise ClusterError("the other processes of mlx.launch have not connected in time")
    finally:
        listener.close()
    followers = [peers[rank] for rank in sorted(peers)]
    return Cluster(group, followers, patience, lambda _: None, _wiring())


def _join() -> mx.distributed.Group:
    """Join the processes of `mlx.launch`."""
    try:
        group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"the process of rank {os.environ.get(RANK)} cannot join the others "
            f"({one_line(error)}); start all of them at once, with mlx.launch"
        ) from error
    if group.size() < 2:
        raise ClusterError("mlx.launch has started one process; a target is divided among several")
    return group


def _summed(group: mx.distributed.Group, values: list[int]) -> list[int]:
    """Return sums over all ranks of numbers that all but one leave 0."""
    summed = mx.distributed.all_sum(mx.array(values, dtype=mx.int32), group=group)
    mx.eval(summed)
    return cast(list[int], summed.tolist())


def _own_address() -> str:
    """Return rank 0's address in the ring; loopback where another backend tells none."""
    ring = _ring()
    return ring[0][0] if ring and ring[0] else "127.0.0.1"


def _wiring() -> str:
    """Return what joins the processes, see `Hosts.wiring`; another backend's cables are unknown."""
    ring = _ring()
    return wiring(ring) if ring else "mlx.launch"


def _ring() -> list[list[str]]:
    """Return every rank's addresses in the ring; nothing where another backend tells none."""
    file = os.environ.get(RING_FILE, "")
    try:
        with open(file, "rb") as stream:
            ring = parse_json(stream.read(1 << 20))
        return [[str(each).rpartition(":")[0] for each in addresses] for addresses in ring]
    except (OSError, ValueError, TypeError):
        return []
