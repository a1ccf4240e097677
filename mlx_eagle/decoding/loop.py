"""The loop: draft, verify, accept, commit. Start reading here.

Each round is one target forward (`rounds.py`); which tree it drafts, a policy says (`planner/`),
and its tokens become text elsewhere (`session/`). The algorithm is EAGLE's (arXiv 2401.15077,
2406.16858, 2503.01840): every token that comes out is the target's own choice over its full
vocabulary, so the text is that of plain decoding.
"""

import time
from collections.abc import Callable, Generator, Sequence

import mlx.core as mx

from mlx_eagle.decoding.rounds import (
    Decoder,
    Finished,
    InFlight,
    Round,
    RoundTimes,
    finish,
    outcome,
    round_times,
    submit,
)
from mlx_eagle.planner.policy import Plan, Policy, Review
from mlx_eagle.tree import PLAIN

FREED_EVERY = 256  # tokens, which is also how many rows a cache grows by
INDEX_BYTES = 1 << 15  # by which caches grow unnoticed: the index of lookup, a few bytes a token
UNREAD = -1  # stands for a token that is computed and not read yet

IsEnd = Callable[[Sequence[int]], bool]


def never(tokens: Sequence[int]) -> bool:
    """Say that no token is the last one: the caller stops asking instead."""
    return False


def rounds(decoder: Decoder, root: int, policy: Policy, is_end: IsEnd = never) -> Generator[Round]:
    """Decode from `root`, the newest committed token, until the caller stops asking.

    The first round is plain, and its token is handed out at once. From then on the next round is
    submitted before the tokens of the last one are handed out: the device works while the caller
    does. A round that nobody asks for leaves nothing behind.

    Args:
        decoder: target, cache, drafter and selector; everything before the root is committed.
        root: the newest committed token.
        policy: what each round drafts; with no drafter every round is plain.
        is_end: called with the tokens that come next, `UNREAD` for one that is not known yet; says
            whether the caller will ask for none after them, so that none are computed in vain.
    """
    first, garbage = Plan(PLAIN), Garbage(decoder)
    in_flight = submit(decoder, mx.array([root], dtype=mx.int32), first)
    last_read, caller_seconds = in_flight.start, 0.0
    try:
        while True:
            following = _submit_ahead(decoder, in_flight, policy, is_end)
            done = finish(decoder, in_flight, is_committed=following is not None)
            garbage.collect(len(done.tokens), in_flight.cache_bytes)
            times = round_times(in_flight, done, last_read)
            review = None
            if in_flight.plan is not first:
                learnt = outcome(in_flight, done, times, caller_seconds)
                decoder.target.few_rows.watch(in_flight.tree.n_nodes, learnt.verify_seconds)
                review = policy.record(learnt)
            round_ = _round(in_flight, done, times, review)
            try:
                if following is None and in_flight.plan is not first and not is_end(done.tokens):
                    following = _submit_next(decoder, done, policy)
            except Exception:
                yield round_  # what was decoded comes before the error
                raise
            handed_out = time.perf_counter()
            yield round_
            last_read, caller_seconds = done.read, time.perf_counter() - handed_out
            in_flight = following or _submit_next(decoder, done, policy)
    finally:
        decoder.cache.commit([])  # forget the rows of a round that is not read any more
        decoder.pending.observe()


class Garbage:
    """MLX's unused buffers: those that a cache has outgrown, and what has piled up besides.

    Nothing that follows fits into them, and on a GPU they stay wired. A cache grows when a round is
    submitted; its old buffers are free once that round has been read.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._cache_bytes, self._n_tokens = decoder.cache_bytes, 0

    def collect(self, n_tokens: int, cache_bytes: int) -> None:
        """Give them back after a round that gave `n_tokens`, if it is time to."""
        self._n_tokens += n_tokens
        has_grown = cache_bytes > self._cache_bytes + INDEX_BYTES
        if has_grown or self._n_tokens >= FREED_EVERY:
            mx.clear_cache()
            self._n_tokens = 0
        if has_grown:
            self._cache_bytes = cache_bytes


def _submit_ahead(
    decoder: Decoder, in_flight: InFlight, policy: Policy, is_end: IsEnd
) -> InFlight | None:
    """Submit the round after a plain one before that is read; None where that cannot be done.

    Without a tree the next root is known to the device, so it need not wait for the host.
    """
    if decoder.selector.waits or in_flight.plan.shape != PLAIN or is_end([UNREAD]):
        return None
    if decoder.drafter is not None and not policy.stays_plain():
        return None
    decoder.commit(in_flight.tree, [0])
    plan = policy.plan(decoder.cache.rows)
    assert plan.shape == PLAIN or decoder.drafter is None, "only plain rounds are submitted ahead"
    return submit(decoder, in_flight.target_tokens.tokens, plan, is_overlapped=True)


def _submit_next(decoder: Decoder, done: Finished, policy: Policy) -> InFlight:
    """Submit the round after one that was read, as the policy plans it."""
    root = mx.array(done.tokens[-1:], dtype=mx.int32)
    return submit(decoder, root, policy.plan(decoder.cache.rows))


def _round(in_flight: InFlight, done: Finished, times: RoundTimes, review: Review | None) -> Round:
    """Return what is handed out of a round."""
    tree, target_tokens = in_flight.tree, in_flight.target_tokens
    return Round(done.tokens, tree, done.path, done.depth, target_tokens, times, review)
