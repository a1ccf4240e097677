"""Start the followers of a hosts file: here for loopback addresses, elsewhere over ssh.

Each is a process in a session of its own, which Ctrl-C in the terminal does not reach. It is told
over its stdin where rank 0 listens and the token of this run; nothing of that stands in a command
line. What it writes to stderr is kept, for when it fails.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, NamedTuple

import mlx.core as mx

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.control import Channel, Listener, new_token
from mlx_eagle.cluster.facts import other_versions, versions
from mlx_eagle.cluster.hosts import LOCAL_NAMES, Host, Hosts
from mlx_eagle.cluster.messages import Hello, Join, Ready, decode_report, encode_orders
from mlx_eagle.cluster.ring import RING, check_backend, join_hosts
from mlx_eagle.cluster.watch import PATIENCE, Patience, Peer
from mlx_eagle.errors import ClusterError
from mlx_eagle.files.quoting import one_line, printable

FOLLOWER = (sys.executable, "-m", "mlx_eagle.cluster.follower")
FIRST_PORT = 32323  # of the ring on other machines, as mlx.launch has it
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
LOOK = 0.2  # seconds between two looks whether a follower has ended early
LOOKS = 10  # until it counts as unknown who could not be joined
LAST_WORDS = 2000  # bytes


_JOINED: list[tuple[Hosts, Cluster]] = []  # one at most, as MLX has one group per process


class Started(NamedTuple):
    """A follower's process (or that of ssh) and what it writes to stderr."""

    host: Host
    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def last_words(self) -> str:
        """Return the last line that it wrote to stderr."""
        with suppress(OSError):
            size = self.errors.seek(0, os.SEEK_END)
            self.errors.seek(max(size - LAST_WORDS, 0))
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            return one_line(printable(lines[-1])) if lines else ""
        return ""


def start_cluster(
    hosts: Hosts, patience: Patience = PATIENCE, follower: Sequence[str] = FOLLOWER
) -> Cluster:
    """Start a follower for every host but the first, which is this process, and join them.

    A process joins once: for the same hosts its cluster is returned again.

    Args:
        hosts: all ranks.
        patience: when something is wrong.
        follower: the command that a follower is.

    Raises:
        ClusterError: if one does not start in time, has other versions, or cannot be reached.
    """
    for known, cluster in _JOINED:
        if known == hosts and cluster.is_usable:
            return cluster
        raise ClusterError(
            "this process was divided among hosts before, and MLX lets it join others once: start "
            "another process"
        )
    cluster = _start_all(hosts, patience, follower)
    _JOINED.append((hosts, cluster))
    return cluster


def _start_all(hosts: Hosts, patience: Patience, follower: Sequence[str]) -> Cluster:
    """Do what `start_cluster` does for the first time."""
    check_backend(hosts.backend)
    token = new_token()
    started: list[Started] = []
    listener = Listener(hosts.hosts[0].ips[0], token)
    with ExitStack() as undo:
        undo.callback(listener.close)
        failed = undo.enter_context(ExitStack())
        peers: dict[int, Peer] = {}
        failed.callback(lambda: _end(started, 0.0))
        failed.callback(_disconnect, peers)
        for rank, host in enumerate(hosts.hosts[1:], start=1):
            started.append(_start(rank, host, hosts.envs, follower))
            _brief(started[-1], listener.address, token)
        _accept(listener, started, patience, peers)
        join = how_to_join(hosts)
        for peer in peers.values():
            with suppress(OSError):  # it has ended, which is found out when it does not join
                peer.channel.send(encode_orders([join]))
        group = _join(join, list(peers.values()), patience.start)
        for peer in peers.values():
            peer.answer(Ready)
        failed.pop_all()
    followers = [peers[rank] for rank in sorted(peers)]
    end = partial(_end, started)
    return Cluster(group, followers, patience, end, hosts.wiring)


def how_to_join(hosts: Hosts) -> Join:
    """Return what all ranks are told of one another."""
    ring = [[f"{host.ips[0]}:{_port(rank, host)}"] for rank, host in enumerate(hosts.hosts)]
    devices = [list(host.rdma) for host in hosts.hosts] if hosts.backend != RING else []
    return Join.model_validate({"backend": hosts.backend, "ring": ring, "devices": devices})


