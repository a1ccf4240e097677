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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, NamedTuple

import mlx.core as mx

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.connecting import LOOK, accept_all, disconnect
from mlx_eagle.cluster.control import Listener, new_token
from mlx_eagle.cluster.hosts import LOCAL_NAMES, Host, Hosts
from mlx_eagle.cluster.messages import Join, Ready, encode_orders
from mlx_eagle.cluster.ring import RING, check_backend, join_hosts
from mlx_eagle.cluster.watch import PATIENCE, Patience, Peer, processes_of
from mlx_eagle.errors import ClusterError
from mlx_eagle.files.quoting import one_line, printable

FOLLOWER = (sys.executable, "-m", "mlx_eagle.cluster.follower")
FIRST_PORT = 32323  # of the ring on other machines, as mlx.launch has it
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
KILL_SECONDS = 5.0  # in which a process is gone that was killed
LOOKS = 10  # until it counts as unknown who could not be joined
LAST_WORDS = 2000  # bytes


_JOINED: list[tuple[Hosts | str, Cluster]] = []  # one at most, as MLX has one group per process


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
    return joined_once(hosts, lambda: _start_all(hosts, patience, follower))


def joined_once(others: Hosts | str, start: Callable[[], Cluster]) -> Cluster:
    """Return the cluster of this process, which is started unless it is there.

    Args:
        others: what this process joins.
        start: starts it.

    Raises:
        ClusterError: if it has joined others, or these were lost; or as `start` does.
    """
    for known, cluster in _JOINED:
        if known == others and cluster.is_usable:
            return cluster
        raise ClusterError(
            "this process was divided among hosts before, and MLX lets it join others once: start "
            "another process"
        )
    cluster = start()
    _JOINED.append((others, cluster))
    return cluster


def _start_all(hosts: Hosts, patience: Patience, follower: Sequence[str]) -> Cluster:
    """Do what `start_cluster` does for the first time."""
    check_backend(hosts.backend)
    os.environ.update(dict(env.split("=", 1) for env in hosts.envs))
    token = new_token()
    started: list[Started] = []
    listener = Listener(hosts.hosts[0].ips[0], token)
    with ExitStack() as undo:
        undo.callback(listener.close)
        failed = undo.enter_context(ExitStack())
        failed.callback(lambda: _end(started, 0.0))
        for rank, host in enumerate(hosts.hosts[1:], start=1):
            started.append(_start(rank, host, hosts.envs, follower))
            _brief(started[-1], listener.address, token)
        peers = _accept(listener, started, patience.start)
        failed.callback(disconnect, peers)
        join = how_to_join(hosts)
        for peer in peers.values():
            with suppress(OSError):  # it has ended, which is found out when it does not join
                peer.channel.send(encode_orders([join]))
        group = _join(join, list(peers.values()), patience.start)
        for peer in peers.values():
            peer.answer(Ready, seconds=patience.start)
        followers = [peers[rank] for rank in sorted(peers)]
        cluster = Cluster(group, followers, patience, partial(_end, started), hosts.wiring)
        failed.pop_all()
    return cluster


def how_to_join(hosts: Hosts) -> Join:
    """Return what all ranks are told of one another."""
    ring = [[f"{host.ips[0]}:{_port(rank, host)}"] for rank, host in enumerate(hosts.hosts)]
    devices = [list(host.rdma) for host in hosts.hosts] if hosts.backend != RING else []
    return Join.model_validate({"backend": hosts.backend, "ring": ring, "devices": devices})


def _join(join: Join, peers: Sequence[Peer], seconds: float) -> mx.distributed.Group:
    """Join all followers; raises ClusterError, by name where one of them has ended meanwhile."""
    try:
        return join_hosts(0, join, seconds, processes_of(peers))
    except ClusterError as error:
        for _ in range(LOOKS):
            if lost := next((peer.lost for peer in peers if peer.lost), ""):
                raise ClusterError(f"{lost}, before all had joined") from error
            time.sleep(LOOK)
        raise


def _start(rank: int, host: Host, envs: Sequence[str], follower: Sequence[str]) -> Started:
    """Start one follower."""
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


def _accept(listener: Listener, started: Sequence[Started], seconds: float) -> dict[int, Peer]:
    """Return the followers once all have connected; raises ClusterError, see `accept_all`."""

    def check(missing: Mapping[int, str], is_late: bool) -> None:
        _check_running([one for one in started if one.rank in missing], is_late=is_late)

    names = {one.rank: one.host.ssh for one in started}
    peers = accept_all(listener, names, seconds, check)
    for one in started:
        peers[one.rank].process = one.process.pid
    return peers


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
            with suppress(subprocess.TimeoutExpired):  # a kernel may not let go of it
                one.process.wait(KILL_SECONDS)
        one.errors.close()
