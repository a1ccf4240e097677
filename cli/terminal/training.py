"""A training as it goes on, on stderr: rows that are rewritten, or lines where nobody watches."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlx_eagle.cli.terminal.display import gigabytes, printable, table, terminal
from mlx_eagle.cli.terminal.training_figures import (
    Stage,
    Updates,
    measured_text,
    plan_rows,
)
from mlx_eagle.training.plan import Plan
from mlx_eagle.training.recipe import Watch
from mlx_eagle.training.run.reports import Measurement, UpdateReport

BETWEEN_LINES = 15.0  # seconds, where there is no terminal
BAR = 30  # columns
PER_SECOND = 4  # times that the rows are rewritten


class TrainingDisplay:
    """What a training says, on stderr; use it as a context manager.

    Remarks and what was planned stay on the screen; the rows below them are rewritten.

    Args:
        out: folder of the training, whose checkpoints are named.
        console: where to show it; None for stderr.
        clock: seconds.
    """

    def __init__(
        self,
        out: Path,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._clock = out, clock
        self._console = console or terminal(stderr=True)
        self._stage: Stage | None = None
        self._updates = Updates()
        self._last_line: float | None = None
        self._live = Live(
            console=self._console,
            get_renderable=self._rows,
            refresh_per_second=PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> "TrainingDisplay":
        """Begin to show rows, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the rows away."""
        self._live.stop()

    @property
    def watch(self) -> Watch:
        """What a training tells how far it is."""
        return Watch(self._progress, self.say, self._plan, self._report)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(printable(line))

    def _progress(self, what: str, done: int, total: int, rate: float) -> None:
        """Take in how far a stage is."""
        if self._stage is None or (self._stage.what, self._stage.total) != (what, total):
            self._stage, self._last_line = Stage(what), self._clock()
        self._stage.update(self._clock(), done, total, rate)
        if (done == total and what != "texts") or (
            not self._console.is_terminal and self._is_time()
        ):
            self.say(self._stage.line)

    def _plan(self, plan: Plan) -> None:
        """Say what will be trained."""
        self._console.print(table(plan_rows(plan, gigabytes)))

    def _report(self, report: UpdateReport | Measurement) -> None:
        """Take in an update or a measurement."""
        if isinstance(report, Measurement):
            self._updates.add_measurement(report)
            best = ", the best so far" if report.is_best else ""
            self.say(f"held out: {measured_text(report)}{best}")
            return
        is_first = self._updates.last is None
        self._updates.add(self._clock(), report)
        is_line = is_first or report.update == report.n_updates or self._is_time()
        if is_line and not self._console.is_terminal:
            self._last_line = self._clock()
            self.say(f"{self._updates.position}: {self._updates.lines[0]}")
            self.say(self._updates.lines[1])

    def _is_time(self) -> bool:
        """Say whether the last line is long enough ago, and take this for the next one."""
        now = self._clock()
        if self._last_line is not None and now - self._last_line < BETWEEN_LINES:
            return False
        self._last_line = now
        return True

    def _rows(self) -> RenderableType:
        """Return the rows that are rewritten."""
        last, stage, rows = self._updates.last, self._stage, list[RenderableType]()
        if last is not None:
            rows = [
                _bar(self._updates.position, last.update, last.n_updates),
                *map(_row, self._updates.lines),
                _row(f"Ctrl-C saves and stops; saved in {printable(str(self._out))}/checkpoint"),
            ]
        elif stage is None:
            rows = [_row("loading the target")]
        elif stage.done < stage.total:
            rows = [_bar(stage.line, stage.done, stage.total)]
        else:
            rows = [_row("beginning")]
        return Group(*rows)


def _row(text: str) -> Text:
    """Return text as a row that is cut at the margin."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _bar(text: str, done: int, total: int) -> Table:
    """Return a bar, and text beside it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=total, completed=done, width=BAR), _row(text))
    return grid
