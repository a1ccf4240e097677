"""How likely the target is to agree with a drafted token, given the head's confidence in it.

The confidence is the draft probability of the token given the tokens before it. Confidence
predicts acceptance (EAGLE-2, arXiv 2406.16858, section 4.1), but not one to one: under greedy
decoding heads are under-confident, and the second likeliest token of a head is right less often
than a likeliest token of the same confidence. So acceptance is counted, in few bins, apart for the
likeliest child and its siblings, and kept monotone. Pure arithmetic.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_eagle.errors import EagleError

EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.9, 0.95)
# What a bin is taken for before anything is counted: the confidence itself, nearly.
PRIOR = (0.01, 0.04, 0.08, 0.15, 0.25, 0.38, 0.5, 0.65, 0.77, 0.87, 0.93, 0.98)
KINDS = ("first", "sibling")


class Bins:
    """Acceptance by confidence, from counts that forget.

    `seen` counts at most MEMORY observations in a bin; older ones fade. The prior counts as
    PRIOR_WEIGHT observations for ever, so that no bin is certain.
    """

    MEMORY = 36.0
    PRIOR_WEIGHT = 2.0

    def __init__(
        self, accepted: Sequence[float] | None = None, seen: Sequence[float] | None = None
    ) -> None:
        self.accepted = list(accepted or [0.0] * len(PRIOR))
        self.seen = list(seen or [0.0] * len(PRIOR))
        self._rates: list[float] | None = None  # until it is asked for

    def __getitem__(self, confidence: float) -> float:
        """Return the probability that a token of this confidence is accepted."""
        if self._rates is None:
            self._rates = self._monotone()
        return self._rates[bisect_right(EDGES, confidence)]

    def observe(self, confidence: float, accepted: bool) -> None:
        """Count one token of which it is known whether the target agrees."""
        at = bisect_right(EDGES, confidence)
        if self.seen[at] >= self.MEMORY:
            self.accepted[at] *= 1 - 1 / self.MEMORY
            self.seen[at] *= 1 - 1 / self.MEMORY
        self.accepted[at] += accepted
        self.seen[at] += 1
        self._rates = None

    def _monotone(self) -> list[float]:
        """Return the bins' rates, pooled where they fall (isotonic regression)."""
        pools: list[tuple[float, float, int]] = []  # accepted, seen, bins
        for accepted, seen, prior in zip(self.accepted, self.seen, PRIOR, strict=True):
            pool = (accepted + self.PRIOR_WEIGHT * prior, seen + self.PRIOR_WEIGHT, 1)
            while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
                before = pools.pop()
                pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
            pools.append(pool)
        return [accepted / seen for accepted, seen, n in pools for _ in range(n)]


class Acceptance:
    """What is known of a pair of target and head, under one way of choosing tokens."""

    STORED = 12.0  # observations that a stored bin counts for in the next session

    def __init__(self, first: Bins | None = None, sibling: Bins | None = None) -> None:
        self.first = first or Bins()
        self.sibling = sibling or Bins()

    def children(self, confidences: Sequence[float]) -> list[float]:
        """Return the probability of each child, the likeliest first, given its parent."""
        return [(self.sibling if i else self.first)[c] for i, c in enumerate(confidences)]

    def observe(self, confidences: Sequence[float], chosen: int | None) -> None:
        """Count the children of a node after which the target's choice is known.

        Args:
            confidences: of the children, the likeliest first.
            chosen: which of them the target chose; None if none.
        """
        for child, confidence in enumerate(confidences):
            bins = self.sibling if child else self.first
            bins.observe(confidence, child == chosen)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Acceptance":
        """Return what was stored, as a prior that new observations soon outweigh.

        Raises:
            EagleError: if the fields are not what `to_dict` gives.
        """
        try:
            return cls(*(_faded(fields[kind], cls.STORED) for kind in KINDS))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EagleError(f"these are not counts of acceptance: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        both = zip(KINDS, (self.first, self.sibling), strict=True)
        return {kind: {"accepted": bins.accepted, "seen": bins.seen} for kind, bins in both}


def _faded(fields: Mapping[str, Any], limit: float) -> Bins:
    """Return stored bins that count for at most `limit` observations each."""
    accepted, seen = (list(map(float, fields[name])) for name in ("accepted", "seen"))
    pairs = list(zip(accepted, seen, strict=True))
    if len(pairs) != len(PRIOR) or not all(0 <= a <= n < float("inf") for a, n in pairs):
        raise ValueError(f"{len(pairs)} bins, or more accepted than seen")
    keep = [min(1.0, limit / n) if n else 0.0 for _, n in pairs]
    faded = [[x * k for x, k in zip(column, keep, strict=True)] for column in (accepted, seen)]
    return Bins(*faded)
