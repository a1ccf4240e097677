"""Calibration: how many seconds a round takes on this machine with this target and head.

It takes a few seconds, once. Each measured step depends on the step before it and is copied to the
host as in a real round, because independent steps overlap and look cheaper than they are. Passes
over all numbers of rows alternate, so that a busy moment spoils one sample of each and not all
samples of one; what differs from pass to pass is measured again. Long contexts are made of empty
cache rows: attention reads them all the same, and no long prompt has to be run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median

import mlx.core as mx
import numpy as np

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder, submit
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.early_stop import draft_with_checks
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import DEEPEST
from mlx_eagle.planner.policy import FixedShape, Level, Node, Plan
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.target.target import Target
from mlx_eagle.tree import MAX_NODES, PLAIN, DraftTree, TreeShape

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32)
FEW_ROWS = (1, 4, 8, 16)  # for the longer contexts, whose slope is all that is wanted
CONTEXTS = (64, 2048, 8192)  # cached tokens; kernels of attention change in between
WARM = 9  # tokens that are read first
DEPTHS = (1, 2, 3, 4, 6, 8)
GOOD = 0.85  # acceptance of every token, as the best heads have it where the text suits them
USELESS = 4.0  # rows that cost so many times one row are not worth verifying
MORE_ROWS = 4  # beyond them a CPU is not asked on if none of so many, or the next one, may pay
# Metal's fused attention takes so many products of rows and queries that share a key, up to eight
# rows, and then as many rows as there are; between, attention works with 16-bit scores.
FUSED, FUSED_AGAIN = 32, 9
SAMPLES, MOST_SAMPLES = 3, 9  # of each time
PLAIN_TOKEN = 0  # stands among numbers of rows for a token of plain decoding
AGREED = 1.1  # the least two samples' ratio up to which nothing has disturbed them

Report = Callable[[int, int], None]


def measure(target: Target, drafter: Drafter, report: Report | None = None) -> Costs:
    """Measure what rounds cost.

    Args:
        target: a target that verifies trees.
        drafter: a new drafter for it; it is left in no useful state.
        report: called with (steps done, steps in all), before every sample too, so that what it
            raises ends the measurement soon.
    """
    steps = _Steps(report, len(CONTEXTS) + 2)
    bench = _Bench(target, drafter, steps.remind)
    steps(0)
    bench.warm_up()
    sync = median(_time_sync() for _ in range(20))
    tried = bench.useful_rows()
    steps(1)
    if not comes_down_again():
        seconds = {n: (least,) for n, least in tried.items()}
        costs = Costs((bench.cache.rows,), seconds, seconds[1], bench.draft(1), sync)
        if _is_useless(costs, drafter.max_depth):
            steps(steps.total)
            return costs
    rows = sorted(tried)
    draft = bench.draft(rows[-1] - 1)
    sync = min([sync, *(high - low for low, high in pairwise((0.0, *draft)) if high > low)])
    steps(2)
    verify: dict[int, list[float]] = {n: [] for n in rows}
    plain: list[float] = []
    for done, context in enumerate(CONTEXTS, start=3):
        bench.pad(context)
        found, per_token = bench.verify(_few(rows) if plain else rows)
        first = {n: column[0] for n, column in verify.items()} if plain else {}
        plain.append(per_token)
        for n, column in verify.items():
            column.append(_further(n, found, first) if first else found[n])
        columns = {n: tuple(column) for n, column in verify.items()}
        costs = Costs(CONTEXTS[: len(plain)], columns, tuple(plain), draft, sync)
        if not first:
            build = min(bench.hidden(costs), median(bench.building), min(columns[1]))
        costs = replace(costs, build=build)
        if not comes_down_again() and _is_useless(costs, drafter.max_depth):
            break
        steps(done)
    steps(steps.total)
    return costs


def fused_rows(queries_per_key: int, *, is_metal: bool) -> tuple[int, ...]:
    """Return the numbers of rows to try: those for which attention stays on one fused kernel.

    Args:
        queries_per_key: queries that share a key and a value (grouped-query attention).
        is_metal: whether the device is an Apple GPU.
    """
    most = FUSED // queries_per_key
    return tuple(n for n in ROWS if not is_metal or n <= most or n >= FUSED_AGAIN)


def comes_down_again() -> bool:
    """Say whether more rows may cost less: on GPUs other kernels take over from some number on."""
    return bool(mx.default_device() == mx.gpu)


def _is_useless(costs: Costs, max_depth: int) -> bool:
    """Say whether even a good head would not pay; on a CPU more context does not change that."""
    return LiveCosts(costs).best_chain(GOOD, costs.contexts[-1], max_depth)[0] < 1


def _may_pay(seconds: Mapping[int, float]) -> bool:
    """Say whether any of some numbers of rows would pay with a good head that costs nothing."""
    tokens = {n: sum(GOOD**depth for depth in range(n)) for n in seconds}
    return any(seconds[n] < tokens[n] * seconds[1] for n in seconds if n > 1)


def _few(rows: Sequence[int]) -> list[int]:
    """Return the rows to measure at a longer context: some, and the most."""
    return [n for n in rows if n in FEW_ROWS or n == rows[-1]]


def _further(n: int, found: dict[int, float], first: dict[int, float]) -> float:
    """Return the seconds for `n` rows at a longer context, of which some numbers are known there.

    What the context adds is attention, which grows with the rows; the steps are elsewhere.
    """
    added = np.maximum.accumulate([max(0.0, found[m] - first[m]) for m in found])
    return first[n] + float(np.interp(n, list(found), added))


def _undisturbed(samples: Sequence[float]) -> float:
    """Return the second least of some times: other work adds to them, and one may be too short."""
    return sorted(samples)[1]


def _is_settled(samples: Sequence[float]) -> bool:
    """Say whether a time has been measured often enough."""
    return len(samples) >= SAMPLES and _undisturbed(samples) <= AGREED * min(samples)


def _settled(timers: Mapping[int, Callable[[], float]]) -> dict[int, float]:
    """Return the seconds that each of some timers tells, in passes over all that are unsettled."""
    samples: dict[int, list[float]] = {key: [] for key in timers}
    for _ in range(MOST_SAMPLES):
        for key, timer in timers.items():
            if not _is_settled(samples[key]):
                samples[key].append(timer())
    return {key: _undisturbed(times) for key, times in samples.items()}


def _never_falling(seconds: dict[int, float]) -> dict[int, float]:
    """Return times by number of rows, none above that of more rows: on a CPU it was disturbed."""
    if comes_down_again():
        return seconds
    least = np.minimum.accumulate([seconds[n] for n in sorted(seconds, reverse=True)])
    return dict(zip(sorted(seconds), least[::-1].tolist(), strict=True))


def _time_sync() -> float:
    """Return the seconds of one reading back of next to nothing."""
    number = mx.array(1.0)
    mx.eval(number)
    start = time.perf_counter()
    mx.eval(number + 1)
    return time.perf_counter() - start


class _Steps:
    """The steps of a measurement, and who is told of them."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self.total = report or (lambda done, total: None), total
        self.done = 0

    def __call__(self, done: int) -> None:
        """Report that so many steps are done."""
        self.done = done
        self.remind()

    def remind(self) -> None:
        """Report again what is done."""
        self._report(self.done, self.total)


