#!/usr/bin/env python3
"""Policies against each other on recorded traces and published cost curves: simulated, no model.

    python benchmarks/simulate.py
    python benchmarks/simulate.py --details --curve "M4 Pro 8B" --trace "dead head" --rough
    python benchmarks/simulate.py --first-answers

The first command simulates every curve of `curves.py` with every trace (`replay.py`) in about two
minutes. It prints the planner's speed over that of the best fixed shape, and the mean of them all.
The curves of `kernel_curves.py` have a command of their own, `simulate_kernels.py`.

The planner is the very class that decodes; it is given the costs of the machine, as a calibration
would measure them, and nothing of the trace. "Best fixed" is the best of all chains and trees in
hindsight, plain decoding included. Seconds are those that rounds cost on the curve. Under --rough
the clock that policies read is off by lognormal noise of 10 % and stands still for ten rounds' time
in one round of a hundred (the factor depends on the number of the round only, so every policy meets
the same ones); what they take is still counted at its true cost, since a factor that strikes all
rounds alike would change all policies' seconds alike, and luck says nothing. The calibration is
then off by 5 % at every number of rows. --first-answers begins every text with a planner that knows
nothing of the head yet, and lets only a share of the tokens be foreseen by any candidate.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import CURVES, Curve
from kernel_curves import KERNEL_CURVES
from laws import DepthLaw
from replay import Trace, sweep, variants

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import Planner
from mlx_eagle.planner.policy import Level, Node, Outcome, Plan
from mlx_eagle.tree import PLAIN

FOREIGN = -1  # a token that is nobody's child
CONTEXT = 100  # tokens before each text
ALL_CURVES = CURVES | KERNEL_CURVES
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of tokens that a candidate may foresee


class Machine:
    """What rounds cost in truth, and what a calibration finds."""

    def __init__(self, curve: Curve) -> None:
        self.rows = curve.rows
        self.plain = curve.plain_ms / 1e3
        self.build = curve.build * self.plain
        self._curve, self._sync = curve, curve.sync_ms / 1e3

    def verify(self, n_rows: int) -> float:
        """Return the seconds to verify rows and read the choices back."""
        return self.rows[n_rows] * self.plain + self._sync

    def draft(self, depth: int, *, width: int = 1, n_checks: int = 0) -> float:
        """Return the seconds to draft `depth` levels, read back `n_checks` times."""
        curve, n_siblings = self._curve, (width - 1) * (depth - 1)
        steps = curve.first + depth * curve.level + n_siblings * curve.sibling
        return steps * self.plain + n_checks * self._sync

    def unchecked(self, depth: int, n_rows: int, *, width: int = 1) -> float:
        """Return the seconds of a round nobody looks into: its graph is built during the draft."""
        if depth == 0:
            return self.plain
        return max(self.draft(depth, width=width), self.build) + self.verify(n_rows)

    def calibrate(self, depth: int, noise: float, plain_off: float = 1.0) -> Costs:
        """Return what is measured.

        Args:
            depth: levels of which drafting is measured.
            noise: standard deviation of the logarithm of what is measured for rows.
            plain_off: by what the cost of a plain token is measured wrongly.
        """
        off = np.random.default_rng(1).normal(0.0, noise, len(self.rows))
        rows = {
            n: ((self.build + self.verify(n)) * float(np.exp(x)),)
            for n, x in zip(self.rows, off, strict=True)
        }
        steps = tuple(self.draft(k, n_checks=k) for k in range(1, depth + 1))
        return Costs((0,), rows, (self.plain * plain_off,), steps, self._sync, self.build)


class Clock:
    """What policies read instead of true seconds: factors by the number of the round."""

    def __init__(self, *, rough: bool) -> None:
        rng = np.random.default_rng(2)
        noise = np.exp(rng.normal(0.0, 0.1, 8192)) * np.where(rng.random(8192) < 0.01, 10.0, 1.0)
        self._factors: list[float] = noise.tolist() if rough else [1.0]
        self._rounds = 0

    def tick(self) -> float:
        """Return the next round's factor."""
        self._rounds += 1
        return self._factors[self._rounds % len(self._factors)]


class Run(NamedTuple):
    """Tokens, true seconds, and how many rounds verified how many rows."""

    tokens: int
    seconds: float
    rows: dict[int, int]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Tally:
    """Adds up a run."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0
        self._rows: dict[int, int] = {}

    def add(self, tokens: int, seconds: float, n_rows: int) -> None:
        """Count a round."""
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._rows[n_rows] = self._rows.get(n_rows, 0) + 1

    def run(self) -> Run:
        """Return what was counted."""
        return Run(self._tokens, self._seconds, dict(sorted(self._rows.items())))


def run_law(machine: Machine, trace: Trace, *, rough: bool = False) -> Run:
    """Decode all texts by Ollama's law; a chain that no curve lists is padded to one that is."""
    most, tally, clock = max(machine.rows), Tally(), Clock(rough=rough)
    law = DepthLaw(min(trace.size[2], most - 1))
    for chains in trace.chains.tolist():
        at = 0
        while at < len(chains):
            depth = law.next()
            accepted = min(depth, chains[at])
            n_rows = min(n for n in machine.rows if n > depth)
            seconds = machine.unchecked(depth, n_rows)
            law.record(depth, accepted, seconds * clock.tick())
            tally.add(accepted + 1, seconds, n_rows)
            at += accepted + 1
    return tally.run()


