"""One round: submitted, finished, timed."""

import time
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.cache.model_cache import AnyCache
from mlx_eagle.decoding.accept import accept
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.early_stop import draft_as_planned
from mlx_eagle.drafters.pending import PendingRows
from mlx_eagle.planner.policy import Level, Outcome, Plan, Review
from mlx_eagle.sampling.token_selector import TargetTokens, TokenSelector
from mlx_eagle.target.target import Target, Verified
from mlx_eagle.tree import PLAIN, DraftTree, check_structure

BUSY = 0.2  # share of a plain round that the caller may take before its time tells nothing


class Decoder(NamedTuple):
    """The parties to a round: who proposes, who decides, and what the target remembers."""

    target: Target
    cache: AnyCache
    drafter: Drafter | None
    selector: TokenSelector


class RoundTimes(NamedTuple):
    """Seconds of one round; draft and verify are None where they were not told apart."""

    draft: float | None
    verify: float | None
    host: float


class Round(NamedTuple):
    """What one target forward gave: the accepted tokens, then the target's own next token.

    `target_tokens` are those of all nodes, of which `path` was accepted. `seconds` are all of the
    round's time. `review` is what a planner says to it, if it drafted.
    """

    tokens: list[int]
    n_drafted: int
    depth: int
    times: RoundTimes
    target_tokens: TargetTokens
    path: list[int]
    tree: DraftTree
    seconds: float = 0.0
    review: Review | None = None

    @property
    def n_accepted(self) -> int:
        """Accepted draft tokens."""
        return len(self.tokens) - 1

    @property
    def log_probs(self) -> mx.array:
        """Log-probabilities [len(tokens), V] from which each token was chosen; still lazy."""
        return self.target_tokens.log_probs(self.path)


class _Flight(NamedTuple):
    """A round that has been submitted and not yet read.

    `start`, `drafted` and `submitted` are moments in seconds; blindly drafted trees are known to
    be complete only when they were submitted, if at all. `is_ahead`: before the last one was read.
    """

    plan: Plan
    tree: DraftTree
    verified: Verified
    target_tokens: TargetTokens
    packed: mx.array
    start: float
    drafted: float
    submitted: float
    is_ahead: bool

    @property
    def is_blind(self) -> bool:
        """Whether a tree was drafted without looking at it."""
        return _is_blind(self.plan, self.tree)


class _Landing(NamedTuple):
    """What was read of a round; `read` and `end` are moments in seconds."""

    tokens: list[int]
    path: list[int]
    depth: int
    levels: list[Level]
    read: float
    end: float


def _commit(decoder: Decoder, flight: _Flight, path: list[int]) -> None:
    """Keep the accepted nodes `path` of a round, in the cache and for the choices to come."""
    decoder.cache.commit(path)
    decoder.selector.commit(flight.tree, path)


def _launch(
    decoder: Decoder, root: mx.array, plan: Plan, pending: PendingRows, *, is_ahead: bool = False
) -> _Flight:
    """Submit one round: draft below `root` [1], verify, choose; only a check is waited for."""
    target, cache, drafter, selector = decoder
    start = time.perf_counter()
    if plan.shape != PLAIN:
        pending.observe()
    tree = draft_as_planned(drafter, root, plan)
    drafted = time.perf_counter()
    is_blind = _is_blind(plan, tree)
    if is_blind:
        # The device drafts while the verification graph is being built.
        mx.async_eval(tree.tokens, tree.parents)
    verified = target.verify(tree, cache)
    target_tokens = selector(verified.logits, tree, cache.rows)
    packed = target_tokens.tokens  # plain decoding knows what it drafted: nothing
    if tree.num_draft_tokens:
        scores = tree.log_probs.astype(mx.float32).view(mx.int32)
        packed = mx.concatenate([tree.tokens, tree.parents, target_tokens.tokens, scores])
    if is_blind and mx.default_device() == mx.cpu:
        # There is no submission to a GPU to save here, and it tells drafting from verifying.
        mx.eval(tree.tokens, tree.parents)
    submitted = time.perf_counter()
    mx.async_eval(packed)
    return _Flight(plan, tree, verified, target_tokens, packed, start, drafted, submitted, is_ahead)


