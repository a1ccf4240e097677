"""The loop of training: updates, measurements and checkpoints, until the last update or Ctrl-C.

What an update does depends on the weights, the optimizer's state and the update's number alone. So
a training that is killed at any moment and started again ends with the same weights, to the bit.
Several processes (`processes.py`) make the same updates together; the first one writes the files.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Batch, Objective
from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_arrays,
    restore,
    save_checkpoint,
    trained_arrays,
)
from mlx_eagle.training.run.folder import MEASUREMENTS, UPDATES, RunFolder
from mlx_eagle.training.run.interruption import stop_requests
from mlx_eagle.training.run.optimizer import full_rates, make_optimizer, set_rates
from mlx_eagle.training.run.processes import Processes
from mlx_eagle.training.run.reports import Measurement, Sums, UpdateReport, table_row
from mlx_eagle.training.run.schedule import rate_factor
from mlx_eagle.training.run.step import Measure, Pending, Step, seed_random_numbers


class TrainingData(Protocol):
    """What a head is trained and measured on, as one of the processes sees it.

    `LoopOptions.batch` counts the rows of each process: process r of n has the rows r * batch to
    (r + 1) * batch of a batch of n * batch rows.
    """

    def batches(self, update: int) -> list[Batch]:
        """Return the batches of an update, by nothing but its number, from 0 on.

        There are as many as are accumulated, all of the same number of rows.
        """

    def heldout(self) -> Iterable[Batch]:
        """Yield this process' share of the batches that nothing is learned from."""


class Outcome(NamedTuple):
    """How a training ended.

    Attributes:
        update: updates that are done, and saved.
        is_interrupted: the user asked it to stop before the last one.
        is_first: this is the process that has written the files.
        was_finished: it had reached its end before, and nothing was done.
    """

    update: int
    is_interrupted: bool
    is_first: bool = True
    was_finished: bool = False


