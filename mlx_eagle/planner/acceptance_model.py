"""How likely the target is to agree with a drafted token, given the head's confidence in it.

Confidence, the draft probability of a token, predicts acceptance (EAGLE-2, arXiv 2406.16858), but
not one to one: heads are under-confident, and siblings are right less often than likeliest children
of the same confidence. Acceptance is counted in few bins, apart for both, and kept monotone. What a
bin that has seen little is taken for follows from all bins: a head that is bad at some confidences
is bad at the others, and must not fail at each of them first.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from mlx_eagle.errors import EagleError

EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.9, 0.95)
# What a bin is taken for before anything is counted: the confidence itself, nearly.
PRIOR = (0.01, 0.04, 0.08, 0.15, 0.25, 0.38, 0.5, 0.65, 0.77, 0.87, 0.93, 0.98)


@dataclass
class Bins:
    """Acceptance by confidence, from the last MEMORY observations or so of every bin."""

    MEMORY: ClassVar[float] = 30.0
    PRIOR_WEIGHT: ClassVar[float] = 2.0  # observations; for ever, so that no bin is certain
    UNSEEN_WEIGHT: ClassVar[float] = 0.05  # lest bins never seen hold up those they are pooled with
    TRUST_WEIGHT: ClassVar[float] = 1.0  # of the priors as they are, in accepted tokens
    MOST_TRUST, SUREST = 1.3, 0.99  # bounds of what the priors become

    accepted: list[float] = field(default_factory=lambda: [0.0] * len(PRIOR))
    seen: list[float] = field(default_factory=lambda: [0.0] * len(PRIOR))

    def __getitem__(self, confidence: float) -> float:
        """Return the probability that a token of this confidence is accepted."""
        return self._rates[bisect_right(EDGES, confidence)]

    def observe(self, confidence: float, accepted: bool) -> None:
        """Count one token of which it is known whether the target agrees."""
        at = bisect_right(EDGES, confidence)
        if self.seen[at] >= self.MEMORY:
            self.accepted[at] *= 1 - 1 / self.MEMORY
            self.seen[at] *= 1 - 1 / self.MEMORY
        self.accepted[at] += accepted
        self.seen[at] += 1
        self.__dict__.pop("_rates", None)

    @cached_property
    def _rates(self) -> list[float]:
        """The bins' rates, pooled where they fall (isotonic regression)."""
        pools: list[tuple[float, float, int]] = []  # accepted, seen, bins
        trust = self._trust()
        for accepted, seen, stated in zip(self.accepted, self.seen, PRIOR, strict=True):
            prior = min(trust * stated, self.SUREST)
            weight = self.PRIOR_WEIGHT if seen else self.UNSEEN_WEIGHT
            pool = (accepted + weight * prior, seen + weight, 1)
            while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
                before = pools.pop()
                pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
            pools.append(pool)
        return [accepted / seen for accepted, seen, n in pools for _ in range(n)]

    def _trust(self) -> float:
        """Return the factor of all priors: accepted tokens over those that the priors foresaw."""
        foreseen = sum(seen * prior for seen, prior in zip(self.seen, PRIOR, strict=True))
        accepted = sum(self.accepted) + self.TRUST_WEIGHT
        return min(accepted / (foreseen + self.TRUST_WEIGHT), self.MOST_TRUST)


@dataclass
class Acceptance:
    """What is known of a pair of target and head, under one way of choosing tokens."""

    STORED: ClassVar[float] = 12.0  # observations that a stored bin counts for at the next start

    first: Bins = field(default_factory=Bins)
    sibling: Bins = field(default_factory=Bins)

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return any(self.first.seen)

    def children(self, confidences: Sequence[float]) -> list[float]:
        """Return the probability of each child, the likeliest first, given its parent."""
        return [(self.sibling if i else self.first)[c] for i, c in enumerate(confidences)]

    def observe(self, confidences: Sequence[float], chosen: int | None) -> None:
        """Count a node's children, the likeliest first, of which the target chose one or none."""
        for child, confidence in enumerate(confidences):
            (self.sibling if child else self.first).observe(confidence, child == chosen)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Acceptance":
        """Return what was stored; raise EagleError if it is not what `to_dict` gives."""
        try:
            return cls(*(_faded(fields[kind], cls.STORED) for kind in ("first", "sibling")))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EagleError(f"these are not counts of acceptance: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        return asdict(self)


def _faded(fields: Mapping[str, Any], limit: float) -> Bins:
    """Return stored bins that count for at most `limit` observations each."""
    accepted, seen = (list(map(float, fields[name])) for name in ("accepted", "seen"))
    pairs = list(zip(accepted, seen, strict=True))
    if len(pairs) != len(PRIOR) or not all(0 <= a <= n < float("inf") for a, n in pairs):
        raise ValueError(f"{len(pairs)} bins, or more accepted than seen")
    keep = [min(1.0, limit / n) if n else 0.0 for _, n in pairs]
    faded = [[x * k for x, k in zip(column, keep, strict=True)] for column in (accepted, seen)]
    return Bins(*faded)
