"""The processes that train one head together, through `mx.distributed`; mostly there is one.

Each has its own batches: the rows of an update are those of all processes together. Whatever is
exchanged is evaluated at once, on the CPU: a Metal graph that waits longer than a few seconds for
another machine is ended by the system.

Before anything is exchanged all processes meet. One that has failed takes part in the next meeting
and says so, and the others end as well. One that was killed says nothing: MLX's ring fails in the
others when its connections are closed, and who waits looks now and then whether the others still
beat (`heartbeat.py`). One that beats but stands still is waited for.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_eagle.cluster.rank import launched_rank
from mlx_eagle.cluster.ring import join_launched
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import listed, one_line
from mlx_eagle.training.run.exchange_thread import ExchangeThread
from mlx_eagle.training.run.heartbeat import Heartbeats, heartbeat

PAUSE = 0.2  # seconds between two looks of one who waits
LOOKS = 5  # until it counts as unknown who is lost
SHOWN_AFTER = 5.0  # seconds in which a folder on the network must show what another has written
KEPT = "what was saved stays, and the same command goes on"

_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
_Found = TypeVar("_Found")


class Processes:
    """A group of processes, seen from one of them.

    Args:
        group: as `mx.distributed.init` gives it; None for this process alone.
        find_lost: tells why another one is of no more use, "" while all are; None where only
            heartbeats tell.
    """

    def __init__(
        self,
        group: mx.distributed.Group | None = None,
        find_lost: Callable[[], str] | None = None,
    ) -> None:
        self._group, self._find_lost = group, find_lost
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self._may_meet = True  # whatever the others do next begins with a meeting
        self._thread = ExchangeThread()
        self._files: dict[int, Path] = {}  # heartbeats of the others
        self._kept = ExitStack()  # until all of them have met for the last time

    @classmethod
    def joined(cls) -> "Processes":
        """Return the group that `mlx.launch` has started this process in, or this process alone.

        Raises:
            EagleError: if it was started in one that cannot be joined.
        """
        return cls() if launched_rank() is None else cls(join_launched())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """End the block in all processes if it fails in one, and at its end wait for all.

        What ends it in this process, Ctrl-C included, is raised here once the others know of it; a
        second Ctrl-C does not wait for them.
        """
        with self._kept:
            try:
                yield
                self.meet()
            except BaseException:
                if self.size > 1 and self._may_meet:
                    with suppress(EagleError):  # there is nobody left to be told
                        self._failed_ranks(is_failing=True)
                raise

    def keep_heartbeat(self, folder: Path) -> None:
        """Show the others that this process is there, until they end together, and look for them.

        Args:
            folder: that all of them see.

        Raises:
            EagleError: if it cannot be written, or as `meet` does.
        """
        if self.size == 1:
            return
        files = {rank: folder / f".process-{rank}" for rank in range(self.size)}
        self._kept.enter_context(heartbeat(files.pop(self.rank)))
        self.meet()  # now each has its file
        for _ in range(round(SHOWN_AFTER / PAUSE)):
            if not (unseen := [str(rank) for rank, file in files.items() if not file.exists()]):
                break
            sleep(PAUSE)
        else:
            raise EagleError(
                f"the process of rank {self.rank} finds no file of rank {listed(unseen)} in "
                f"{folder}: all processes must see the same folder of --out"
            )
        self._files = files

    def meet(self) -> None:
        """Wait for all processes.

        Raises:
            EagleError: if one of them has failed, or is lost.
        """
        if self.size == 1:
            return
        if failed := self._failed_ranks(is_failing=False):
            self._may_meet = False  # all of them end now
            raise EagleError(
                f"the process of rank {listed(map(str, failed))} failed or was stopped, as it says "
                f"itself, so that of rank {self.rank} ends too; {KEPT}"
            )

    @contextmanager
    def first_before_others(self, file: Path) -> Iterator[None]:
        """Run the block in the first process, then in the others, which sleep meanwhile.

        Waiting in MLX for hours would keep a core of each busy (0.32.4).

        Args:
            file: is there while the first one works; in a folder that all of them see.

        Raises:
            EagleError: if one has failed before, or the first one fails or is lost in the block.
        """
        if self.size == 1:
            yield
        elif self.is_first:
            file.touch()
            try:
                self.meet()  # from now on the others see the file
                yield
            finally:
                file.unlink(missing_ok=True)
            self.meet()
        else:
            self.meet()
            self._may_meet = False  # the first one may work for hours before it meets anybody
            self._wait(lambda: not file.exists(), sleep)
            self._may_meet = True
            self.meet()
            yield

    def average(self, gradients: Any) -> Any:
        """Return the mean over all processes of a tree of arrays.

        Raises:
            EagleError: as `meet` does; so do all exchanges.
        """
        if self.size == 1:
            return gradients
        names, arrays = zip(*tree_flatten(gradients), strict=True)
        sums = self._summed(list(arrays))
        summed = tree_unflatten(list(zip(names, sums, strict=True)))
        return tree_map(lambda array: array / self.size, summed)

    def total(self, values: list[float]) -> list[float]:
        """Return sums over all processes; float32 where there are several."""
        if self.size == 1:
            return values
        [summed] = self._summed([mx.array(values)])
        return [float(summed[place]) for place in range(len(values))]

    def of_first(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the arrays of the first process, bit for bit.

        Those of the others count as zeros. Bits are added: as numbers, -0.0 would become 0.0.

        Args:
            arrays: of the same names, shapes and types in every process.
        """
        if self.size == 1:
            return arrays
        bits = [array.view(_UNSIGNED[array.itemsize]) for array in arrays.values()]
        sums = self._summed(bits if self.is_first else [mx.zeros_like(array) for array in bits])
        pairs = zip(arrays.items(), sums, strict=True)
        return {name: summed.view(array.dtype) for (name, array), summed in pairs}

    def _summed(self, arrays: list[mx.array]) -> list[mx.array]:
        """Return sums of arrays over all processes, once these have met."""
        mx.eval(arrays)  # what fails here fails before the others wait for it
        self.meet()
        return self._exchanged(lambda: self._all_sums(arrays))

    def _failed_ranks(self, *, is_failing: bool) -> list[int]:
        """Meet the others; returns which of all processes say that they are failing."""
        said = mx.array([float(is_failing and rank == self.rank) for rank in range(self.size)])
        mx.eval(said)
        [found] = self._exchanged(lambda: self._all_sums([said]))
        return [rank for rank in range(self.size) if found[rank].item()]

    def _all_sums(self, arrays: list[mx.array]) -> list[mx.array]:
        """Return sums of evaluated arrays, one after the other.

        Raises:
            RuntimeError: if a connection is closed. MLX 0.32.4 tells that to `mx.eval` alone, not
                to NumPy, and what comes after a failed sum in the same graph waits for ever.
        """
        found = list[mx.array]()
        for array in arrays:
            found.append(mx.distributed.all_sum(array, group=self._group, stream=mx.cpu))
            mx.eval(found[-1])
        return found

    def _exchanged(self, exchange: Callable[[], _Found]) -> _Found:
        """Return what an exchange gives in which all processes take part.

        Raises:
            EagleError: if one of them is lost.
        """
        self._may_meet = False  # should it be interrupted, it is not over
        pending = self._thread.begin(exchange)
        self._wait(pending.done, lambda seconds: wait([pending], seconds))
        try:
            found = pending.result()
        except RuntimeError as error:
            if "connection" not in str(error) and "peer" not in str(error):
                raise
            raise EagleError(f"{self._loss(error)}; {KEPT}") from error
        self._may_meet = True
        return found

    def _lost(self) -> str:
        """Return why another process is of no more use, if that is known; "" otherwise."""
        return self._find_lost() if self._find_lost else ""

    def _loss(self, error: RuntimeError) -> str:
        """Return which process MLX has lost, once that is known."""
        for _ in range(LOOKS if self._find_lost else 0):
            if found := self._lost():
                return found
            sleep(PAUSE)
        return (
            f"the process of rank {self.rank} has lost another one, which was killed or cannot be "
            f"reached ({one_line(error, 80)})"
        )

    def _wait(self, is_over: Callable[[], bool], pause: Callable[[float], object]) -> None:
        """Wait until something is over.

        Args:
            is_over: asks whether it is.
            pause: waits so many seconds, or less if it is over before.

        Raises:
            EagleError: if another process is lost.
        """
        beats = Heartbeats(self._files)
        while not is_over():
            pause(PAUSE)
            if found := self._lost():
                raise EagleError(f"{found}; {KEPT}")
            if not is_over() and (lost := beats.lost()):
                raise EagleError(
                    f"the process of rank {self.rank} has lost that of rank "
                    f"{listed(map(str, lost))}: it was killed, stands still or cannot be reached; "
                    f"{KEPT}"
                )
