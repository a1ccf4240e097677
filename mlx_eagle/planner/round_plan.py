"""One round: how deep it drafts, and which of the drafted nodes it verifies.

Each round maximises expected_tokens - price * seconds, where price is the current tokens per
second; with price at its long-run value this maximises the long-run rate (Dinkelbach 1967).
Expected tokens are sums of path acceptances, so the best N nodes are the N likeliest ones
(OPT-Tree, TACL 2025). Drafting follows the likeliest token, keeps its likeliest siblings as leaves,
and stops where no number of further levels of usual acceptance would pay. What was looked up comes
first and for nothing; a head drafts beside it where that pays on top. Nodes of both that are the
same text are one node.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import neg
from typing import ClassVar

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import ROOT, Forecast, Level, Node

Paths = list[tuple[float, Node]]  # nodes by path acceptance, falling


@dataclass
class RoundPlan:
    """The draft of one round so far, and a `ConfidenceCheck` of it."""

    MUCH: ClassVar[float] = 0.5  # chance of another token than those that were looked up

    costs: LiveCosts
    acceptance: Acceptance
    usual: float  # acceptance of a likeliest token that is not drafted yet
    price: float  # tokens that a second is worth
    context: int  # cached tokens
    depth: int  # most levels that a head drafts
    is_checked: bool  # whether it looks at what is drafted
    check_interval: int = 1  # levels that are checked at a time
    lookup: Acceptance | None = None  # of what is looked up
    one_chain: bool = False  # of what was looked up and what was drafted, only one is verified
    levels: list[Level] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)  # acceptance of each child of a level
    n_drafted: int = 0  # levels that were not looked up
    forecast: Forecast | None = None  # once the nodes are chosen
    _paths: dict[Node, float] = field(default_factory=lambda: {ROOT: 1.0})
    _same: dict[Node, Node] = field(default_factory=dict)  # nodes of a text that was there before
    _known: dict[tuple[Node, int], Node] = field(default_factory=dict)  # by parent and token
    _reach: float = 1.0  # path acceptance of the newest level's likeliest child

    def take_lookup(self, levels: Sequence[Level]) -> bool:
        """Take in what was looked up; say whether a head should draft beside it."""
        for level in levels:
            self._add(level)
        if not self.depth:
            self.is_checked = True  # what was looked up is known
            return False
        # A head adds what is none of the tokens that were looked up.
        open_share = max(0.0, 1.0 - (sum(self.rates[0]) if levels else 0.0))
        self._reach = 1.0 if self.one_chain else open_share
        is_wanted = self._pays_deeper() if self.is_checked else self._pays_unseen()
        goes_on = is_wanted or open_share > self.MUCH
        self.is_checked = self.is_checked or not goes_on
        return goes_on

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""
        self._add(level)
        return self._pays_deeper()

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone.

        The likeliest of every level come first: where they are accepted, their rows in the caches
        stand together already, and a sibling that is accepted moves one row.
        """
        offers = [(self._best(offer, self.n_drafted), offer) for offer in self._offers()]
        (_, n_rows), nodes = max(offers, key=lambda offer: offer[0][0])
        self._expect(nodes, n_rows)
        chosen = [node for _, node in nodes[: n_rows - 1]]
        first = {ROOT}
        for node in sorted(chosen):
            if node.child == 0 and self._parent(node) in first:
                first.add(node)
        return sorted(chosen, key=lambda node: (node not in first, node))

    def take_in(self, chain: Sequence[Level]) -> None:
        """Take in a chain that was drafted and verified without checking."""
        start = len(self.levels)
        for level in chain:
            self._add(level if len(self.levels) > start else level._replace(parent=ROOT))
        nodes = (Node(at, 0) for at in range(start, len(self.levels)))
        self._expect(self._ranked(self._same.get(node, node) for node in nodes), len(chain) + 1)

    def hits(self, tokens: Sequence[int]) -> list[tuple[int, int | None]]:
        """Return, of all levels below accepted nodes, the number and the child that was right.

        Args:
            tokens: what the target chose, one after the other, from the root on.
        """
        depths, found = {ROOT: 0}, list[tuple[int, int | None]]()
        for at, level in enumerate(self.levels):
            depth = depths.get(level.below(at))
            if depth is None or depth == len(tokens):
                continue
            right = next(
                (i for i, token in enumerate(level.tokens) if token == tokens[depth]), None
            )
            found.append((at, right))
            if right is not None:
                depths[Node(at, right)] = depth + 1
        return found

    def _add(self, level: Level) -> None:
        """Take in a level; a child that is there already is the more likely of both."""
        at, model = len(self.levels), self.acceptance
        if level.is_lookup:
            assert self.lookup is not None, "what is looked up has an acceptance of its own"
            model = self.lookup
        rates = model.children(level.confidences)
        self.levels.append(level)
        self.rates.append(rates)
        self.n_drafted += not level.is_lookup
        above = self._parent(Node(at, 0))
        for child, (token, rate) in enumerate(zip(level.tokens, rates, strict=True)):
            node = Node(at, child)
            first = self._known.setdefault((above, token), node)
            if first != node:
                self._same[node] = first
            path = self._paths[above] * rate
            self._paths[first] = max(path, self._paths.get(first, 0.0))
        self._reach = self._paths[self._same.get(Node(at, 0), Node(at, 0))]

    def _parent(self, node: Node) -> Node:
        """Return the parent of a node."""
        parent = self.levels[node.level].below(node.level)
        return self._same.get(parent, parent)

    def _offers(self) -> list[Paths]:
        """Return of what nodes the best may be verified; the last grows with further levels."""
        if not self.one_chain:
            return [self._ranked(node for node in self._paths if node != ROOT)]
        chains = list[Paths]()
        for is_lookup in (True, False):
            firsts = (Node(i, 0) for i, x in enumerate(self.levels) if x.is_lookup == is_lookup)
            chains.append(self._ranked(self._same.get(node, node) for node in firsts))
        return chains

    def _ranked(self, nodes: Iterable[Node]) -> Paths:
        """Return nodes, the likeliest path first."""
        return sorted(((self._paths[n], n) for n in nodes), key=lambda entry: (-entry[0], entry[1]))

    def _pays_deeper(self) -> bool:
        """Say whether some number of further levels, of usual acceptance, would pay."""
        depth, reach, offers = self.n_drafted, self._reach, self._offers()
        worth = max(self._best(offer, depth)[0] for offer in offers)
        paths = [path for path, _ in offers[-1]]
        for imagined in range(depth + 1, self.depth + 1):
            reach *= self.usual
            insort(paths, reach, key=neg)
            if self._worth(paths, imagined)[0] > worth:
                return True
        return False

    def _pays_unseen(self) -> bool:
        """Say whether a head's chain, of usual acceptance, is worth more than what is known."""
        known = max(self._best(offer, 0)[0] for offer in self._offers())
        tokens = sum(self.usual**depth for depth in range(self.depth + 1))
        verifying = self.costs.verify(self.depth + 1, self.context)
        return tokens - self.price * (verifying + self._drafting(self.depth)) > known

    def _best(self, offer: Paths, depth: int) -> tuple[float, int]:
        """Return worth and rows of the best tree of some nodes."""
        return self._worth([path for path, _ in offer], depth)

    def _worth(self, paths: Sequence[float], depth: int) -> tuple[float, int]:
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

    def _expect(self, nodes: Paths, n_rows: int) -> None:
        """Note what the round is expected to give when the first `n_rows` are verified."""
        costs, depths = self.costs, {ROOT: 0}
        for at, level in enumerate(self.levels):
            below = depths[level.below(at)] + 1
            depths |= {Node(at, child): below for child in range(len(level.tokens))}
        tokens = 1 + sum(path for path, _ in nodes[: n_rows - 1])
        verifying, drafting = costs.verify(n_rows, self.context), self._drafting(self.n_drafted)
        self.forecast = Forecast(tokens, drafting, verifying, n_rows, max(depths.values()))
