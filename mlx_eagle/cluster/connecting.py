"""Followers arrive: each connects, says the token, and is asked what it is."""

import time
from collections.abc import Callable, Mapping

from mlx_eagle.cluster.control import Channel, Listener
from mlx_eagle.cluster.facts import other_versions, versions
from mlx_eagle.cluster.messages import Hello, decode_report
from mlx_eagle.cluster.watch import Peer
from mlx_eagle.errors import ClusterError

LOOK = 0.2  # seconds between two looks whether a follower has ended early
HELLO_SECONDS = 10.0  # in which one that has connected must say what it is

Check = Callable[[Mapping[int, str], bool], None]


def accept_all(
    listener: Listener, names: Mapping[int, str], seconds: float, check: Check
) -> dict[int, Peer]:
    """Wait until all followers have connected, and compare versions.

    Args:
        listener: to which they connect.
        names: of their hosts, by rank.
        seconds: that this may take.
        check: told now and then who is missing, and whether it is late; raises what is wrong.

    Raises:
        ClusterError: naming the first that has other versions, or as `check` does; none is left
            connected.
    """
    found: dict[int, Peer] = {}
    ends = time.monotonic() + seconds
    try:
        while missing := {rank: name for rank, name in names.items() if rank not in found}:
            check(missing, time.monotonic() > ends)
            channel = listener.accept(LOOK)
            if channel is not None and (peer := greet(channel, missing)):
                found[peer.rank] = peer
    except BaseException:
        disconnect(found)
        raise
    return found


def greet(channel: Channel, names: Mapping[int, str]) -> Peer | None:
    """Return the follower that has connected, if it has the same versions.

    Args:
        channel: to it; closed where it does not become a follower.
        names: of the hosts that are waited for, by rank.

    Returns:
        None if it has ended or says nothing: whoever it was is missed, then.

    Raises:
        ClusterError: if it has other versions, or is none of these.
    """
    said = channel.receive(HELLO_SECONDS)
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


def disconnect(peers: Mapping[int, Peer]) -> None:
    """Close the connections to followers."""
    for peer in peers.values():
        peer.channel.close()
