"""Training on the machines of a hosts file: the others are started and watched as for a target."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlx_eagle.training.run.processes import Processes

FOLLOWER = (sys.executable, "-m", "mlx_eagle.cli.train_follower")


@contextmanager
def training_on(file: Path, arguments: Sequence[str]) -> Iterator["Processes"]:
    """Start the command on all machines of a hosts file but this one, and join them.

    Args:
        file: the hosts file.
        arguments: of the command line here.

    Raises:
        EagleError: if one does not start in time, has other versions, or cannot be reached; what
            happens later is raised where this process waits for the others.
    """
    from mlx_eagle.cluster.hosts import read_hosts
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.training.run.processes import Processes

    cluster = start_cluster(read_hosts(file), follower=FOLLOWER)
    try:
        click.echo(f"training on {cluster.size} hosts: here, {', '.join(cluster.names)}", err=True)
        cluster.train(without_hosts(arguments), Path.cwd())
        yield Processes(cluster.group, lambda: cluster.watch.lost)
    finally:
        cluster.close()


def without_hosts(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for the other machines, which need not have the hosts file."""
    found, rest = list[str](), iter(arguments)
    for each in rest:
        if each == "--hosts":
            next(rest, None)
        elif not each.startswith("--hosts="):
            found.append(each)
    return found
