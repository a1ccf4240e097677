"""What a set of hosts is fit for: versions, files and links, looked at before a model is loaded."""

from pathlib import Path
from typing import NamedTuple

from mlx_eagle.cluster.cluster import Cluster

NUMBERS = (1, 4096, 1 << 20)  # float32: next to nothing, a row of a large model, a prompt's chunk


class Link(NamedTuple):
    """A sum over all ranks: bytes that each gives to it, and the seconds that it takes."""

    nbytes: int
    seconds: float


class HostsReport(NamedTuple):
    """What was found.

    Attributes:
        names: of the followers' hosts.
        memory: bytes that MLX may use on each.
        links: sums, the smallest first.
        has_files: whether a target was compared, and is the same everywhere.
    """

    names: list[str]
    memory: list[int]
    links: list[Link]
    has_files: bool

    @property
    def bytes_per_second(self) -> float:
        """How fast more bytes are summed, without what a sum takes whatever its size."""
        first, last = self.links[0], self.links[-1]
        return (last.nbytes - first.nbytes) / max(last.seconds - first.seconds, 1e-9)


def examine_hosts(cluster: Cluster, target: tuple[Path, str] | None = None) -> HostsReport:
    """Measure the links, and compare the files of a target.

    Args:
        cluster: started: so all have the same versions, and reach one another.
        target: its folder here, and its name; None compares no files.

    Raises:
        ClusterError: naming the host that has no such files, or was lost.
    """
    if target is not None:
        cluster.compare(*target)
    links = [Link(4 * numbers, cluster.measure(numbers)) for numbers in NUMBERS]
    return HostsReport(cluster.names, cluster.memories, links, target is not None)
