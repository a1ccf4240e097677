"""What a training has said so far, and how fast it goes: the figures behind its display.

Speeds are those of the recent past, so that a pause or the first update, which compiles, does not
stay in them for long.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_eagle.training.plan import Plan
    from mlx_eagle.training.run.reports import Measurement, UpdateReport

RECENT = 50  # reports that a speed is the mean of


class Pace:
    """How fast something goes on, by when how much of it was done."""

    def __init__(self) -> None:
        self._seen = deque[tuple[float, int]](maxlen=RECENT)

    def add(self, now: float, done: int) -> None:
        """Note that so much is done at a time in seconds."""
        self._seen.append((now, done))

    @property
    def per_second(self) -> float:
        """How much is done a second; 0 where that is not known yet."""
        if len(self._seen) < 2:
            return 0.0
        (start, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - start) if now > start else 0.0


class Stage:
    """Something that is counted before the first update: texts, answers, features.

    Attributes:
        what: it is called.
        done: how much of it.
        total: how much there is.
        rate: tokens a second; 0 where that is not known.
    """

    def __init__(self, what: str) -> None:
        self.what, self.done, self.total, self.rate = what, 0, 0, 0.0
        self._pace = Pace()

    def update(self, now: float, done: int, total: int, rate: float) -> None:
        """Take in how far it is."""
        self.done, self.total = done, total
        self._pace.add(now, done)
        self.rate = self._pace.per_second if self.what == "features" else rate

    @property
    def seconds_left(self) -> float:
        """Until it is done; 0 where that is not known."""
        speed = self._pace.per_second
        return (self.total - self.done) / speed if speed else 0.0

    @property
    def line(self) -> str:
        """How far it is, in words."""
        unit = " tokens" if self.what == "features" else ""
        parts = [f"{self.what}: {self.done} of {self.total}{unit}"]
        if self.rate:
            parts.append(f"{self.rate:.0f} tokens/s")
        if self.done < self.total and self.seconds_left:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


class Updates:
    """The updates of a training and its measurements.

    Attributes:
        last: the last update; None before the first one.
        measured: the last measurement.
        best: the best one, of those that this process has made.
    """

    def __init__(self) -> None:
        self.last: UpdateReport | None = None
        self.measured: Measurement | None = None
        self.best: Measurement | None = None
        self._pace = Pace()
        self._recent = deque[tuple[int, float]](maxlen=RECENT)

    def add(self, now: float, report: "UpdateReport") -> None:
        """Take in an update."""
        self.last = report
        self._pace.add(now, report.update)
        self._recent.append((report.tokens, report.seconds))

    def add_measurement(self, measured: "Measurement") -> None:
        """Take in a measurement."""
        self.measured = measured
        self.best = measured if measured.is_best else self.best

    @property
    def tokens_per_second(self) -> float:
        """Of the recent updates, without measurements and checkpoints."""
        tokens, seconds = (sum(part) for part in zip(*self._recent, strict=True))
        return tokens / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Until the last update, by the recent ones and all that came between; 0 if not known."""
        if self.last is None:
            return 0.0
        speed = self._pace.per_second
        return (self.last.n_updates - self.last.update) / speed if speed else 0.0

    @property
    def position(self) -> str:
        """Which update was the last one, and how long it is to the end."""
        if (last := self.last) is None:
            return ""
        left = f", {duration(self.seconds_left)} left" if self.seconds_left else ""
        return f"update {last.update} of {last.n_updates}{left}"

    @property
    def lines(self) -> list[str]:
        """What the last update was, and the measurements."""
        if (last := self.last) is None:
            return []
        found = [
            f"loss {last.loss:.3f}, gradient norm {last.gradient_norm:.2f}, "
            f"rate {' and '.join(f'{rate:.2g}' for rate in last.rates)}, "
            f"{self.tokens_per_second:.0f} tokens/s",
            f"n-alpha   {shares(last.n_alpha)}",
        ]
        for name, measured in (("held out", self.measured), ("best", self.best)):
            if measured is not None:
                found.append(f"{name:<9} {measured_text(measured)}")
        return found


def measured_text(found: "Measurement") -> str:
    """Return what was measured on the held-out texts."""
    return (
        f"{shares(found.n_alpha)}, length {found.acceptance_length:.2f}, at update {found.update}"
    )


def shares(values: tuple[float, ...]) -> str:
    """Return the shares of steps: 0.412 0.333."""
    return " ".join(f"{value:.3f}" for value in values)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def plan_rows(plan: "Plan", size: Callable[[int], str]) -> dict[str, str]:
    """Return what will be trained as rows of a table.

    Args:
        plan: of a training.
        size: returns bytes as text.
    """
    times = plan.n_updates * plan.rows_per_update / plan.n_rows
    heldout = f"{plan.n_heldout} more to measure on" if plan.n_heldout else "none to measure on"
    memory = f"{size(plan.memory.total)} to {size(plan.memory.most)} (estimated) and the target's "
    memory += size(plan.target_bytes)
    if plan.memory_limit is not None:
        memory += f", of {size(plan.memory_limit)}"
    return {
        "head": f"{plan.kind}, {plan.n_parameters / 1e6:.2f} million parameters",
        "texts": f"{plan.n_texts} of {plan.n_tokens} tokens, {plan.n_trained} of them trained; "
        f"{heldout}",
        "training": f"{plan.n_updates} updates of {plan.rows_per_update} rows of {plan.length} "
        f"tokens, which is {times:.1f} times all texts",
        "memory": memory,
    }
