"""The loop: draft, verify, accept, commit. Start reading here.

Each round is one target forward (`rounds.py`); which tree it drafts, a policy says (`planner/`),
and its tokens become text elsewhere (`session/`). The algorithm is EAGLE's (arXiv 2401.15077,
2406.16858, 2503.01840): every token that comes out is the target's own choice over its full
vocabulary, so the text is that of plain decoding.
"""

import time
from collections.abc import Generator

import mlx.core as mx

from mlx_eagle.decoding.rounds import (
    Decoder,
    InFlight,
    Round,
    finish,
    outcome,
    round_times,
    submit,
)
from mlx_eagle.planner.policy import Plan, Policy
from mlx_eagle.tree import PLAIN

FREED_EVERY = 256  # tokens, which is also how many rows a cache grows by


def rounds(decoder: Decoder, root: int, policy: Policy) -> Generator[Round]:
    """Decode from `root`, the newest committed token, until the caller stops asking.

    The first round is plain, so that the first token comes as soon as it can.

    Args:
        decoder: target, cache, drafter and selector; everything before the root is committed.
        root: the newest committed token.
        policy: what each round drafts; with no drafter every round is plain.
    """
    first, n_kept = Plan(PLAIN), 0
    in_flight = submit(decoder, mx.array([root], dtype=mx.int32), first)
    last_read, caller_seconds = in_flight.start, 0.0
    try:
        while True:
            following = _submit_ahead(decoder, in_flight, policy)
            done = finish(decoder, in_flight, is_committed=following is not None)
            times = round_times(in_flight, done, last_read)
            decoder.target.few_rows.watch(in_flight.tree.n_nodes, times.until_read)
            review = None
            if in_flight.plan is not first:
                review = policy.record(outcome(in_flight, done, times, caller_seconds))
            target_tokens = in_flight.target_tokens
            n_kept = _free_buffers(n_kept + len(done.tokens))
            yield Round(
                done.tokens, in_flight.tree, done.path, done.depth, target_tokens, times, review
            )
            last_read, caller_seconds = done.read, time.perf_counter() - done.end
            if following is None:
                next_root = mx.array(done.tokens[-1:], dtype=mx.int32)
                following = submit(decoder, next_root, policy.plan(decoder.cache.rows))
            in_flight = following
    finally:
        decoder.pending.observe()


def _free_buffers(n_tokens: int) -> int:
    """Give MLX's unused buffers back every so many tokens; returns the tokens since then.

    Those that a cache has outgrown are of no use to the larger ones that follow, and on a GPU they
    stay wired.
    """
    if n_tokens < FREED_EVERY:
        return n_tokens
    mx.clear_cache()
    return 0


def _submit_ahead(decoder: Decoder, in_flight: InFlight, policy: Policy) -> InFlight | None:
    """Submit the round after a plain one before that is read; None where that cannot be done.

    Without a tree the next root is known to the device, so it need not wait for the host.
    """
    if decoder.selector.waits or in_flight.plan.shape != PLAIN:
        return None
    if decoder.drafter is not None and not policy.stays_plain():
        return None
    decoder.commit(in_flight.tree, [0])
    plan = policy.plan(decoder.cache.rows)
    assert plan.shape == PLAIN or decoder.drafter is None, "only plain rounds are submitted ahead"
    return submit(decoder, in_flight.target_tokens.tokens, plan, is_overlapped=True)
