"""Processes that `mlx.launch` has started: those above rank 0 follow, rank 0 leads.

`mlx.launch` gives every process the same command and copies stdin to each; so whatever has a rank
above 0 becomes a follower before it reads or prints anything. There is no channel for a token but
the ring itself, which all of them join first: rank 0 tells where it listens by a sum to which the
others add zeros. So rank 0 joins before it does anything that takes long, such as a download: the
others give up after half a minute.
"""

import json
import os
import signal
from collections.abc import Mapping
from typing import cast

import mlx.core as mx

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.connecting import accept_all, disconnect
from mlx_eagle.cluster.control import Channel, Listener, new_token
from mlx_eagle.cluster.follower import REACH_SECONDS, Follower
from mlx_eagle.cluster.hosts import wiring
from mlx_eagle.cluster.launch import joined_once
from mlx_eagle.cluster.rank import launched_rank
from mlx_eagle.cluster.ring import (
    COORDINATOR,
    JOIN_SECONDS,
    RING_FILE,
    TOGETHER,
    join_launched,
    joining,
)
from mlx_eagle.cluster.watch import PATIENCE, Patience
from mlx_eagle.errors import ClusterError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.load_options import LAUNCHED

SAID_BYTES = 256  # in which rank 0 says where it listens


def follow() -> None:
    """Be a follower until rank 0 ends.

    Raises:
        ClusterError: if the others cannot be joined.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to end
    group = _join_several()
    facts = parse_json(_told(group))
    channel = Channel.connect((facts["host"], facts["port"]), facts["token"], REACH_SECONDS)
    try:
        Follower(channel, group.rank(), group).serve()
    finally:
        channel.close()


def lead_launched(patience: Patience = PATIENCE) -> Cluster:
    """Return the cluster of the processes that `mlx.launch` has started; this one is rank 0.

    They are joined once; after that it is the same cluster again.

    Args:
        patience: when something is wrong.

    Raises:
        ClusterError: if the others do not follow, or this process is one of them.
    """
    if rank := launched_rank():
        raise ClusterError(
            f"this is the process of rank {rank} of mlx.launch, and rank 0 alone loads models: the "
            "others call mlx_eagle.cluster.launched.follow()"
        )
    return joined_once(LAUNCHED, lambda: _lead(patience))


def _lead(patience: Patience) -> Cluster:
    """Do what `lead_launched` does for the first time."""
    group = _join_several()
    token = new_token()
    listener = Listener(_own_address(), token)
    try:
        host, port = listener.address
        _told(group, json.dumps({"host": host, "port": port, "token": token}).encode())
        names = {rank: f"rank {rank}" for rank in range(1, group.size())}
        peers = accept_all(listener, names, patience.start, _check_time)
    finally:
        listener.close()
    followers = [peers[rank] for rank in sorted(peers)]
    try:
        return Cluster(group, followers, patience, lambda _: None, _wiring())
    except BaseException:
        disconnect(peers)
        raise


def _check_time(missing: Mapping[int, str], is_late: bool) -> None:
    """Name the first process that is missing, once it is late; raises ClusterError."""
    if is_late:
        raise ClusterError(
            f"rank {min(missing)} of mlx.launch has not connected in time; {TOGETHER}"
        )


def _join_several() -> mx.distributed.Group:
    """Join the processes of `mlx.launch`; raises ClusterError, also if there is just this one."""
    group = join_launched()
    if group.size() < 2:
        raise ClusterError("mlx.launch has started one process; a target is divided among several")
    return group


def _told(group: mx.distributed.Group, said: bytes = b"") -> bytes:
    """Return what rank 0 says to all: a sum to which the others, who say nothing, add zeros."""
    values = mx.array(list(said.ljust(SAID_BYTES, b"\0")), dtype=mx.int32)
    with joining(group.rank(), JOIN_SECONDS, TOGETHER):
        summed = mx.distributed.all_sum(values, group=group, stream=mx.cpu)
        mx.eval(summed)
    return bytes(cast(list[int], summed.tolist())).rstrip(b"\0")


def _own_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address at which the others join rank 0; loopback where none is known."""
    if coordinator := environment.get(COORDINATOR):  # of JACCL
        return coordinator.rpartition(":")[0]
    ring = _ring(environment)
    return ring[0][0] if ring and ring[0] else "127.0.0.1"


def _wiring() -> str:
    """Return what joins the processes, see `Hosts.wiring`; another backend's cables are unknown."""
    ring = _ring(os.environ)
    return wiring(ring) if ring else "mlx.launch"


def _ring(environment: Mapping[str, str]) -> list[list[str]]:
    """Return every rank's addresses in the ring; nothing where another backend tells none."""
    try:
        with open(environment.get(RING_FILE, ""), "rb") as stream:
            ring = parse_json(stream.read(1 << 20))
        return [[str(each).rpartition(":")[0] for each in addresses] for addresses in ring]
    except (OSError, ValueError, TypeError):
        return []