class PlannerRun:
    """Decodes texts as `decoding.loop.rounds` does, with costs and acceptance of a target and head.

    A plain round that follows a plain one is submitted ahead and timed; others are not.
    """

    def __init__(
        self, machine: Machine, trace: Trace, *, rough: bool = False, plain_off: float = 1.0
    ) -> None:
        self.machine, self.trace = machine, trace
        costs = machine.calibrate(trace.size[2], 0.05 if rough else 0.0, plain_off)
        self.planner = Planner(LiveCosts(costs), Acceptance(), trace.size[2])
        self._tally, self._clock = Tally(), Clock(rough=rough)

    def run(self) -> Run:
        """Decode all texts."""
        for levels, hits in zip(self.trace.levels, self.trace.hits.tolist(), strict=True):
            self._decode(levels, hits)
        return self._tally.run()

    def _decode(self, levels: list[list[Level]], hits: list[list[int]]) -> None:
        planner, at = self.planner, 0
        ahead: Plan | None = None  # a round that was submitted before the last one was read
        while at < len(hits):
            plan, is_ahead = ahead or planner.plan(CONTEXT + at), ahead is not None
            ahead = None
            if plan.shape != PLAIN:
                at += self._draft(plan, levels[at], hits[at])
                continue
            if planner.stays_plain():
                ahead = planner.plan(CONTEXT + at + 1)
            self._plain(is_ahead=is_ahead)
            at += 1

    def _plain(self, *, is_ahead: bool) -> None:
        """Decode one token; whether it would have been drafted is not known."""
        machine = self.machine
        seconds = machine.plain if is_ahead else machine.build + machine.verify(1)
        seen = machine.plain * self._clock.tick()
        self.planner.record(Outcome([FOREIGN], None, seen if is_ahead else None))
        self._tally.add(1, seconds, 1)

    def _draft(self, plan: Plan, levels: list[Level], hits: list[int]) -> int:
        """Draft and verify; return the tokens that came of it."""
        machine, clock = self.machine, self._clock.tick()
        depth, nodes = _draft_levels(plan, levels)
        accepted, n_rows = _count_accepted(nodes, hits), len(nodes) + 1
        # A hit that was not verified is the target's choice all the same.
        tokens = [hit if hit >= 0 else FOREIGN for hit in [*hits, FOREIGN][: accepted + 1]]
        if plan.check is not None:
            n_checks = -(-depth // plan.check_interval)
            drafting = machine.draft(depth, n_checks=n_checks)
            seconds = drafting + machine.build + machine.verify(n_rows)
            outcome = Outcome(tokens, drafting * clock, (seconds - drafting) * clock)
        else:
            seconds = machine.unchecked(depth, n_rows)
            firsts = [Level(level.tokens[:1], level.confidences[:1]) for level in levels[:depth]]
            outcome = Outcome(tokens, None, seconds * clock, firsts)
        self.planner.record(outcome)
        self._tally.add(len(tokens), seconds, n_rows)
        return len(tokens)


def _draft_levels(plan: Plan, levels: list[Level]) -> tuple[int, list[Node]]:
    """Return how many levels are drafted, and the nodes to verify."""
    if plan.check is None:
        return plan.shape.depth, [Node(level, 0) for level in range(plan.shape.depth)]
    depth, goes_on = 0, True
    while goes_on and depth < plan.shape.depth:
        for level in levels[depth : min(depth + plan.check_interval, plan.shape.depth)]:
            depth, goes_on = depth + 1, plan.check.deeper(level)
    return depth, plan.check.choose()


def _count_accepted(nodes: list[Node], hits: list[int]) -> int:
    """Return how many of the nodes the target follows."""
    chosen, accepted = set(nodes), 0
    for level, hit in enumerate(hits):
        if Node(level, hit) not in chosen:
            break
        accepted += 1
        if hit != 0:
            break
    return accepted


def run_fixed(machine: Machine, trace: Trace) -> dict[str, Run]:
    """Return plain decoding and every fixed shape, by name."""
    found = {}
    for name, shape in ({"plain": PLAIN} | sweep(trace, machine.rows)).items():
        tokens, rounds = trace.walk(shape)
        seconds = machine.unchecked(shape.depth, shape.nodes + 1, width=shape.width)
        found[name] = Run(tokens, rounds * seconds, {shape.nodes + 1: rounds})
    return found


class Contest(NamedTuple):
    """One trace on one machine; figures are tokens per second relative to plain decoding's."""

    curve: str
    trace: str
    plain: float  # tokens per second
    policies: dict[str, float]  # every fixed shape, "law" and "planner"

    @property
    def best_fixed(self) -> str:
        """Name of the best fixed shape in hindsight."""
        fixed = {k: v for k, v in self.policies.items() if k not in ("law", "planner")}
        return max(fixed, key=fixed.__getitem__)

    @property
    def planner(self) -> float:
        """The planner's speed-up."""
        return self.policies["planner"]

    @property
    def margin(self) -> float:
        """The planner relative to the best fixed shape."""
        return self.planner / self.policies[self.best_fixed]


def contest(curve: str, name: str, trace: Trace, *, rough: bool = False) -> Contest:
    """Let all policies decode one trace on one machine."""
    machine = Machine(ALL_CURVES[curve])
    runs = run_fixed(machine, trace)
    runs["law"] = run_law(machine, trace, rough=rough)
    runs["planner"] = PlannerRun(machine, trace, rough=rough).run()
    plain = runs["plain"].rate
    return Contest(curve, name, plain, {policy: run.rate / plain for policy, run in runs.items()})


def table(contests: list[Contest]) -> Iterator[str]:
    """Yield the lines of a Markdown table; speed-ups are relative to plain decoding."""
    yield "| simulated | trace | best fixed in hindsight | x | Ollama's law | planner | / best |"
    yield "|---|---|---|---|---|---|---|"
    for found in contests:
        best, law = found.best_fixed, found.policies["law"]
        cells = [found.curve, found.trace, best, f"{found.policies[best]:.2f}", f"{law:.2f}"]
        yield "| " + " | ".join([*cells, f"{found.planner:.2f}", f"{found.margin:.3f}"]) + " |"


def summary(contests: list[Contest]) -> Iterator[str]:
    """Yield a table of planner / best fixed, a line per curve, and the mean of them all."""
    margins = {(found.curve, found.trace): found.margin for found in contests}
    traces = list(dict.fromkeys(found.trace for found in contests))
    yield "| planner / best fixed | " + " | ".join([*traces, "mean"]) + " |"
    yield "|---" * (len(traces) + 2) + "|"
    for curve in dict.fromkeys(found.curve for found in contests):
        row = [margins[curve, trace] for trace in traces]
        cells = [curve, *(f"{margin:.3f}" for margin in [*row, sum(row) / len(row)])]
        yield "| " + " | ".join(cells) + " |"
    mean, least = sum(margins.values()) / len(margins), min(margins.values())
    slowest = min(found.planner for found in contests)
    yield f"\nmean of all {len(margins)}: {mean:.4f}, least {least:.3f}"
    yield f"planner / plain decoding: least {slowest:.3f}"


def first_answers(curve: str, trace: Trace) -> float:
    """Return the planner's speed over plain decoding where it knows nothing before each text."""
    machine = Machine(ALL_CURVES[curve])
    runs = [PlannerRun(machine, trace.reordered([i])).run() for i in range(trace.size[0])]
    return sum(run.tokens for run in runs) * machine.plain / sum(run.seconds for run in runs)


def table_of_first_answers(curves: list[str], trace: Trace) -> Iterator[str]:
    """Yield a table of `first_answers`, a line per share of the tokens that can be foreseen."""
    n_texts, n_positions, _ = trace.size
    yield f"First answers of {n_positions} tokens, over plain decoding; {n_texts} texts:\n"
    yield "| foreseen | first token right | least of all curves | mean |"
    yield "|---|---|---|---|"
    for share in SHARES:
        weak = trace.without(np.full(n_texts * n_positions, share))
        right = float(np.mean(weak.hits[:, :, 0] == 0))
        speeds = [first_answers(curve, weak) for curve in curves]
        cells = [share, right, min(speeds), sum(speeds) / len(speeds)]
        yield f"| {cells[0]:.1f} | {cells[1]:.2f} | {cells[2]:.3f} | {cells[3]:.3f} |"


def main() -> None:
    """Parse the command line, simulate, print."""
    traces = variants(Trace.load())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--curve",
        action="append",
        choices=list(ALL_CURVES),
        metavar="NAME",
        help="of curves.py (default: all) or kernel_curves.py",
    )
    parser.add_argument("--trace", action="append", choices=list(traces), help="default: all")
    parser.add_argument("--rough", action="store_true", help="noise, stalls, a calibration off")
    parser.add_argument("--first-answers", action="store_true", help="of heads not known yet")
    parser.add_argument("--details", action="store_true", help="a line per curve and trace")
    parser.add_argument("--json", type=Path, help="also write every policy's figures here")
    args = parser.parse_args()
    if args.first_answers:
        print("\n".join(table_of_first_answers(args.curve or list(CURVES), Trace.load())))
        return
    found: list[Contest] = []
    for name in args.trace or traces:
        for curve in args.curve or CURVES:
            found.append(contest(curve, name, traces[name], rough=args.rough))
    print("\n".join(table(found) if args.details else summary(found)))
    if args.json:
        figures: list[dict[str, Any]] = [result._asdict() for result in found]
        args.json.write_text(json.dumps({"simulated": figures, "rough": args.rough}))


if __name__ == "__main__":
    main()
