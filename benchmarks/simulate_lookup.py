#!/usr/bin/env python3
"""A head, n-gram lookup, and both together, on texts that repeat themselves: simulated, no model.

    python benchmarks/simulate_lookup.py
    python benchmarks/simulate_lookup.py --details --curve "M4 Pro 8B"

Each text is made of stretches: new ones, whose tokens stand nowhere before, copies of earlier ones
in which a token in EDITED is changed, and ones of few words, whose last two tokens have nearly
always stood somewhere before and say nothing of the next. What is looked up is what the drafter
finds in such a text. What the head drafts is recorded (`replay.py`), with the tokens of the text in
place of its own; costs are published (`curves.py`). All three are decoded by the planner itself,
which knows nothing of head and text beforehand. The figure is the speed of both together over that
of the better of the two; mean and least over all curves and texts.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from curves import CURVES
from replay import Trace, variants
from simulate import CONTEXT, Machine, Tally

from mlx_eagle.decoding.accept import accept
from mlx_eagle.drafters.early_stop import levels_to_tree
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.planner import Planner
from mlx_eagle.planner.policy import ROOT, Level, Node, Outcome, Plan
from mlx_eagle.tree import PLAIN

EDITED = 25  # tokens of a copy, of which one is changed
STRETCH = 60  # tokens
JOINED = 8  # recorded texts whose drafts, one after the other, are those of one text
FEW_WORDS = 12
FOREIGN = 1 << 30  # ids from here on are tokens that are no text's
TEXTS = {"new": "n", "copied": "nccccccc", "mixed": "nncncc", "few words": "w"}
HEADS = ("recorded", "collapses, recovers", "dead head")


def make_text(kind: str, n_tokens: int, seed: int) -> tuple[list[int], list[int]]:
    """Return a prompt and a text of `n_tokens` after it, by the stretches of a kind."""
    rng = np.random.default_rng(seed)
    fresh = iter(range(1000, FOREIGN))
    prompt = [next(fresh) for _ in range(4 * STRETCH)]
    tokens, stretches = list(prompt), TEXTS[kind]
    for index in range(-(-n_tokens // STRETCH)):
        way = stretches[index % len(stretches)]
        if way == "w":
            tokens += rng.integers(0, FEW_WORDS, STRETCH).tolist()
            continue
        start = int(rng.integers(0, len(tokens) - STRETCH))
        copied = tokens[start : start + STRETCH]
        changed = rng.random(STRETCH) < 1 / EDITED
        is_new = changed if way == "c" else np.ones(STRETCH, dtype=bool)
        tokens += [next(fresh) if new else t for t, new in zip(copied, is_new, strict=True)]
    return prompt, tokens[len(prompt) :][:n_tokens]


class Draft(NamedTuple):
    """What a round proposed: all levels, how many of them a head drafted, and what is verified."""

    levels: list[Level]
    n_drafted: int
    nodes: list[Node]


class LookupRun:
    """Decodes texts with a head, with lookup, or with both."""

    def __init__(self, machine: Machine, *, has_head: bool, has_lookup: bool, depth: int) -> None:
        costs = machine.calibrate(depth, 0.0)
        if not has_head:
            costs = costs.without_drafting()
        self.machine, self.has_lookup = machine, has_lookup
        live, known = LiveCosts(costs), Acceptance()
        self.planner = Planner(live, known, depth)
        if has_lookup:
            self.planner = LookupPlanner(live, known, Acceptance(), depth if has_head else 0)
        self._tally = Tally()

    def decode(self, prompt: list[int], text: list[int], head: list[list[Level]]) -> None:
        """Decode a text; `head` is what the head drafts at each of its positions."""
        drafter, planner, at, n_seen = NgramDrafter(FOREIGN, 255), self.planner, 1, 0
        known = [*prompt, *text]
        ahead: Plan | None = None
        while at < len(text):
            plan, is_ahead = ahead or planner.plan(CONTEXT + at), ahead is not None
            ahead = None
            if plan.shape == PLAIN:
                ahead = planner.plan(CONTEXT + at + 1) if planner.stays_plain() else None
                self._plain(text[at], is_ahead=is_ahead)
                at += 1
                continue
            end = len(prompt) + at
            drafter.index.extend(known[n_seen:end])
            n_seen = end
            draft = self._draft(plan, drafter, head[at])
            at += self._verify(plan, draft, text[at:])

    def speed(self) -> float:
        """Return how many times plain decoding's speed it had."""
        return self._tally.run().rate * self.machine.plain

    def _plain(self, token: int, *, is_ahead: bool) -> None:
        """Decode one token."""
        machine = self.machine
        seconds = machine.plain if is_ahead else machine.build + machine.verify(1)
        self.planner.record(Outcome([token], None, seconds if is_ahead else None))
        self._tally.add(1, seconds, 1)

    def _draft(self, plan: Plan, drafter: NgramDrafter, head: list[Level]) -> Draft:
        """Return what a round proposes."""
        if plan.check is None:
            chain = [Level(x.tokens[:1], x.confidences[:1]) for x in head[: plan.shape.depth]]
            return Draft(chain, len(chain), [Node(i, 0) for i in range(len(chain))])
        levels, goes_on, n = list[Level](), True, 0
        if self.has_lookup:
            wanted = plan.lookup
            levels = drafter.lookup(wanted.depth, wanted.width, wanted.nodes)
            goes_on = plan.check.take_lookup(levels)
            if not plan.check.is_checked:
                chain = [Level(x.tokens[:1], x.confidences[:1]) for x in head[: plan.shape.depth]]
                return Draft(chain, len(chain), [Node(i, 0) for i in range(len(chain))])
        while goes_on and n < plan.shape.depth:
            for level in head[n : min(n + plan.check_interval, plan.shape.depth)]:
                levels.append(level if n else level._replace(parent=ROOT))
                n, goes_on = n + 1, plan.check.deeper(level if n else levels[-1])
        return Draft(levels, n, plan.check.choose())

    def _verify(self, plan: Plan, draft: Draft, rest: Sequence[int]) -> int:
        """Verify a draft before the tokens `rest`; return how many came."""
        tree = levels_to_tree(mx.array([FOREIGN]), draft.levels, draft.nodes)
        depths: list[int] = tree.depths.tolist()  # type: ignore[assignment]
        target = [rest[d] if d < len(rest) else -1 for d in depths]
        drafted: list[int] = tree.tokens.tolist()  # type: ignore[assignment]
        n, machine = len(accept(drafted, tree.structure(), target).path), self.machine
        tokens = list(rest[:n])
        if plan.check is None or not plan.check.is_checked:
            seconds = machine.unchecked(draft.n_drafted, tree.n_nodes)
            outcome = Outcome(tokens, None, seconds, draft.levels)
        else:
            n_checks = -(-draft.n_drafted // plan.check_interval)
            drafting = machine.draft(draft.n_drafted, n_checks=n_checks) if n_checks else 0.0
            seconds = drafting + machine.build + machine.verify(tree.n_nodes)
            outcome = Outcome(tokens, drafting, seconds - drafting)
        self.planner.record(outcome)
        self._tally.add(len(tokens), seconds, tree.n_nodes)
        return len(tokens)


def heads_of(trace: Trace, text: list[int], index: int) -> list[list[Level]]:
    """Return what a recorded head drafts at each position of a text: its hits are the text's."""
    texts = range(index * JOINED, (index + 1) * JOINED)
    hits = [place for i in texts for place in trace.hits[i].tolist()]
    found, wrong = [], iter(range(FOREIGN + 1, FOREIGN << 1))
    for at, levels in enumerate(place for i in texts for place in trace.levels[i]):
        own = []
        for depth, level in enumerate(levels):
            tokens = [next(wrong) for _ in level.tokens]
            if hits[at][depth] >= 0 and at + depth < len(text):
                tokens[hits[at][depth]] = text[at + depth]
            own.append(Level(tokens, level.confidences))
        found.append(own)
    return found


def contest(curve: str, kind: str, trace: Trace, n_texts: int) -> dict[str, float]:
    """Return the speed over plain decoding of "head", "lookup" and "both"."""
    machine, depth = Machine(CURVES[curve]), trace.size[2]
    runs = {
        "head": LookupRun(machine, has_head=True, has_lookup=False, depth=depth),
        "lookup": LookupRun(machine, has_head=False, has_lookup=True, depth=depth),
        "both": LookupRun(machine, has_head=True, has_lookup=True, depth=depth),
    }
    for index in range(n_texts):
        prompt, text = make_text(kind, JOINED * trace.size[1], index)
        head = heads_of(trace, text, index)
        for run in runs.values():
            run.decode(prompt, text, head)
    return {name: run.speed() for name, run in runs.items()}


def margin(speeds: dict[str, float]) -> float:
    """Return the speed of both together over that of the better of the two."""
    return speeds["both"] / max(speeds["head"], speeds["lookup"])


def table(curves: list[str], n_texts: int, *, details: bool) -> Iterator[str]:
    """Yield a line per head and kind of text, or also per curve."""
    traces = variants(Trace.load())
    yield "| head | text | curve | head | lookup | both | both / better |"
    yield "|---|---|---|---|---|---|---|"
    margins = []
    for name in HEADS:
        for kind in TEXTS:
            found = {curve: contest(curve, kind, traces[name], n_texts) for curve in curves}
            worst = min(found, key=lambda curve: margin(found[curve]))
            for curve in found if details else [worst]:
                speeds = found[curve]
                cells = [name, kind, curve, *(f"{speed:.2f}" for speed in speeds.values())]
                yield "| " + " | ".join([*cells, f"{margin(speeds):.3f}"]) + " |"
            margins += [margin(speeds) for speeds in found.values()]
    yield f"\nmean of all {len(margins)}: {np.mean(margins):.4f}, least {min(margins):.3f}"


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    curves = {"action": "append", "choices": list(CURVES), "metavar": "NAME"}
    parser.add_argument("--curve", **curves, help="of curves.py; default: all")
    parser.add_argument("--texts", type=int, default=6, choices=range(1, 7), help="of each kind")
    parser.add_argument("--details", action="store_true", help="every curve, not only the worst")
    args = parser.parse_args()
    lines = table(args.curve or list(CURVES), args.texts, details=args.details)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
