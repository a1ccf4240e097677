"""What a round costs on this machine, in seconds: measured once, corrected while it runs.

`Costs` is what a calibration measured and what is stored; `LiveCosts` follows the machine from
there. Kernels change at certain numbers of rows, so the curve has steps, and only numbers of rows
that were measured are ever verified. Pure arithmetic; `calibration/measure.py` measures.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from mlx_eagle.errors import EagleError

# Verifying N rows relative to one, on an M4 Pro with MLX 0.32, weighted over the layers of an 8B
# model at 4 bits (ml-explore/mlx#3839; 5 rows are interpolated); until a machine is calibrated.
PUBLISHED_ROWS = {1: 1.0, 2: 1.10, 3: 1.30, 4: 1.45, 5: 1.72, 6: 1.99, 8: 2.48}
LEAST_DRAFTING = 0.1  # share of its time that drafting takes without checks, whatever was measured


@dataclass(frozen=True)
class Costs:
    """Seconds, by what was measured.

    Attributes:
        contexts: cached tokens at which rows were verified, ascending.
        verify: by number of rows, root included: to verify them and read back, at each context.
        plain: per token of plain decoding, one step submitted ahead, at each context.
        draft: to take in a round's tokens and draft 1, 2, ... levels, each one read back.
        sync: the part of `draft` that is reading one level back.
        build: the part of `verify` in which the host builds the graph, as far as unchecked drafts
            hide it.
    """

    contexts: tuple[int, ...]
    verify: Mapping[int, tuple[float, ...]]
    plain: tuple[float, ...]
    draft: tuple[float, ...]
    sync: float
    build: float = 0.0

    def __post_init__(self) -> None:
        columns = [self.plain, *self.verify.values()]
        is_sound = (
            min(self.verify, default=0) == 1
            and all((self.contexts, self.draft))
            and all(low < high for low, high in pairwise((-1, *self.contexts)))
            and all(len(column) == len(self.contexts) for column in columns)
            and all(0 < x < math.inf for column in (*columns, self.draft) for x in column)
            and all(0 <= x < math.inf for x in (self.sync, self.build))
        )
        if not is_sound:
            raise EagleError(
                "the costs of a machine must be positive seconds, for one row and more, at every "
                "context; remove the file, or run mlx-eagle calibrate"
            )

    @classmethod
    def published(cls, seconds: float = 1.0) -> "Costs":
        """Return the published costs of an M4 Pro whose plain decoding takes `seconds` a token."""
        rows = {n: (ratio * seconds,) for n, ratio in PUBLISHED_ROWS.items()}
        steps = tuple(seconds * 0.06 * (1 + depth) for depth in range(1, 9))
        return cls((0,), rows, (seconds,), steps, 0.01 * seconds)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Costs":
        """Return stored costs; raise EagleError if they are not what `to_dict` gives."""
        try:
            rows = {int(n): tuple(map(float, column)) for n, column in fields["verify"].items()}
            contexts = tuple(map(int, fields["contexts"]))
            plain, draft = (tuple(map(float, fields[name])) for name in ("plain", "draft"))
            sync, build = float(fields["sync"]), float(fields.get("build", 0.0))
            return cls(contexts, rows, plain, draft, sync, build)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EagleError(f"these are not the costs of a machine: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    def without_drafting(self) -> "Costs":
        """Return the costs where drafts are looked up: a millionth of a token each."""
        free = tuple(1e-6 * level * self.plain[0] for level in range(1, 3))
        return replace(self, draft=free, sync=0.0)

    @property
    def rows(self) -> list[int]:
        """The numbers of rows that were measured, ascending."""
        return sorted(self.verify)

    def at(self, column: Sequence[float], context: int) -> float:
        """Return a cost at `context` cached tokens, linear between and beyond; it never falls."""
        if len(column) == 1:
            return column[0]
        after = min(max(bisect_left(self.contexts, context), 1), len(column) - 1)
        low, high = self.contexts[after - 1 : after + 1]
        share = max(0.0, (context - low) / (high - low))
        start = max(column[:after])
        return start + share * max(0.0, column[after] - start)


class LiveCosts:
    """Costs that follow the machine.

    Half of what a time differs from its expectation goes to a factor that all costs share (the
    machine is busy), half to the factor of that cost alone (the calibration was off there). A stall
    of any length counts as one of 25 %. If not `is_measured`, the first times set the scale. Plain
    tokens are timed seldom where drafting pays, so what one tells counts more for their own factor.
    """

    CLIP = math.log(1.25)
    RATE = 0.1  # weight of one observation
    PLAIN_WEIGHT = 3  # of a plain token's time for its own factor
    RETURN = 0.0005  # by which an own factor falls back towards 1 per observation of another cost
    FIRST = 5  # times that tell the scale

    def __init__(self, costs: Costs, *, is_measured: bool = True) -> None:
        self.measured, self.rows = costs, costs.rows
        self._scales: list[float] | None = None if is_measured else []
        self._shared = 0.0  # logarithms of the factors
        self._own: dict[str | int, float] = {}

    def verify(self, n_rows: int, context: int) -> float:
        """Return the seconds to verify `n_rows` measured rows."""
        return self.measured.at(self.measured.verify[n_rows], context) * self._factor(n_rows)

    def plain(self, context: int) -> float:
        """Return the seconds per token of plain decoding: at most those of a round of one row."""
        # These are timed also where nothing is plain, so that a plain cost too high does not stay.
        plain = self.measured.at(self.measured.plain, context) * self._factor("plain")
        return min(plain, self.verify(1, context))

    def draft(self, depth: int, *, is_checked: bool = True, interval: int = 1) -> float:
        """Return the seconds to draft `depth` levels.

        Args:
            depth: number of levels.
            is_checked: whether levels are read back; else what that costs is saved.
            interval: levels that are read back at a time.
        """
        known = self.measured.draft
        beyond = max(0, depth - len(known))  # levels, in mean steps
        step = (known[-1] - known[0]) / max(1, len(known) - 1)
        seconds = ((0.0, *known)[depth - beyond] + beyond * step) * self._factor("draft")
        skipped = depth - -(-depth // interval)
        saved = self._reading(skipped) if is_checked else self.checks(depth)
        return max(seconds - saved, LEAST_DRAFTING * seconds)

    def checks(self, depth: int) -> float:
        """Return the seconds that checking each of `depth` levels adds to a round."""
        return self._reading(depth) + self.measured.build * math.exp(self._shared)

    def check_interval(self, depth: int) -> int:
        """Return how many levels to read back at a time in rounds of about `depth` levels.

        Reading every i-th level costs depth / i waits, and the last (i - 1) / 2 levels drafted are
        of no use on average; of the sum of both the least is where i^2 = 2 depth wait / level.
        """
        level = self.draft(depth, is_checked=False) / depth
        return max(1, round(math.sqrt(2 * self._reading(depth) / level)))

    def _reading(self, n_levels: int) -> float:
        """Return the seconds of reading levels back, one after the other."""
        return n_levels * self.measured.sync * math.exp(self._shared)

    def best_chain(self, acceptance: float, context: int, max_depth: int) -> tuple[float, int]:
        """Return speed-up and rows of the best unchecked chain; `acceptance` is that per token."""
        plain, best = self.plain(context), (0.0, 1)
        for n_rows in self.rows[1:]:
            if n_rows <= max_depth + 1:
                tokens = sum(acceptance**d for d in range(n_rows))
                seconds = self.draft(n_rows - 1, is_checked=False) + self.verify(n_rows, context)
                best = max(best, (tokens * plain / seconds, n_rows))
        return best

    def observe(self, what: str | int, expected: float, seconds: float) -> None:
        """Learn what "plain", "draft", or a number of verified rows cost in fact."""
        news = math.log(max(seconds, 1e-9) / expected)
        if self._scales is not None:
            self._scales.append(self._shared + news)
            self._shared = median(self._scales)
            if len(self._scales) == self.FIRST:
                self._scales = None
            return
        news = max(-self.CLIP, min(self.CLIP, news)) * self.RATE / 2
        self._shared += news
        own = self._own.get(what, 0.0) + news * (self.PLAIN_WEIGHT if what == "plain" else 1)
        self._own = {key: log * (1 - self.RETURN) for key, log in self._own.items()} | {what: own}

    def _factor(self, what: str | int) -> float:
        return math.exp(self._shared + self._own.get(what, 0.0))