def _is_blind(plan: Plan, tree: DraftTree) -> bool:
    """Say whether a tree was drafted without looking at it."""
    return tree.num_draft_tokens > 0 and plan.check is None


def _land(
    decoder: Decoder, flight: _Flight, pending: PendingRows, *, is_committed: bool
) -> _Landing:
    """Read one round back and commit what it accepted."""
    packed, tree, taps = np.array(flight.packed), flight.tree, flight.verified.taps
    read = time.perf_counter()
    if not tree.num_draft_tokens:
        if not is_committed:
            _commit(decoder, flight, [0])
        pending.add(taps, flight.target_tokens.tokens)
        decoder.selector.advance(packed.tolist())
        return _Landing(packed.tolist(), [0], 0, [], read, time.perf_counter())
    tokens, parents, target_tokens, scores = packed.reshape(4, -1)
    path, token = accept(tokens.tolist(), parents.tolist(), target_tokens.tolist())
    emitted = [*tokens[path[1:]].tolist(), token]
    _commit(decoder, flight, path)
    decoder.selector.advance(emitted)
    kept = None if taps is None else taps[mx.array(path)]
    pending.add(kept, mx.array(emitted, dtype=mx.int32))
    levels = _chain_levels(tokens, scores.view(np.float32)) if tree.is_chain else []
    depth = max(check_structure(parents.tolist()))
    return _Landing(emitted, path, depth, levels, read, time.perf_counter())


def _chain_levels(tokens: np.ndarray, scores: np.ndarray) -> list[Level]:
    """Return a drafted chain as levels of one child: tokens [N], path log-probabilities [N]."""
    confidences = np.nan_to_num(np.exp(np.diff(scores)))
    return [Level([t], [c]) for t, c in zip(tokens[1:].tolist(), confidences.tolist(), strict=True)]


def _outcome(flight: _Flight, landing: _Landing, since: float, idle: float) -> Outcome:
    """Return what a planner learns of a round.

    Args:
        flight: the round as it was submitted.
        landing: the round as it was read.
        since: the moment at which the round before was read.
        idle: seconds that the caller took since then.
    """
    if flight.is_blind:
        return Outcome(landing.tokens, None, landing.read - flight.start, landing.levels)
    if flight.plan.check is not None:
        drafting, verifying = flight.drafted - flight.start, landing.read - flight.drafted
        return Outcome(landing.tokens, drafting, verifying)
    seconds = landing.read - since
    is_clean = flight.is_ahead and idle < BUSY * seconds
    return Outcome(landing.tokens, None, seconds if is_clean else None)


def _round(flight: _Flight, landing: _Landing, since: float, review: Review | None) -> Round:
    """Return what the caller sees of a round; `since`: when the round before was read."""
    host = landing.end - landing.read
    if flight.is_ahead:
        times = RoundTimes(0.0, landing.read - since, 0.0)
    elif not flight.is_blind:
        host += flight.submitted - flight.drafted
        drafting = flight.drafted - flight.start
        times = RoundTimes(drafting, landing.read - flight.submitted, host)
    else:
        host += flight.drafted - flight.start
        is_timed = mx.default_device() == mx.cpu
        drafting, verifying = flight.submitted - flight.drafted, landing.read - flight.submitted
        times = RoundTimes(drafting, verifying, host) if is_timed else RoundTimes(None, None, host)
    n_drafted = flight.tree.num_draft_tokens
    seconds = landing.end - (since if flight.is_ahead else flight.start)
    return Round(
        landing.tokens,
        n_drafted,
        landing.depth,
        times,
        flight.target_tokens,
        landing.path,
        flight.tree,
        seconds,
        review,
    )
