"""The law that Ollama's MLX engine drafts by, written anew to be compared with.

It drafts chains, and of every depth N it knows what a round costs and how often each drafted token
is accepted, both as exponential means: it takes the N with most tokens per second, 0 allowed
(`x/mlxrunner/speculate_depth.go` of ollama/ollama, read in September 2026). It starts with no
calibration and learns costs from rounds that follow one of the same depth; every few rounds it
tries one token more, less often while that changes nothing. The clock of the whole round stands for
its cost: drafting is part of what a depth costs.
"""

from bisect import bisect_left
from itertools import pairwise


class DepthLaw:
    """Says how deep the next chain is; one for all requests."""

    COST_RATE, CLAMP = 0.3, 0.25  # weight of a cost; the share by which one may differ
    ACCEPTANCE_RATE, TRUSTED = 0.1, 10  # weight of an outcome; outcomes before a rate counts
    PROBE, RAREST_PROBE = 4, 512  # rounds between two tries of one token more

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self._cost: dict[int, float] = {}
        self._rates: list[float] = [0.0] * (max_depth + 1)
        self._seen: list[int] = [0] * (max_depth + 1)
        self._interval, self._since = self.PROBE, 0
        self._selected, self._probed = 0, False
        self._last: int | None = None  # depth of the round before

    def next(self) -> int:
        """Return the depth of the next round."""
        selected = self._best()
        if selected != self._selected:
            self._interval, self._since, self._selected = self.PROBE, 0, selected
        elif self._probed:
            self._interval = min(2 * self._interval, self.RAREST_PROBE)
        self._probed = False
        self._since += 1
        if self._since >= self._interval:
            self._since = 0
            probe = min(selected + 1, self._limit)
            self._probed = probe != selected
            if self._probed:
                return probe
        unsampled = (depth for depth in range(self._limit + 1) if depth not in self._cost)
        return next(unsampled, selected)

    def record(self, depth: int, n_accepted: int, seconds: float) -> None:
        """Learn what a round of this depth accepted and took."""
        if depth == self._last:
            known = self._cost.get(depth, seconds)
            most = self.CLAMP * known
            news = max(-most, min(most, seconds - known))
            self._cost[depth] = known + self.COST_RATE * news
        self._last = depth
        for position in range(1, min(depth, n_accepted + 1) + 1):
            accepted = float(n_accepted >= position)
            rate = self.ACCEPTANCE_RATE if self._seen[position] else 1.0
            self._rates[position] += rate * (accepted - self._rates[position])
            self._seen[position] += 1

    @property
    def _frontier(self) -> int:
        """The deepest position up to which all rates are trusted."""
        untrusted = (at for at, n in enumerate(self._seen) if at and n < self.TRUSTED)
        return next(untrusted, self.max_depth + 1) - 1

    @property
    def _limit(self) -> int:
        return min(self._frontier + 1, self.max_depth)

    def _best(self) -> int:
        """Return the depth with most tokens per second; 0 until two depths have a cost."""
        if len(self._cost) < 2:
            return 0
        tokens, reach, rate = 1.0, 1.0, 1.0
        values = {0: 1 / self._seconds(0)}
        for depth in range(1, self._limit + 1):
            trusted = self._seen[depth] >= self.TRUSTED
            # An unknown position takes over the rate of the deepest trusted one above it.
            rate = self._rates[depth] if trusted else rate
            reach *= rate
            tokens += reach
            values[depth] = tokens / self._seconds(depth)
        return max(values, key=values.__getitem__)

    def _seconds(self, depth: int) -> float:
        """Return a cost: linear between sampled depths, that of the nearest beyond them."""
        sampled = sorted(self._cost)
        if depth in self._cost or not sampled[0] < depth < sampled[-1]:
            return self._cost[min(max(depth, sampled[0]), sampled[-1])]
        low, high = list(pairwise(sampled))[bisect_left(sampled, depth) - 1]
        share = (depth - low) / (high - low)
        return self._cost[low] + share * (self._cost[high] - self._cost[low])
