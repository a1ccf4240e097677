"""A toy that is trained in milliseconds: two linear layers, random batches, a squared error.

Run as a program, it trains in a folder: `python toy_training.py FOLDER SECONDS CHANGES_JSON` is
what tests kill, interrupt, and start several of (`started_in_two`). Of several, the one of a rank
fails after an update, or kills itself, if the changes have "failing": [rank, update, how].
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Batch, Figures
from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.folder import RunFolder
from mlx_eagle.training.run.loop import Run, train
from mlx_eagle.training.run.processes import Processes
from mlx_eagle.training.run.reports import Measurement, UpdateReport

WIDTH, LENGTH, STEPS, UPDATES = 6, 5, 2, 12
OPTIONS = {"batch": 2, "accumulate": 2, "save_every": 3, "measure_every": 4}


class ToyHead(nn.Module):
    """Matrices for Muon, and all that is left to AdamW."""

    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(1)
        self.layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)]
        self.lm_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.draft_to_target = mx.arange(WIDTH, dtype=mx.int32)
        self.freeze(keys=["draft_to_target"])

    def __call__(self, x: mx.array) -> mx.array:
        first, second = self.layers
        hidden: mx.array = second(nn.silu(first(x)))
        return hidden


def objective(head: ToyHead, noise: float = 0.1) -> Any:
    """A squared error at each of STEPS steps, with noise on what is read."""

    def error(batch: Batch) -> tuple[mx.array, Figures]:
        hidden = batch.taps + noise * mx.random.normal(batch.taps.shape)
        losses, hits, n = [], [], batch.tokens.size
        for _ in range(STEPS):
            hidden = head(hidden)
            logits = head.lm_head(hidden)
            losses.append((logits - batch.final).square().sum() / n)
            hits.append((logits.argmax(-1) == batch.choices).sum())
        found = Figures(mx.stack(losses), mx.stack(hits), mx.full((STEPS,), n, dtype=mx.int32))
        return mx.stack(losses).sum(), Figures(*map(mx.stop_gradient, found))

    return error


class ToyData:
    """Batches by the number of the update; of several processes each has its own rows."""

    def __init__(self, rows: int, accumulate: int, processes: Processes | None = None) -> None:
        self.rows, self.accumulate = rows, accumulate
        self.processes = processes or Processes()

    def batches(self, update: int) -> list[Batch]:
        return [self._batch(update * self.accumulate + i) for i in range(self.accumulate)]

    def heldout(self) -> Iterable[Batch]:
        # With several processes the second has none: an empty share is no special case.
        if self.processes.is_first:
            yield self._batch(1_000_000)

    def _batch(self, number: int) -> Batch:
        size, rank = self.processes.size, self.processes.rank
        taps = np.random.default_rng(number).normal(size=(self.rows * size, LENGTH, WIDTH))
        final = np.tanh(taps @ np.random.default_rng(5).normal(size=(WIDTH, WIDTH)))
        own = slice(rank * self.rows, (rank + 1) * self.rows)
        ids = mx.zeros((self.rows, LENGTH), dtype=mx.int32)
        choices = mx.array(final[own].argmax(-1).astype(np.int32))
        read, right = (mx.array(x[own].astype(np.float32)) for x in (taps, final))
        return Batch(ids, read, right, choices, ids + 1, ids == 0)


def toy_run(folder: Path, **changes: Any) -> Run:
    """A training of the toy, new or begun; `changes` are those of `Run`, or of its options."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Run.__annotations__}
    noise = changes.pop("noise", 0.1)
    options = LoopOptions(**OPTIONS | changes)
    processes = fields.get("processes", Processes())
    head = ToyHead()
    made = {
        "head": head,
        "objective": objective(head, noise),
        "measured": objective(head, 0.0),
        "data": ToyData(options.batch, options.accumulate, processes),
        "options": options,
        "n_updates": UPDATES,
        "folder": RunFolder.open(folder) if folder.exists() else RunFolder.create(folder, {}),
        "is_compiled": False,  # compiling takes longer than training
        "fingerprint": {"batch": options.batch, "seed": options.seed},
    }
    return Run(**made | fields)


def free_ports(n: int) -> list[int]:
    """Return ports of this machine that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started_in_two(folder: Path, **changes: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the program in two processes on loopback, as `mlx.launch` would; they end in time."""
    folder.mkdir(exist_ok=True)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    command = [sys.executable, __file__, str(folder), "0", json.dumps(changes)]
    places = [os.environ | {"MLX_RANK": str(r), "MLX_HOSTFILE": str(hosts)} for r in range(2)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=env, **pipes) for env in places]
    try:
        yield started
    finally:
        for program in started:
            program.kill()
            program.communicate()


def main() -> None:
    """Train in a folder, as slowly as asked."""
    folder, seconds, changes = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    rank, update, how = changes.pop("failing", (-1, 0, ""))
    print("ready", flush=True)
    processes = Processes.joined()

    def watch(report: UpdateReport | Measurement) -> None:
        time.sleep(seconds)
        if processes.rank == rank and report.update == update:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise EagleError(how)

    run = toy_run(
        folder / str(processes.rank) if processes.size > 1 else folder,
        watch=watch,
        processes=processes,
        **changes,
    )
    with processes.ending_together():
        outcome = train(run)
    if processes.size > 1:
        mx.savez(
            str(folder / f"{processes.rank}.npz"),
            **dict(tree_flatten(run.head.trainable_parameters())),
        )
    print(json.dumps(outcome._asdict()), flush=True)


if __name__ == "__main__":
    main()
