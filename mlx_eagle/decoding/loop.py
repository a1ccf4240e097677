"""The loop: draft, verify, accept, commit. It knows token ids only; text is `text.py`'s matter.

One round builds a single lazy graph and reads one small array back; a round whose plan looks at
confidences reads every drafted level as well. (On a CPU it waits for the draft, to tell drafting
from verifying.) While text is generated nothing else waits. What is drafted, `planner.py` says.
The algorithm is EAGLE's (arXiv 2401.15077, 2406.16858, 2503.01840); every token that comes out is
the target's own choice over its full vocabulary.
"""

import time
from collections.abc import Generator

import mlx.core as mx

from mlx_eagle.decoding.rounds import (
    Decoder,
    Round,
    _commit,
    _Flight,
    _land,
    _launch,
    _outcome,
    _round,
)
from mlx_eagle.drafters.pending import PendingRows
from mlx_eagle.planner.policy import Plan, Policy
from mlx_eagle.tree import PLAIN


def rounds(decoder: Decoder, root: int, policy: Policy) -> Generator[Round]:
    """Decode from `root`, the newest committed token, until the caller stops asking.

    The first round is plain, so that the first token comes as soon as it can.

    Args:
        decoder: target, cache, drafter and selector; everything before the root is committed.
        root: the newest committed token.
        policy: what each round drafts; with no drafter every round is plain.
    """
    pending = PendingRows(decoder.drafter)
    first = Plan(PLAIN)
    flight = _launch(decoder, mx.array([root], dtype=mx.int32), first, pending)
    read, idle = flight.start, 0.0  # when the round before was read; what the caller took since
    try:
        while True:
            ahead = None
            if _may_look_ahead(decoder, flight, policy):
                # Without a tree the next root is known to the device, so it need not wait for us.
                _commit(decoder, flight, [0])
                plan = policy.plan(decoder.cache.rows)
                ahead = _launch(decoder, flight.target_tokens.tokens, plan, pending, is_ahead=True)
            landing = _land(decoder, flight, pending, is_committed=ahead is not None)
            review = None
            if flight.plan is not first:
                review = policy.record(_outcome(flight, landing, read, idle))
            yield _round(flight, landing, read, review)
            read, idle = landing.read, time.perf_counter() - landing.end
            flight = ahead or _launch(
                decoder,
                mx.array(landing.tokens[-1:], dtype=mx.int32),
                policy.plan(decoder.cache.rows),
                pending,
            )
    finally:
        pending.observe()


def _may_look_ahead(decoder: Decoder, flight: _Flight, policy: Policy) -> bool:
    """Say whether the next round can be submitted before this one is read."""
    if decoder.selector.waits or flight.plan.shape != PLAIN:
        return False
    return decoder.drafter is None or policy.stays_plain()
