"""Figures per data set as the EAGLE papers give them: speed-up and acceptance length, by set.

A figure is that of all repeats together, with the lowest and the highest of single repeats. The
mean is over data sets, as in the papers (arXiv 2503.01840, table 1), not over prompts.

Worked example, two sets of one prompt and two repeats, in which plain decoding takes 3 and 3
seconds a set, speculative decoding 2 and 1 seconds on the first set and 3 and 3 on the second:
speed-ups are 6 / 3 = 2 (1.5 to 3) and 1 (1 to 1), the mean is 1.5 (1.25 to 2).
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from mlx_eagle.bench.metrics import Sample, acceptance_length, accepted_by_round, rate
from mlx_eagle.bench.prompts import BenchPrompt
from mlx_eagle.bench.specs import PLAIN, STOCK

MEAN = "mean"


class Repeated(NamedTuple):
    """A figure of all repeats together, the lowest and the highest of single repeats."""

    value: float
    low: float
    high: float


class PaperRow(NamedTuple):
    """The figures of one contestant on one data set, or in one category, at one temperature.

    Attributes:
        temperature: 0 is greedy.
        contestant: who generated.
        group: name of the data set or category; "mean" for the mean of all.
        n_answers: of one repeat.
        n_tokens: of all repeats.
        over_plain: times as fast as plain decoding.
        over_stock: times as fast as mlx-lm's plain decoding, where that took part.
        acceptance_length: mean tokens per target forward; None where nothing was drafted.
    """

    temperature: float
    contestant: str
    group: str
    n_answers: int
    n_tokens: int
    over_plain: Repeated
    over_stock: Repeated | None
    acceptance_length: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        stock = self.over_stock and self.over_stock._asdict()
        return self._asdict() | {"over_plain": self.over_plain._asdict(), "over_stock": stock}


def rows_by_set(samples: Sequence[Sample], prompts: Sequence[BenchPrompt]) -> list[PaperRow]:
    """Return a row per temperature, contestant and data set, and of each the mean of all sets."""
    return _rows(samples, lambda sample: prompts[sample.prompt_id].data_set)


def rows_by_category(samples: Sequence[Sample], prompts: Sequence[BenchPrompt]) -> list[PaperRow]:
    """Return a row per temperature, contestant and category of the sets that have several."""
    several = [s for s in samples if s.category != prompts[s.prompt_id].data_set]
    return _rows(several, lambda sample: sample.category)


def _rows(samples: Sequence[Sample], group_of: Callable[[Sample], str]) -> list[PaperRow]:
    """Return the rows of all groups, and after those of a contestant their mean."""
    rows = []
    groups = list(dict.fromkeys(map(group_of, samples)))
    order = dict.fromkeys((s.temperature, s.contestant) for s in samples)
    for temperature, name in sorted(order, key=lambda pair: (pair[0], _rank(pair[1]))):
        warm = [s for s in samples if s.temperature == temperature]
        sets = [[s for s in warm if group_of(s) == group] for group in groups]
        rows += [
            _row(temperature, name, group, [own]) for group, own in zip(groups, sets, strict=True)
        ]
        if len(groups) > 1:
            rows.append(_row(temperature, name, MEAN, sets))
    return rows


def _rank(contestant: str) -> int:
    """Return where a contestant's rows stand: plain decoding's first, mlx-lm's next."""
    return [PLAIN, STOCK].index(contestant) if contestant in (PLAIN, STOCK) else 2


def _row(temperature: float, name: str, group: str, sets: Sequence[Sequence[Sample]]) -> PaperRow:
    """Return a contestant's figures on some sets: the means of what they are on each."""
    own = [[s for s in samples if s.contestant == name] for samples in sets]
    lengths = [acceptance_length(accepted_by_round(samples)) for samples in own]
    has_drafted = any(s.stats.get("drafted") for samples in own for s in samples)
    has_stock = any(s.contestant == STOCK for samples in sets for s in samples)
    return PaperRow(
        temperature=temperature,
        contestant=name,
        group=group,
        n_answers=sum(s.repeat == 0 for samples in own for s in samples),
        n_tokens=sum(len(s.tokens) for samples in own for s in samples),
        over_plain=_speedup(own, sets, PLAIN),
        over_stock=_speedup(own, sets, STOCK) if has_stock else None,
        acceptance_length=fmean(lengths) if has_drafted else None,
    )


def _speedup(
    own: Sequence[Sequence[Sample]], sets: Sequence[Sequence[Sample]], base: str
) -> Repeated:
    """Return how many times as fast a contestant is as the base, the mean of some sets."""
    theirs = [[s for s in samples if s.contestant == base] for samples in sets]

    def mean(repeats: Sequence[int]) -> float:
        pairs = [
            (rate(_of(repeats, ours)), rate(_of(repeats, other)))
            for ours, other in zip(own, theirs, strict=True)
        ]
        return fmean(above / below if below else 0.0 for above, below in pairs)

    repeats = sorted({s.repeat for samples in own for s in samples})
    single = [mean([repeat]) for repeat in repeats]
    return Repeated(mean(repeats), min(single), max(single))


def _of(repeats: Sequence[int], samples: Sequence[Sample]) -> list[Sample]:
    return [s for s in samples if s.repeat in repeats]
