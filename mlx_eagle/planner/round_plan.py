"""One round: how deep it drafts, and which of the drafted nodes it verifies.

Each round maximises expected_tokens - price * seconds, where price is the current tokens per
second; with price at its long-run value this maximises the long-run rate (Dinkelbach 1967).
Expected tokens are sums of path acceptances, so the best N nodes are the N likeliest ones
(OPT-Tree, TACL 2025). Drafting follows the likeliest token, keeps its likeliest siblings as leaves,
and stops where no number of further levels of usual acceptance would pay.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import Forecast, Level, Node


@dataclass
class RoundPlan:
    """The draft of one round so far, and a `ConfidenceCheck` of it."""

    costs: LiveCosts
    acceptance: Acceptance
    usual: float  # acceptance of a likeliest token that is not drafted yet
    price: float  # tokens that a second is worth
    context: int  # cached tokens
    depth: int  # most levels
    is_checked: bool
    check_interval: int = 1  # levels that are checked at a time
    levels: list[Level] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)  # acceptance of each child of a level
    forecast: Forecast | None = None  # once the nodes are chosen
    _nodes: list[tuple[float, Node]] = field(default_factory=list)  # by path acceptance, falling
    _reach: float = 1.0  # path acceptance of the newest level's likeliest child

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""
        self._add(level)
        depth, paths, reach = len(self.levels), [path for path, _ in self._nodes], self._reach
        worth, _ = self._best(paths, depth)
        for imagined in range(depth + 1, self.depth + 1):
            reach *= self.usual
            paths = sorted([*paths, reach], reverse=True)
            if self._best(paths, imagined)[0] > worth:
                return True
        return False

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone.

        The likeliest of every level come first: where they are accepted, their rows in the caches
        stand together already, and a sibling that is accepted moves one row.
        """
        _, n_rows = self._best([path for path, _ in self._nodes], len(self.levels))
        self._expect(n_rows)
        chosen = (node for _, node in self._nodes[: n_rows - 1])
        return sorted(chosen, key=lambda node: (node.child > 0, node))

    def take_in(self, chain: Sequence[Level]) -> None:
        """Take in a chain that was drafted and verified without checking."""
        for level in chain:
            self._add(level)
        self._expect(len(chain) + 1)

    def _add(self, level: Level) -> None:
        rates, at = self.acceptance.children(level.confidences), len(self.levels)
        self.levels.append(level)
        self.rates.append(rates)
        self._nodes += [(self._reach * rate, Node(at, child)) for child, rate in enumerate(rates)]
        self._nodes.sort(key=lambda entry: (-entry[0], entry[1]))
        self._reach *= rates[0]

    def _best(self, paths: Sequence[float], depth: int) -> tuple[float, int]:
        """Return worth and rows of the best tree; `paths`: path acceptances, likeliest first."""
        costs, price, best = self.costs, self.price, (float("-inf"), 1)
        tokens, taken = 1.0, 0
        for n_rows in costs.rows:
            if n_rows > len(paths) + 1:
                break
            tokens += sum(paths[taken : n_rows - 1])
            taken = n_rows - 1
            best = max(best, (tokens - price * costs.verify(n_rows, self.context), n_rows))
        return best[0] - price * self._drafting(depth), best[1]

    def _drafting(self, depth: int) -> float:
        """Return the seconds to draft `depth` levels, checked as in this round."""
        return self.costs.draft(depth, is_checked=self.is_checked, interval=self.check_interval)

    def _expect(self, n_rows: int) -> None:
        """Note what the round is expected to give when `n_rows` are verified."""
        costs, depth = self.costs, len(self.levels)
        tokens = 1 + sum(path for path, _ in self._nodes[: n_rows - 1])
        verifying = costs.verify(n_rows, self.context)
        self.forecast = Forecast(tokens, self._drafting(depth), verifying, n_rows, depth)