class _Count:
    """A check that wants a given number of levels and chooses nothing."""

    def __init__(self, depth: int) -> None:
        self.left = depth

    def deeper(self, level: Level) -> bool:
        """Count a level."""
        self.left -= 1
        return self.left > 0

    def choose(self) -> list[Node]:
        """Choose nothing."""
        return []


class _Bench:
    """A target and a drafter at work on tokens without meaning."""

    def __init__(
        self, target: Target, drafter: Drafter, before: Callable[[], None] = lambda: None
    ) -> None:
        cache = target.make_cache()
        assert isinstance(cache, TreeCache), "only a target that verifies trees is calibrated"
        self.target, self.drafter, self.cache = target, drafter, cache
        self.before = before  # is called before every sample
        n_tokens = target.vocab_size or 1000
        # Spread over the vocabulary, so that the experts of a mixture are woken as by any text.
        self.ids = [(7919 * i + 11) % n_tokens for i in range(MAX_NODES)]
        self.target_tokens = mx.zeros((1,), dtype=mx.int32)
        self.building: list[float] = []  # seconds to build the graph of each verification

    def warm_up(self) -> None:
        """Fill the caches a little, and compile what is compiled at first use."""
        decoder = Decoder(self.target, self.cache, self.drafter, TokenSelector(SeededSampler()))
        prefill(decoder, self.ids[:WARM])
        for n in (1, 1, 2):
            self._verify(n)

    def pad(self, context: int) -> None:
        """Fill the target's cache with empty rows up to `context` tokens."""
        self.cache.pad(context - self.cache.rows)
        mx.eval(self.cache.buffers)

    def plain(self) -> float:
        """Return the seconds of a token of plain decoding, as the loop does it."""
        self.before()
        rows = self.cache.rows
        decoder = Decoder(self.target, self.cache, None, TokenSelector(SeededSampler()))
        stream = rounds(decoder, self.ids[0], FixedShape(PLAIN))
        for _ in range(2):  # until one is submitted ahead
            next(stream)
        samples = []
        for _ in range(3):
            start = time.perf_counter()
            next(stream)
            samples.append(time.perf_counter() - start)
        stream.close()
        if self.cache.can_trim(rows):  # a recurrent state stays a few tokens further on
            self.cache.trim(rows)
        return median(samples)

    def useful_rows(self) -> dict[int, float]:
        """Return the numbers of rows that may pay, with seconds, by a pass that warms them up."""
        useful, tries = {1: min(self._verify(1) for _ in range(3))}, 4
        limit = USELESS * useful[1]
        for n in fused_rows(self.target.queries_per_key, is_metal=mx.metal.is_available())[1:]:
            if n > MORE_ROWS and not comes_down_again() and not _may_pay(useful):
                break
            seconds = next((s for _ in range(tries) if (s := self._verify(n)) <= limit), None)
            if seconds is not None:
                useful[n] = seconds
            elif n > MORE_ROWS and not comes_down_again():
                break
            else:
                tries = 1
        return useful

    def verify(self, rows: Sequence[int]) -> tuple[dict[int, float], float]:
        """Return the seconds to verify each number of rows, and of a plain token."""
        timers = {n: partial(self._verify, n) for n in rows}
        found = _settled({PLAIN_TOKEN: self.plain, **timers})
        plain = found.pop(PLAIN_TOKEN)
        return _never_falling(found), plain

    def draft(self, most: int) -> tuple[float, ...]:
        """Return the seconds to take in two tokens and draft 1, 2, ... levels, `most` at most."""
        deepest = max(1, min(self.drafter.max_depth, DEEPEST, most))
        depths = [d for d in DEPTHS if d <= deepest]
        for depth in depths:
            self._draft(depth, deepest)  # what is compiled at first use
        known = _settled({d: partial(self._draft, d, deepest) for d in depths})
        every = range(1, depths[-1] + 1)
        return tuple(np.interp(every, depths, [known[d] for d in depths]).tolist())

    def hidden(self, costs: Costs) -> float:
        """Return by how many seconds a round is shorter if nobody looks at its draft.

        That is what the device drafts while the host builds the verification graph: much on a GPU,
        next to nothing on a CPU, which does both. What reading the draft back costs is not counted.
        """
        depth = next((n - 1 for n in costs.rows[1:] if n <= len(costs.draft) + 1), 0)
        if not depth:
            return 0.0
        self._unchecked(depth)  # what is compiled at first use
        found = _settled({depth: partial(self._unchecked, depth)})[depth]
        waiting = costs.draft[depth - 1] - depth * costs.sync + costs.verify[depth + 1][-1]
        return max(0.0, waiting - found)

    def _verify(self, n: int) -> float:
        """Return the seconds of one verification that depends on the one before it."""
        self.before()
        mx.eval(self.target_tokens)
        start = time.perf_counter()
        tokens = mx.array(self.ids[:n], dtype=mx.int32) + 0 * self.target_tokens[:1]
        tree = DraftTree.chain(tokens)
        verified = self.target.verify(tree, self.cache)
        self.target_tokens = SeededSampler()(verified.logits, tree, self.cache.rows)
        self.building.append(time.perf_counter() - start)
        mx.eval(self.target_tokens)
        return time.perf_counter() - start

    def _draft(self, depth: int, deepest: int) -> float:
        """Return the seconds to take in two tokens and draft `depth` levels, each one read back."""
        self.before()
        rows = self.drafter.rows
        tokens, taps = self._two_tokens()
        start = time.perf_counter()
        self.drafter.observe(taps, tokens)
        draft_with_checks(self.drafter, _Count(depth), deepest)
        seconds = time.perf_counter() - start
        self.drafter.trim(rows)
        return seconds

    def _unchecked(self, depth: int) -> float:
        """Return the seconds to take in two tokens, draft a chain and verify it, unread."""
        self.before()
        rows = self.drafter.rows
        tokens, taps = self._two_tokens()
        decoder = Decoder(self.target, self.cache, self.drafter, TokenSelector(SeededSampler()))
        decoder.pending.add(taps, tokens)
        start = time.perf_counter()
        mx.eval(submit(decoder, tokens[1:], Plan(TreeShape.chain(depth))).packed)
        seconds = time.perf_counter() - start
        self.drafter.trim(rows)
        return seconds

    def _two_tokens(self) -> tuple[mx.array, mx.array | None]:
        """Return two tokens [2] and what the target's taps give of them."""
        tokens = mx.array(self.ids[:2], dtype=mx.int32)
        taps = self.target.verify(DraftTree.chain(tokens), self.cache).taps
        mx.eval(taps)
        return tokens, taps
