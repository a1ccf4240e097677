"""The process that trains on another machine, or beside the first one: `train --hosts` starts it.

It is a follower (`cluster/follower.py`) that knows one thing more: to train. It ends when the first
process does, and tells it why when it fails itself.
"""

import os

import click
import mlx.core as mx

from mlx_eagle.cluster.control import Channel
from mlx_eagle.cluster.follower import Follower, start
from mlx_eagle.cluster.messages import Train
from mlx_eagle.errors import EagleError


class TrainingFollower(Follower):
    """One rank above 0 of a training; arguments are those of `Follower`."""

    def __init__(
        self, channel: Channel, rank: int, group: mx.distributed.Group | None = None
    ) -> None:
        super().__init__(channel, rank, group)
        self._does[Train] = self._train

    def _train(self, order: Train) -> None:
        """Run the command as it was given to the first process."""
        from mlx_eagle.cli.train import command
        from mlx_eagle.training.run.processes import Processes

        assert self._group is not None, "the ring is joined first"
        try:
            os.chdir(order.folder)
        except OSError as error:
            raise EagleError(
                f"there is no folder {order.folder} on this machine ({error.strerror}): all hosts "
                "must see the same files"
            ) from error
        joined = Processes(self._group)
        try:
            command.main(order.arguments, "train", standalone_mode=False, obj=joined)
        except click.ClickException as error:
            raise EagleError(error.format_message()) from error


if __name__ == "__main__":
    start(TrainingFollower)
