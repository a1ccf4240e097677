"""From timed generations to figures: rates, speed-ups, acceptance, n-alpha. Pure arithmetic.

A rate is tokens per second of decoding, the prompt not counted. A speed-up is a ratio of total
times: plain decoding's seconds per token over a contestant's, each summed over all prompts, so that
long answers count as much as they last.

Worked example, a chain of 3 that accepted 3, 0, 1 and 2 tokens in four rounds: acceptance length
(3 + 0 + 1 + 2) / 4 + 1 = 2.5; acceptance by depth 3/4, 2/4, 1/4; n-alpha 3/4, 2/3, 1/2.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

ALL = "all"  # the category of all prompts together
PARTS = ("draft_seconds", "verify_seconds", "host_seconds")


class Sample(NamedTuple):
    """One timed generation.

    Attributes:
        contestant: who generated.
        temperature: 0 is greedy.
        prompt_id: index of the prompt.
        category: of the prompt.
        repeat: which of the repeats it was.
        tokens: what was generated.
        n_timed: how many of the tokens `seconds` covers: all after the first round.
        seconds: of decoding.
        prompt_seconds: until the first token.
        stats: counts and times by the names of `GenerationStats`; None or absent where unknown.
    """

    contestant: str
    temperature: float
    prompt_id: int
    category: str
    repeat: int
    tokens: list[int]
    n_timed: int
    seconds: float
    prompt_seconds: float
    stats: dict[str, Any]


class Spread(NamedTuple):
    """Median, lowest and highest of the prompts' figures."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """The figures of one contestant in one category at one temperature.

    Attributes:
        temperature: of the samples.
        category: of the prompts; "all" for all of them.
        contestant: who generated.
        n_prompts: how many prompts there were.
        n_tokens: generated tokens in all.
        seconds: of decoding in all.
        tokens_per_second: over all prompts together.
        spread: tokens per second of single prompts.
        speedup: times as fast as plain decoding.
        speedup_with_prompt: the same where the seconds for reading the prompt count too.
        acceptance_length: mean tokens per target forward; None where nothing was drafted.
        acceptance_by_depth: share of the rounds that drafted so deep in which it was accepted.
        n_rounds: target forwards.
        draft_seconds: in all; None where draft and verification were not told apart.
        verify_seconds: likewise.
        host_seconds: in which the device had nothing to do; None where unknown.
        peak_memory_bytes: the highest of all generations.
    """

    temperature: float
    category: str
    contestant: str
    n_prompts: int
    n_tokens: int
    seconds: float
    tokens_per_second: float
    spread: Spread
    speedup: float
    speedup_with_prompt: float
    acceptance_length: float | None
    acceptance_by_depth: list[float]
    n_rounds: int
    draft_seconds: float | None
    verify_seconds: float | None
    host_seconds: float | None
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return self._asdict() | {"spread": self.spread._asdict()}


class Probe(NamedTuple):
    """An untimed generation with a chain: accepted tokens per round, `depth` drafted in each."""

    head: str
    temperature: float
    category: str
    depth: int
    n_accepted: list[int]


class Alphas(NamedTuple):
    """The n-alpha of one head in one category; `values[n]` is None where no round got so far.

    `n_rounds` are the rounds of a chain, or the positions of texts that a head was tried at.
    """

    head: str
    temperature: float
    category: str
    n_rounds: int
    values: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return self._asdict()


def summarise(samples: Sequence[Sample], contestants: Sequence[str]) -> list[Row]:
    """Return a row per temperature, category and contestant; all categories together come last.

    Args:
        samples: of every contestant the same prompts.
        contestants: their names in the order of the rows; the first one's speed is 1.
    """
    rows = []
    for temperature in _unique(s.temperature for s in samples):
        warm = [s for s in samples if s.temperature == temperature]
        for category in with_all(s.category for s in warm):
            group = [s for s in warm if category in (ALL, s.category)]
            base = [s for s in group if s.contestant == contestants[0]]
            for name in contestants:
                own = [s for s in group if s.contestant == name]
                rows.append(_row(temperature, category, name, own, base))
    return rows


def _row(
    temperature: float, category: str, name: str, own: list[Sample], base: list[Sample]
) -> Row:
    """Return the figures of one contestant's samples, compared with the baseline's."""
    by_prompt = [[s for s in own if s.prompt_id == i] for i in _unique(s.prompt_id for s in own)]
    # A prompt that the model answers with one token has nothing to time.
    rates = [rate(group) for group in by_prompt if sum(s.n_timed for s in group)] or [0.0]
    drafted = [s for s in own if s.stats.get("drafted")]
    sums = [_total(s.stats.get(part) for s in own) for part in PARTS]
    return Row(
        temperature=temperature,
        category=category,
        contestant=name,
        n_prompts=len(by_prompt),
        n_tokens=sum(len(s.tokens) for s in own),
        seconds=sum(s.seconds for s in own),
        tokens_per_second=rate(own),
        spread=Spread(statistics.median(rates), min(rates), max(rates)),
        speedup=_ratio(rate(own), rate(base)),
        speedup_with_prompt=_ratio(_whole_rate(own), _whole_rate(base)),
        acceptance_length=acceptance_length(accepted_by_round(own)) if drafted else None,
        acceptance_by_depth=_by_depth(own),
        n_rounds=len(accepted_by_round(own)),
        draft_seconds=sums[0],
        verify_seconds=sums[1],
        host_seconds=sums[2],
        peak_memory_bytes=max(s.stats.get("peak_memory_bytes") or 0 for s in own),
    )


def rate(samples: Sequence[Sample]) -> float:
    """Return tokens per second of decoding; 0 where nothing was timed."""
    return _ratio(sum(s.n_timed for s in samples), sum(s.seconds for s in samples))


def acceptance_length(n_accepted: Sequence[int]) -> float:
    """Return the mean tokens per target forward of rounds that accepted so many each."""
    return sum(n_accepted) / len(n_accepted) + 1 if n_accepted else 0.0


def n_alpha(n_accepted: Sequence[int], depth: int) -> list[float | None]:
    """Return the n-alpha of a chain of `depth` tokens (EAGLE-3, arXiv 2503.01840).

    Entry n is the share of the rounds whose first n drafted tokens were accepted in which token
    n + 1 is accepted too: acceptance where the head's input holds n states that it predicted
    itself. None where no round accepted n.
    """
    reached = [sum(k >= n for k in n_accepted) for n in range(depth + 1)]
    return [reached[n + 1] / reached[n] if reached[n] else None for n in range(depth)]


def alphas(probes: Sequence[Probe]) -> list[Alphas]:
    """Return the n-alpha per head, temperature and category; all categories come last."""
    found = []
    for head, temperature in _unique((p.head, p.temperature) for p in probes):
        own = [p for p in probes if (p.head, p.temperature) == (head, temperature)]
        for category in with_all(p.category for p in own):
            group = [p for p in own if category in (ALL, p.category)]
            rounds = [k for p in group for k in p.n_accepted]
            values = n_alpha(rounds, group[0].depth)
            found.append(Alphas(head, temperature, category, len(rounds), values))
    return found


def slowest(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Return, of every contestant but the baseline, the row of the category it gains least in.

    Args:
        rows: what `summarise` returned.
        baseline: whose speed is 1.
    """
    least: dict[tuple[float, str], Row] = {}
    for row in rows:
        is_part = row.category != ALL and row.contestant != baseline
        key = (row.temperature, row.contestant)
        # Where all answers have one token nothing is timed, and the speed-up is 0.
        if is_part and row.speedup and (key not in least or row.speedup < least[key].speedup):
            least[key] = row
    return list(least.values())


