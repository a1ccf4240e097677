"""One round: submitted, finished, timed.

There are three kinds. A *plain* round drafts nothing. An *unchecked* one drafts a tree of a fixed
shape, so drafting and verification form one lazy graph and one small array comes back. A *checked*
one copies each drafted level to the host before the next is drafted, because its plan stops
drafting by confidence. On a CPU an unchecked round waits for the draft as well: no submission to a
device is lost there, and it tells drafting from verifying.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.cache.model_cache import AnyCache, TreeCache
from mlx_eagle.decoding.accept import accept
from mlx_eagle.drafters.base import Drafter, ReadsText
from mlx_eagle.drafters.early_stop import draft_as_planned
from mlx_eagle.drafters.pending import PendingRows
from mlx_eagle.planner.policy import Level, Outcome, Plan, Review
from mlx_eagle.sampling.token_selector import TargetTokens, TokenSelector
from mlx_eagle.target.target import Target, Verified
from mlx_eagle.tree import PLAIN, DraftTree, check_structure

# Shares of a round: what the caller may take before the round's time tells nothing, unless the
# device was still at work then, so that the host had to wait at least so much for it.
MOST_CALLER_SHARE, LEAST_WAIT_SHARE = 0.2, 0.05


@dataclass
class Decoder:
    """The parties to a round: who verifies, remembers, proposes and decides.

    Attributes:
        target: the target.
        cache: the target's, with the rows of everything before the root.
        drafter: None for plain decoding.
        selector: the target's choice after every node.
        pending: committed tokens that the drafter has not observed yet.
    """

    target: Target
    cache: AnyCache
    drafter: Drafter | None
    selector: TokenSelector

    def __post_init__(self) -> None:
        self.pending = PendingRows(self.drafter)

    @property
    def cache_bytes(self) -> int:
        """Bytes of our caches, target's and head's; mlx-lm's own do not all know theirs."""
        own = self.cache.nbytes if isinstance(self.cache, TreeCache) else 0
        return own + (self.drafter.nbytes if self.drafter is not None else 0)

    def commit(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Keep the accepted nodes `path` of a tree, in the cache and for the next choices."""
        self.cache.commit(path)
        self.selector.commit(tree, path)

    def checkpoint(self) -> None:
        """Remember the end of a prompt as a place to go back to, where that takes remembering."""
        self.cache.checkpoint()
        if isinstance(self.drafter, ReadsText):
            self.drafter.checkpoint()


class RoundKind(Enum):
    """Whether a round drafts, and whether it looks at what it drafts."""

    PLAIN = "plain"
    UNCHECKED = "unchecked"
    CHECKED = "checked"


class RoundTimes(NamedTuple):
    """Seconds of one round.

    Attributes:
        draft: drafting; None where the device did not tell it from verification.
        verify: verification, likewise.
        host: in which the device had nothing to do.
        until_read: from the start until the target's tokens were on the host; of a round that was
            submitted before the last one was read, from the moment of that reading. A caller that
            takes longer than the device delays the reading, and so counts in it.
        total: until the round was committed as well.
    """

    draft: float | None
    verify: float | None
    host: float
    until_read: float
    total: float


class Round(NamedTuple):
    """What one target forward gave: the accepted tokens, then the target's own next token.

    Attributes:
        tokens: what is emitted.
        tree: what was drafted, the root included.
        path: the accepted nodes of it, the root first.
        depth: drafted levels that were verified.
        target_tokens: what the target puts after every node.
        times: seconds.
        review: what a planner expected of the round, if it drafted.
    """

    tokens: list[int]
    tree: DraftTree
    path: list[int]
    depth: int
    target_tokens: TargetTokens
    times: RoundTimes
    review: Review | None = None

    @property
    def n_drafted(self) -> int:
        """Drafted tokens that were verified."""
        return self.tree.num_draft_tokens

    @property
    def n_accepted(self) -> int:
        """Accepted draft tokens."""
        return len(self.tokens) - 1

    @property
    def log_probs(self) -> mx.array:
        """Log-probabilities [len(tokens), V] from which each token was chosen; still lazy."""
        return self.target_tokens.log_probs(self.path)


class InFlight(NamedTuple):
    """A round that has been submitted and not read yet.

    Attributes:
        plan: what it was to draft.
        tree: what it drafts; lazy in an unchecked round.
        verified: what the target says about the tree.
        target_tokens: what follows from that.
        packed: all that is read back, in one array.
        is_overlapped: submitted before the last round was read.
        cache_bytes: of the caches, as large as they have become for it.
        start, drafted, submitted: moments in seconds; an unchecked draft is complete, if that is
            known at all, only when the round was submitted.
    """

    plan: Plan
    tree: DraftTree
    verified: Verified
    target_tokens: TargetTokens
    packed: mx.array
    is_overlapped: bool
    cache_bytes: int
    start: float
    drafted: float
    submitted: float

    @property
    def kind(self) -> RoundKind:
        """Whether it drafts, and looks at what it drafts."""
        return _kind(self.plan, self.tree)


class Finished(NamedTuple):
    """A round that was read and committed; `levels` is an unchecked chain, level by level.

    `asked` is the moment in seconds at which the host began to wait for it.
    """

    tokens: list[int]
    path: list[int]
    depth: int
    levels: list[Level]
    asked: float
    read: float
    end: float


def submit(
    decoder: Decoder, root: mx.array, plan: Plan, *, is_overlapped: bool = False
) -> InFlight:
    """Submit one round: draft below `root` [1], verify, choose; only checks are waited for."""
    start = time.perf_counter()
    if plan.shape != PLAIN:
        decoder.pending.observe()
    tree = draft_as_planned(decoder.drafter, root, plan)
    drafted = time.perf_counter()
    is_unchecked = _kind(plan, tree) is RoundKind.UNCHECKED
    if is_unchecked:
        # The device drafts while the verification graph is being built.
        mx.async_eval(tree.tokens, tree.parents)
    verified = decoder.target.verify(tree, decoder.cache)
    target_tokens = decoder.selector(verified.logits, tree, decoder.cache.rows)
    packed = _pack(tree, target_tokens)
    if is_unchecked and _tells_drafting():
        mx.eval(tree.tokens, tree.parents)
    submitted = time.perf_counter()
    mx.async_eval(packed)
    facts = (is_overlapped, decoder.cache_bytes, start, drafted, submitted)
    return InFlight(plan, tree, verified, target_tokens, packed, *facts)


def finish(decoder: Decoder, in_flight: InFlight, *, is_committed: bool = False) -> Finished:
    """Read one round back and commit what the target accepts of it.

    Args:
        decoder: as it submitted the round.
        in_flight: the round.
        is_committed: whether a round without drafts was committed before it was read.
    """
    tree, taps = in_flight.tree, in_flight.verified.taps
    asked = time.perf_counter()
    packed = np.array(in_flight.packed)
    read = time.perf_counter()
    if not tree.num_draft_tokens:
        if not is_committed:
            decoder.commit(tree, [0])
        decoder.pending.add(taps, in_flight.target_tokens.tokens)
        decoder.selector.advance(packed.tolist())
        return Finished(packed.tolist(), [0], 0, [], asked, read, time.perf_counter())
    tokens, parents, target_tokens, scores = packed.reshape(4, -1)
    path, token = accept(tokens.tolist(), parents.tolist(), target_tokens.tolist())
    emitted = [*tokens[path[1:]].tolist(), token]
    decoder.commit(tree, path)
    decoder.selector.advance(emitted)
    kept = None if taps is None else taps[mx.array(path)]
    decoder.pending.add(kept, mx.array(emitted, dtype=mx.int32))
    is_chain = in_flight.kind is RoundKind.UNCHECKED and tree.is_chain
    levels = _chain_levels(tokens, scores.view(np.float32)) if is_chain else []
    depth = max(check_structure(parents.tolist()))
    return Finished(emitted, path, depth, levels, asked, read, time.perf_counter())


def round_times(in_flight: InFlight, finished: Finished, last_read: float) -> RoundTimes:
    """Turn clock readings into the seconds that users see and planners learn from.

    Args:
        in_flight: the round as it was submitted.
        finished: the round as it was read.
        last_read: the moment at which the round before was read.
    """
    start, drafted, submitted = in_flight.start, in_flight.drafted, in_flight.submitted
    began = last_read if in_flight.is_overlapped else start
    until_read, total = finished.read - began, finished.end - began
    if in_flight.is_overlapped:
        return RoundTimes(0.0, until_read, 0.0, until_read, total)
    drafting, building = drafted - start, submitted - drafted
    if in_flight.kind is RoundKind.UNCHECKED:
        # Building the draft's graph comes first; the device drafts while the other one is built.
        drafting, building = building, drafting
    host = building + finished.end - finished.read
    if in_flight.kind is RoundKind.UNCHECKED and not _tells_drafting():
        return RoundTimes(None, None, host, until_read, total)
    return RoundTimes(drafting, finished.read - submitted, host, until_read, total)


def outcome(
    in_flight: InFlight, finished: Finished, times: RoundTimes, caller_seconds: float
) -> Outcome:
    """Return what a planner learns of a round.

    Only a checked round tells the planner what drafting took apart from the rest. A plain round
    tells something only where it was submitted ahead, and every round only where its time is the
    device's: the caller took little of it, or the device still worked when the caller was done.

    Args:
        in_flight: the round as it was submitted.
        finished: the round as it was read.
        times: what `round_times` makes of them.
        caller_seconds: what the caller took since the round before.
    """
    tokens, planned, total = finished.tokens, in_flight.plan.planned, times.until_read
    waited = finished.read - finished.asked
    is_clean = caller_seconds < MOST_CALLER_SHARE * total or waited > LEAST_WAIT_SHARE * total
    if in_flight.kind is RoundKind.CHECKED:
        assert times.draft is not None, "a checked draft was waited for"
        verifying = total - times.draft if is_clean else None
        return Outcome(tokens, times.draft, verifying, planned=planned)
    if in_flight.kind is RoundKind.PLAIN:
        is_clean = is_clean and in_flight.is_overlapped
    return Outcome(tokens, None, total if is_clean else None, finished.levels, planned)


def _kind(plan: Plan, tree: DraftTree) -> RoundKind:
    """Return the kind of a round with this plan that drafts this tree."""
    if plan.check is not None and plan.check.is_checked:
        return RoundKind.CHECKED
    return RoundKind.UNCHECKED if tree.num_draft_tokens else RoundKind.PLAIN


def _tells_drafting() -> bool:
    """Say whether unchecked drafts are waited for, so that they can be timed apart."""
    return mx.default_device() == mx.cpu


def _pack(tree: DraftTree, target_tokens: TargetTokens) -> mx.array:
    """Return what is read back, int32: [1] of a plain round, else [4 * N].

    That is tokens, parents, the target's tokens, and the bits of the path log-probabilities. A
    plain round has drafted nothing, so the target's token is all there is to read.
    """
    if not tree.num_draft_tokens:
        return target_tokens.tokens
    scores = tree.log_probs.astype(mx.float32).view(mx.int32)
    return mx.concatenate([tree.tokens, tree.parents, target_tokens.tokens, scores])


def _chain_levels(tokens: np.ndarray, scores: np.ndarray) -> list[Level]:
    """Return a drafted chain as levels of one child: tokens [N], path log-probabilities [N]."""
    confidences = np.nan_to_num(np.exp(np.diff(scores)))
    return [Level([t], [c]) for t, c in zip(tokens[1:].tolist(), confidences.tolist(), strict=True)]
