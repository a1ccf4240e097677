"""The hosts file: which machines there are, in the format of `mlx.launch`.

Either a list of hosts or an object with "backend", "envs" and "hosts". A host has "ssh", the name
to log in with, and "ips", the addresses for the ring; the first one is where its control socket
and its ring are opened, and no other address is. For JACCL it has "rdma": which of its devices
leads to each host, null for itself. "parallel", beside "backend", is ours: how a target is divided
where the command does not say so.
"""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.cluster.messages import MAX_RANKS
from mlx_eagle.cluster.ring import JACCL, JACCL_RING, RING
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import quote, quote_value
from mlx_eagle.load_options import PIPELINE, TENSOR

MAX_FILE_BYTES = 1 << 20
LOCAL_NAMES = ("localhost", "127.0.0.1")


class Host(NamedTuple):
    """One rank's machine.

    Attributes:
        ssh: the name to log in with.
        ips: its addresses for the ring.
        rdma: its RDMA devices that lead to each host; None for itself, and where no cable is.
    """

    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[str | None, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, by its loopback address."""
        return all(ipaddress.ip_address(ip).is_loopback for ip in self.ips)


class Hosts(NamedTuple):
    """What a hosts file says.

    Attributes:
        hosts: by rank; the first is where the command runs.
        envs: variables "NAME=value" that the other processes are given.
        backend: what joins them.
        parallel: how a target is divided among them; None where the file does not say.
    """

    hosts: tuple[Host, ...]
    envs: tuple[str, ...] = ()
    backend: str = RING
    parallel: str | None = None

    @property
    def wiring(self) -> str:
        """What joins them, in words: the costs of rounds depend on it."""
        devices = [] if self.backend == RING else [host.rdma for host in self.hosts]
        return wiring([host.ips[:1] for host in self.hosts], self.backend, devices)


def wiring(
    addresses: Sequence[Sequence[str]], backend: str = RING, devices: Sequence[Sequence[Any]] = ()
) -> str:
    """Return what joins hosts, in words.

    Args:
        addresses: of every rank, without ports, which are others in every run.
        backend: what joins them.
        devices: for RDMA, of every rank, those that lead to the others.
    """
    links = ["+".join(filter(None, those)) for those in (*addresses, *devices)]
    return f"{backend} " + ", ".join(links)


def loopback(n_ranks: int) -> Hosts:
    """Return hosts that are all this machine: for tests, and to see how sharding works."""
    return Hosts(tuple(Host("127.0.0.1", ("127.0.0.1",)) for _ in range(n_ranks)))


def read_hosts(path: Path) -> Hosts:
    """Return what a hosts file says.

    Raises:
        ClusterError: naming the first thing that is not right.
    """
    try:
        check_file(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ClusterError(f"it has more than {MAX_FILE_BYTES} bytes")
        said = parse_json(path.read_bytes())
        return _hosts(said)
    except (OSError, ValueError, RecursionError, EagleError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"{quote(path)} is no hosts file: {reason}") from error


def _hosts(said: Any) -> Hosts:
    """Return what the file says; raises ClusterError."""
    facts = said if isinstance(said, dict) else {"hosts": said}
    entries, envs = facts.get("hosts"), facts.get("envs", [])
    backend, parallel = facts.get("backend", ""), facts.get("parallel")
    backend = RING if backend in ("", "any") else backend
    if backend not in (RING, JACCL, JACCL_RING):
        raise ClusterError(
            f"its backend is {quote_value(backend)}; {RING}, {JACCL} and {JACCL_RING} are known"
        )
    if parallel not in (None, TENSOR, PIPELINE):
        raise ClusterError(f'its "parallel" must be {TENSOR} or {PIPELINE}')
    if not isinstance(entries, list) or not 2 <= len(entries) <= MAX_RANKS:
        raise ClusterError(f'it must list 2 to {MAX_RANKS} hosts, each with "ssh" and "ips"')
    if not isinstance(envs, list) or not all(_is_variable(env) for env in envs):
        raise ClusterError('its "envs" must be a list of "NAME=value"')
    hosts = tuple(_host(rank, entry) for rank, entry in enumerate(entries))
    if backend != RING:
        _check_devices(hosts, is_ring=backend == JACCL_RING)
    return Hosts(hosts, tuple(envs), backend, parallel)


def _host(rank: int, entry: Any) -> Host:
    """Return one host; raises ClusterError."""
    fields = entry if isinstance(entry, dict) else {}
    ssh, ips = fields.get("ssh"), fields.get("ips")
    # A name that begins with a dash would be an option of ssh.
    if not isinstance(ssh, str) or not ssh or ssh.startswith("-") or not ssh.isprintable():
        raise ClusterError(f'host {rank} has no "ssh", the name to log in with')
    if not isinstance(ips, list) or not ips or not all(_is_address(ip) for ip in ips):
        raise ClusterError(f'host {rank} has no "ips", a list of its addresses (192.168.1.2)')
    devices = fields.get("rdma", [])
    if not isinstance(devices, list) or not all(_is_device(device) for device in devices):
        raise ClusterError(f'host {rank} has an "rdma" that is no list of devices (rdma_en2, null)')
    return Host(ssh, tuple(ips), tuple(devices))


def _check_devices(hosts: tuple[Host, ...], *, is_ring: bool) -> None:
    """Refuse hosts between which a device is missing; raises ClusterError."""
    n = len(hosts)
    for rank, host in enumerate(hosts):
        if len(host.rdma) != n or host.rdma[rank] is not None:
            raise ClusterError(
                f'host {rank} must have an "rdma" of {n} devices, one for each host, with null for '
                "itself"
            )
        peers = {(rank - 1) % n, (rank + 1) % n} if is_ring else {*range(n)} - {rank}
        if missing := [peer for peer in sorted(peers) if host.rdma[peer] is None]:
            raise ClusterError(f"host {rank} has no RDMA device that leads to host {missing[0]}")


def _is_device(value: Any) -> bool:
    """Say whether something is an RDMA device, or says that there is none."""
    return value is None or (isinstance(value, str) and value.isprintable() and bool(value))


def _is_address(text: Any) -> bool:
    """Say whether something is an address that MLX's ring takes: of IPv4."""
    try:
        ipaddress.IPv4Address(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def _is_variable(text: Any) -> bool:
    """Say whether something sets a variable of the environment."""
    name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    return bool(equals) and name.isidentifier() and name.isascii() and value.isprintable()