def _ignore(report: UpdateReport | Measurement) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        head: whose trainable weights, all float32, are trained in place.
        objective: what is made smaller.
        data: what it is trained on.
        options: rates, clipping, how often to save and to measure.
        n_updates: updates from the beginning to the end.
        folder: where it is kept; only the first process writes there.
        fingerprint: what a checkpoint must agree with to be continued, as JSON.
        measured: the objective on held-out texts; None for the same.
        watch: called after each update and each measurement.
        processes: who trains together.
        is_compiled: the step runs through `mx.compile`; its results differ in the last bits.
    """

    head: nn.Module
    objective: Objective
    data: TrainingData
    options: LoopOptions
    n_updates: int
    folder: RunFolder
    fingerprint: Mapping[str, Any]
    measured: Objective | None = None
    watch: Callable[[UpdateReport | Measurement], None] = _ignore
    processes: Processes = field(default_factory=Processes)
    is_compiled: bool = True


def train(run: Run) -> Outcome:
    """Train a head from its newest checkpoint, or from the start, to the end or until Ctrl-C.

    Ctrl-C lets the update in flight finish and saves; so does SIGTERM. The head has the weights of
    the last update in the end; the best ones are in the run's folder.

    Raises:
        EagleError: if the loss or the gradients are not finite, the newest checkpoint is of another
            training, or something cannot be written. Checkpoints stay as they are.
    """
    trainer = _Trainer(run)
    trainer.resume()
    with stop_requests() as is_asked_to_stop:
        return trainer.go_on(is_asked_to_stop)


class _Trainer:
    """The state of a training between two updates."""

    def __init__(self, run: Run) -> None:
        weights = trained_arrays(run.head)
        assert weights, "the head has trainable weights"
        assert all(w.dtype == mx.float32 for w in weights.values()), "trained weights are float32"
        self.run = run
        self.update = 0  # updates that are done
        self.saved: int | None = None  # the update that the newest checkpoint is of
        self.best = -math.inf  # acceptance length of the best measurement
        self.optimizer = make_optimizer(run.options, run.head)
        self.n_steps = 0  # of the objective, as the last update tells
        self.rates = full_rates(run.options)
        self.step = Step(
            run.head,
            run.objective,
            self.optimizer,
            run.options.clip,
            run.processes,
            run.is_compiled,
        )
        self.measure = Measure(run.head, run.measured or run.objective, run.is_compiled)

    def resume(self) -> None:
        """Take everything from the newest checkpoint, and from the first process."""
        run, processes = self.run, self.run.processes
        if processes.is_first:
            found = load_checkpoint(run.folder.checkpoints, run.fingerprint)
            if found is not None:
                restore(found, run.head, self.optimizer)
                self.update = self.saved = found.update
            best = load_checkpoint(run.folder.best, run.fingerprint)
            self.best = -math.inf if best is None else best.measured["acceptance_length"]
            run.folder.cut(self.update)
        if processes.size > 1:
            weights = processes.of_first(trained_arrays(run.head))
            state = processes.of_first(optimizer_arrays(self.optimizer))
            (update,) = processes.of_first({"update": mx.array(self.update)}).values()
            self.update = int(update)
            restore(Checkpoint(self.update, weights, state, {}), run.head, self.optimizer)

    def go_on(self, is_asked_to_stop: Callable[[], bool]) -> Outcome:
        """Make the updates that are left."""
        run, options, start = self.run, self.run.options, time.perf_counter()
        is_last = is_stopping = False
        batches = run.data.batches(self.update) if self.update < run.n_updates else []
        while self.update < run.n_updates and not is_stopping:
            rates = self._rates()
            pending = self._submit(batches, rates)
            is_last = self.update + 1 == run.n_updates
            # What comes next is read while this update is computed.
            batches = [] if is_last else run.data.batches(self.update + 1)
            sums, is_stopping = self._finish(pending, is_asked_to_stop)
            self._report(sums, float(pending.norm), rates, time.perf_counter() - start)
            if is_last or self.update % options.measure_every == 0:
                self._measure()
            if is_last or is_stopping or self.update % options.save_every == 0:
                self._save()
            start = time.perf_counter()
        is_early = is_stopping and self.update < run.n_updates
        return Outcome(self.update, is_early, run.processes.is_first)

    def _rates(self) -> tuple[float, ...]:
        """Return the learning rates of the next update."""
        run, options = self.run, self.run.options
        factor = rate_factor(
            self.update, run.n_updates, warmup=options.warmup, decay_from=options.decay_from
        )
        return tuple(rate * factor for rate in self.rates)

    def _submit(self, batches: Sequence[Batch], rates: tuple[float, ...]) -> Pending:
        """Begin the next update."""
        seed_random_numbers(self.run.options.seed, self.update, self.run.processes.rank)
        set_rates(self.optimizer, rates)
        return self.step.submit(batches)

    def _finish(self, pending: Pending, is_asked_to_stop: Callable[[], bool]) -> tuple[Sums, bool]:
        """Wait for an update; returns its figures and whether any process is asked to stop.

        Raises:
            EagleError: if the loss or the gradients are not finite.
        """
        sums = pending.sums()
        wishes = float(is_asked_to_stop())
        self.n_steps = len(sums.hits)
        sums, wishes = self._of_all(sums, wishes)
        self.update += 1
        norm = float(pending.norm)
        if not (math.isfinite(sums.loss) and math.isfinite(norm)):
            kept = (
                "there is no checkpoint"
                if self.saved is None
                else (f"the checkpoint of update {self.saved} stays")
            )
            raise EagleError(
                f"update {self.update}: the loss is {sums.loss / sums.n_tokens:g} and the norm of "
                f"the gradients {norm:g}; {kept}: train with lower learning rates, or look for "
                "features that are not finite"
            )
        return sums, wishes > 0

    def _of_all(self, sums: Sums, wishes: float) -> tuple[Sums, float]:
        """Add up figures, and wishes to stop, over all processes."""
        own = [wishes, float(sums.n_tokens), sums.loss, *np.concatenate(sums[2:]).tolist()]
        wishes, n_tokens, loss, *rest = self.run.processes.total(own)
        parts = np.array(rest).reshape(3, -1)
        return Sums(round(n_tokens), loss, *parts), wishes

    def _report(self, sums: Sums, norm: float, rates: tuple[float, ...], seconds: float) -> None:
        """Write an update down and show it."""
        report = UpdateReport(
            self.update,
            self.run.n_updates,
            sums.loss / sums.n_tokens,
            sums.mean_losses,
            sums.n_alpha,
            norm,
            rates,
            sums.n_tokens,
            seconds,
        )
        if self.run.processes.is_first:
            self.run.folder.append(UPDATES, table_row(report))
        self.run.watch(report)

    def _measure(self) -> None:
        """Measure on the held-out texts, and keep the weights if they are the best so far."""
        run, start = self.run, time.perf_counter()
        nothing = Sums(0, 0.0, *(np.zeros(self.n_steps) for _ in range(3)))
        own = sum((self.measure(batch) for batch in run.data.heldout()), nothing)
        sums, _ = self._of_all(own, 0)
        if not sums.counted.any():
            return
        length = sums.acceptance_length
        is_best, self.best = length > self.best, max(length, self.best)
        found = Measurement(
            self.update,
            run.n_updates,
            sums.mean_losses,
            sums.n_alpha,
            length,
            is_best,
            time.perf_counter() - start,
        )
        if run.processes.is_first:
            run.folder.append(MEASUREMENTS, table_row(found))
            if is_best:
                facts = {"n_alpha": sums.n_alpha, "acceptance_length": length}
                best = Checkpoint(self.update, trained_arrays(run.head), {}, facts)
                save_checkpoint(run.folder.best, best, run.fingerprint)
        run.watch(found)

    def _save(self) -> None:
        """Save a checkpoint, unless this update has one."""
        run = self.run
        if run.processes.is_first and self.saved != self.update:
            run.folder.flush()
            arrays = trained_arrays(run.head), optimizer_arrays(self.optimizer)
            save_checkpoint(
                run.folder.checkpoints, Checkpoint(self.update, *arrays, {}), run.fingerprint
            )
        self.saved = self.update
