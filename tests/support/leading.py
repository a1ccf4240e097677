"""Rank 0 as a program that never stops decoding: what tests kill, stop and lead astray.

`python leading.py FOLDER PATIENCE FAULT PARALLEL` loads a tiny target on two ranks, prints the
process id of its follower and then a line for every token. The follower is `python leading.py
--follow FAULT`: it writes its id to the file in LEADING_PID, and does wrong what FAULT says:
"none", "skips" (a pass), "other tree" (runs fewer tokens), "lies" (about its rows), "old" (has
another version), "leaves" and "no memory" (while the target is tried).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from mlx_eagle.cluster import follower
from mlx_eagle.cluster.control import Channel
from mlx_eagle.cluster.messages import Check, Done, Hello, Report, Run
from mlx_eagle.errors import EagleError

PID = "LEADING_PID"
FAULTY_PASS = 12


class FaultyFollower(follower.Follower):
    """A follower that does one thing wrong."""

    fault = "none"

    def run(self, order: Run) -> None:
        if order.number == FAULTY_PASS and self.fault == "skips":
            return
        if order.number == FAULTY_PASS and self.fault == "other tree":
            order = order.model_copy(update={"tokens": [*order.tokens, 1]})
        super().run(order)

    def _check(self, order: Check) -> None:
        if self.fault == "leaves":
            os._exit(9)
        if self.fault == "no memory":
            self._held(order.target).plain._run = fail  # type: ignore[method-assign]
        super()._check(order)

    def report(self, report: Report) -> None:
        if isinstance(report, Done) and report.number == FAULTY_PASS and self.fault == "lies":
            report = Done(number=report.number, rows=report.rows + 1)
        if isinstance(report, Hello) and self.fault == "old":
            versions = report.versions | {"mlx": "0.1"}
            report = Hello(rank=report.rank, versions=versions, memory=report.memory)
        super().report(report)


def fail(*_: Any) -> NoReturn:
    """Fail as MLX does."""
    raise RuntimeError("[malloc] no memory is left")


def follow(fault: str) -> None:
    """Be the follower."""
    Path(os.environ[PID]).write_text(str(os.getpid()))

    def make(channel: Channel, rank: int) -> FaultyFollower:
        made = FaultyFollower(channel, rank)
        made.fault = fault
        return made

    follower.start(make)


def lead_on(folder: Path, patience: dict[str, float], fault: str, parallel: str) -> None:
    """Be rank 0, and decode until something happens."""
    from mlx_eagle.cluster.hosts import loopback
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.cluster.watch import Patience
    from mlx_eagle.decoding.loop import rounds
    from mlx_eagle.decoding.rounds import Decoder
    from mlx_eagle.planner.policy import FixedShape
    from mlx_eagle.sampling.samplers import SeededSampler
    from mlx_eagle.sampling.token_selector import TokenSelector
    from mlx_eagle.tree import PLAIN
    from shards import lead

    command = (sys.executable, __file__, "--follow", fault)
    cluster = start_cluster(loopback(2), Patience(**patience), command)
    target = lead(cluster, folder, parallel=parallel)
    print("follower", Path(os.environ[PID]).read_text(), flush=True)
    decoder = Decoder(target, target.make_cache(), None, TokenSelector(SeededSampler()))
    for round_ in rounds(decoder, 5, FixedShape(PLAIN)):
        print("token", *round_.tokens, flush=True)


def main() -> int:
    """Run as the arguments say."""
    if sys.argv[1] == "--follow":
        follow(sys.argv[2])
        return 0
    folder, patience, fault, parallel = sys.argv[1:]
    try:
        lead_on(Path(folder), json.loads(patience), fault, parallel)
    except EagleError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
