"""One round: how deep it drafts, and which of the drafted nodes it verifies.

Each round maximises expected_tokens - price * seconds, where price is the current tokens per
second; with price at its long-run value this maximises the long-run rate (W. Dinkelbach, Management
Science 13, 1967). Expected tokens are sums of path acceptances, so the best N nodes are the N
likeliest ones (OPT-Tree, TACL 2025; CaDDTree, arXiv 2606.01813), for every N that was measured: a
curve of costs may have steps. Drafting follows the likeliest token, keeps its likeliest siblings as
leaves, and stops where no number of further levels of usual acceptance would pay.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import Forecast, Level, Node


class Outlook(NamedTuple):
    """What is known before a round.

    `usual` is the acceptance of a likeliest token that is not drafted yet, `price` the tokens that
    a second is worth.
    """

    costs: LiveCosts
    acceptance: Acceptance
    usual: float
    price: float


class RoundPlan:
    """The draft of one round as far as it has come, and a `ConfidenceCheck` of it.

    Args:
        outlook: what is known before the round.
        context: cached tokens.
        depth: most levels; 0 for a plain round.
        is_checked: whether each level is copied to the host before the next one is drafted.

    Attributes:
        levels: what was drafted.
        rates: by level, how likely each child is accepted, given its parent.
        forecast: what the round is expected to give, once its nodes are chosen; None if plain.
    """

    def __init__(self, outlook: Outlook, context: int, depth: int, *, is_checked: bool) -> None:
        self.context, self.is_checked = context, is_checked
        self.levels: list[Level] = []
        self.rates: list[list[float]] = []
        self.forecast: Forecast | None = None
        self._outlook, self._depth = outlook, depth
        self._nodes: list[tuple[float, Node]] = []  # with path acceptance, the likeliest first
        self._reach = 1.0  # path acceptance of the newest level's likeliest child

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""
        self._add(level)
        depth, paths, reach = len(self.levels), self._paths(), self._reach
        worth, _ = self._best(paths, depth)
        for imagined in range(depth + 1, self._depth + 1):
            reach *= self._outlook.usual
            paths = sorted([*paths, reach], reverse=True)
            if self._best(paths, imagined)[0] > worth:
                return True
        return False

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""
        _, n_rows = self._best(self._paths(), len(self.levels))
        self._expect(n_rows)
        return sorted(node for _, node in self._nodes[: n_rows - 1])

    def take_in(self, chain: Sequence[Level]) -> None:
        """Take in a chain that was drafted and verified without checking."""
        for level in chain:
            self._add(level)
        self._expect(len(chain) + 1)

    def _add(self, level: Level) -> None:
        rates, at = self._outlook.acceptance.children(level.confidences), len(self.levels)
        self.levels.append(level)
        self.rates.append(rates)
        self._nodes += [(self._reach * rate, Node(at, child)) for child, rate in enumerate(rates)]
        self._nodes.sort(key=lambda entry: (-entry[0], entry[1]))
        self._reach *= rates[0]

    def _paths(self) -> list[float]:
        return [path for path, _ in self._nodes]

    def _best(self, paths: Sequence[float], depth: int) -> tuple[float, int]:
        """Return the worth in tokens, and the rows, of the best tree over nodes of `depth` levels.

        `paths` are the path acceptances of all nodes, the likeliest first.
        """
        costs, price = self._outlook.costs, self._outlook.price
        best, tokens, taken = (float("-inf"), 1), 1.0, 0
        for n_rows in costs.rows:
            if n_rows > len(paths) + 1:
                break
            tokens += sum(paths[taken : n_rows - 1])
            taken = n_rows - 1
            best = max(best, (tokens - price * costs.verify(n_rows, self.context), n_rows))
        return best[0] - price * costs.draft(depth, is_checked=self.is_checked), best[1]

    def _expect(self, n_rows: int) -> None:
        """Note what the round is expected to give when `n_rows` are verified."""
        costs, depth = self._outlook.costs, len(self.levels)
        tokens = 1 + sum(self._paths()[: n_rows - 1])
        drafting = costs.draft(depth, is_checked=self.is_checked)
        self.forecast = Forecast(
            tokens, drafting, costs.verify(n_rows, self.context), n_rows, depth
        )