def _join(join: Join, peers: Sequence[Peer], seconds: float) -> mx.distributed.Group:
    """Join all followers; raises ClusterError, by name where one of them has ended meanwhile."""
    try:
        return join_hosts(0, join, seconds)
    except ClusterError as error:
        for _ in range(LOOKS):
            if lost := next((peer.lost for peer in peers if peer.lost), ""):
                raise ClusterError(f"{lost}, before all had joined") from error
            time.sleep(LOOK)
        raise


def _start(rank: int, host: Host, envs: Sequence[str], follower: Sequence[str]) -> Started:
    """Start one follower."""
    environment = {**os.environ, **dict(env.split("=", 1) for env in envs)}
    command = list(follower)
    if not (host.is_local or host.ssh in LOCAL_NAMES):
        settings = " ".join(shlex.quote(env) for env in envs)
        command = [*SSH, host.ssh, f"env {settings} {shlex.join(follower)}"]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (`_end` closes it)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        errors.close()
        raise ClusterError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    return Started(host, rank, process, errors)


def _brief(started: Started, address: tuple[str, int], token: str) -> None:
    """Tell a follower where rank 0 listens."""
    said = {"host": address[0], "port": address[1], "token": token, "rank": started.rank}
    pipe = started.process.stdin
    assert pipe is not None, "it was started with one"
    with suppress(OSError):  # it has ended, which is found out when it does not connect
        pipe.write(json.dumps(said).encode() + b"\n")
        pipe.close()


def _accept(
    listener: Listener, started: Sequence[Started], patience: Patience, found: dict[int, Peer]
) -> None:
    """Wait until all followers have connected, and compare versions.

    Args:
        listener: to which they connect.
        started: all of them.
        patience: how long that may take.
        found: those that have connected are added to it, by rank.

    Raises:
        ClusterError: naming the first that does not, or that has other versions.
    """
    ends = time.monotonic() + patience.start
    while len(found) < len(started):
        missing = [one for one in started if one.rank not in found]
        _check_running(missing, is_late=time.monotonic() > ends)
        channel = listener.accept(LOOK)
        if channel is None:
            continue
        if peer := greet(channel, {one.rank: one.host.ssh for one in missing}):
            found[peer.rank] = peer


def greet(channel: Channel, names: Mapping[int, str]) -> Peer | None:
    """Return the follower that has connected, if it has the same versions; None if it has ended.

    Args:
        channel: to it.
        names: of the hosts that are waited for, by rank.

    Raises:
        ClusterError: if it has others, or is none of these.
    """
    said = channel.receive()
    if said is None:
        channel.close()
        return None
    try:
        hello = decode_report(said)
        if not isinstance(hello, Hello) or hello.rank not in names:
            raise ClusterError("a follower says that it has a rank which nobody was given")
        name = names[hello.rank]
        if others := other_versions(versions(), hello.versions):
            raise ClusterError(
                f"{name} (rank {hello.rank}) has {others}; install the same versions"
            )
    except ClusterError:
        channel.close()
        raise
    return Peer(name, hello.rank, channel, hello.memory)


def _check_running(missing: Sequence[Started], *, is_late: bool) -> None:
    """Name a follower that has ended before it connected, or is late.

    Raises:
        ClusterError: if there is one.
    """
    for one in missing:
        status = one.process.poll()
        if status is not None:
            words = one.last_words() or f"exit status {status}"
            raise ClusterError(f"rank {one.rank} on {one.host.ssh} could not be started: {words}")
        if is_late:
            raise ClusterError(
                f"rank {one.rank} on {one.host.ssh} has not connected in time: can it reach this "
                f"machine? {one.last_words()}".strip()
            )


def _disconnect(peers: Mapping[int, Peer]) -> None:
    """Close the connections to followers."""
    for peer in peers.values():
        peer.channel.close()


def _port(rank: int, host: Host) -> int:
    """Return a port for a rank's ring: a free one here, elsewhere the one of mlx.launch."""
    if rank and not host.is_local:
        return FIRST_PORT + rank
    with socket.create_server((host.ips[0], 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _end(started: Sequence[Started], seconds: float) -> None:
    """See that no process is left: wait a while, then kill.

    Args:
        started: all followers.
        seconds: that they are given to end by themselves.
    """
    ends = time.monotonic() + seconds
    for one in started:
        try:
            one.process.wait(max(ends - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        one.errors.close()