def with_all(categories: Iterable[str]) -> list[str]:
    """Return every category once, in order, and the one of all prompts last."""
    names = _unique(categories)
    return names if names == [ALL] else [*names, ALL]


def accepted_by_round(samples: Sequence[Sample]) -> list[int]:
    """Return the accepted tokens of every round of every sample."""
    return [k for s in samples for k in s.stats.get("n_accepted_per_round") or []]


def _by_depth(samples: Sequence[Sample]) -> list[float]:
    """Return acceptance by depth over all samples; a depth that nobody drafted ends it."""
    drafted = [s.stats.get("drafted_by_depth") or [] for s in samples]
    depth = max((len(counts) for counts in drafted), default=0)
    totals = [sum(counts[d] for counts in drafted if d < len(counts)) for d in range(depth)]
    rounds = accepted_by_round(samples)
    return [_ratio(sum(k > d for k in rounds), total) for d, total in enumerate(totals)]


def _whole_rate(samples: Sequence[Sample]) -> float:
    """Return tokens per second where reading the prompt counts too."""
    seconds = sum(s.seconds + s.prompt_seconds for s in samples)
    return _ratio(sum(len(s.tokens) for s in samples), seconds)


def _total(parts: Iterable[float | None]) -> float | None:
    """Return a sum, or None where a part is unknown."""
    known: list[float] = []
    for part in parts:
        if part is None:
            return None
        known.append(part)
    return sum(known)


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _unique(values: Iterable[T]) -> list[T]:
    """Return values without repetitions, in order."""
    return list(dict.fromkeys(values))
