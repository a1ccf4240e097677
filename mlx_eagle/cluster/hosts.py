"""The hosts file: which machines there are, in the format of `mlx.launch`.

Either a list of hosts or an object with "backend", "envs" and "hosts". A host has "ssh", the name
to log in with, and "ips", the addresses for the ring; the first one is where its control socket
and its ring are opened, and no other address is.
"""

import ipaddress
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.cluster.messages import MAX_RANKS
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import quote, quote_value

MAX_FILE_BYTES = 1 << 20
RING, JACCL = "ring", "jaccl"
LOCAL_NAMES = ("localhost", "127.0.0.1")


class Host(NamedTuple):
    """One rank's machine.

    Attributes:
        ssh: the name to log in with.
        ips: its addresses for the ring.
    """

    ssh: str
    ips: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, by its loopback address."""
        return all(ipaddress.ip_address(ip).is_loopback for ip in self.ips)


class Hosts(NamedTuple):
    """What a hosts file says.

    Attributes:
        hosts: by rank; the first is where the command runs.
        envs: variables "NAME=value" that the other processes are given.
    """

    hosts: tuple[Host, ...]
    envs: tuple[str, ...] = ()


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
    entries, envs, backend = said, [], ""
    if isinstance(said, dict):
        entries, envs = said.get("hosts"), said.get("envs", [])
        backend = said.get("backend", "")
    if backend not in ("", "any", RING):
        raise ClusterError(
            f"its backend is {quote_value(backend)}; only {RING} is run so far"
            + (" (JACCL was not tried yet)" if backend == JACCL else "")
        )
    if not isinstance(entries, list) or not 2 <= len(entries) <= MAX_RANKS:
        raise ClusterError(f'it must list 2 to {MAX_RANKS} hosts, each with "ssh" and "ips"')
    if not isinstance(envs, list) or not all(_is_variable(env) for env in envs):
        raise ClusterError('its "envs" must be a list of "NAME=value"')
    return Hosts(tuple(_host(rank, entry) for rank, entry in enumerate(entries)), tuple(envs))


def _host(rank: int, entry: Any) -> Host:
    """Return one host; raises ClusterError."""
    fields = entry if isinstance(entry, dict) else {}
    ssh, ips = fields.get("ssh"), fields.get("ips")
    # A name that begins with a dash would be an option of ssh.
    if not isinstance(ssh, str) or not ssh or ssh.startswith("-") or not ssh.isprintable():
        raise ClusterError(f'host {rank} has no "ssh", the name to log in with')
    if not isinstance(ips, list) or not ips or not all(_is_address(ip) for ip in ips):
        raise ClusterError(f'host {rank} has no "ips", a list of its addresses (192.168.1.2)')
    return Host(ssh, tuple(ips))


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
