"""A training as it goes on, on stderr: what is read, then loss, n-alpha, speed and time left."""

import time
from types import TracebackType

import click

from mlx_eagle.training.reports import Measurement, UpdateReport
from mlx_eagle.training.train_head import Watch


class TrainingDisplay:
    """Lines on stderr; use it as a context manager."""

    def __init__(self) -> None:
        self._last = 0.0

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @property
    def watch(self) -> Watch:
        """What a training tells how far it is."""
        return Watch(self._progress, self._remark, self._report)

    def _progress(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last > 5 or done == total:
            self._last = time.monotonic()
            click.echo(f"{what} {done}/{total}", err=True)

    def _remark(self, line: str) -> None:
        click.echo(line, err=True)

    def _report(self, report: UpdateReport | Measurement) -> None:
        alpha = " ".join(f"{share:.3f}" for share in report.n_alpha)
        if isinstance(report, Measurement):
            best = " best" if report.is_best else ""
            click.echo(
                f"update {report.update}: held out n-alpha {alpha}, "
                f"length {report.acceptance_length:.3f}{best}",
                err=True,
            )
        elif time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            left = (report.n_updates - report.update) * report.seconds
            click.echo(
                f"{report.update}/{report.n_updates} loss {report.loss:.3f} n-alpha {alpha} "
                f"norm {report.gradient_norm:.2f} {report.tokens / report.seconds:.0f} tokens/s "
                f"{left / 60:.0f} min left",
                err=True,
            )
