"""The loop: draft, verify, accept, commit. It knows token ids only; text is `text.py`'s matter.

One round builds a single lazy graph and reads one small array back. (On a CPU it also waits for
the draft, to tell drafting from verifying.) While text is generated nothing else waits.
The algorithm is EAGLE's (arXiv 2401.15077, 2406.16858, 2503.01840); every token that comes out is
the target's own choice over its full vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.accept import accept
from mlx_eagle.cache import AnyCache
from mlx_eagle.drafters import Drafter
from mlx_eagle.sampling import Sampler
from mlx_eagle.target import Target, Verified
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape, check_structure

PREFILL_STEP = 2048  # tokens per prefill chunk, as in mlx-lm


class Decoder(NamedTuple):
    """The parties to a round: who proposes, who decides, and what the target remembers."""

    target: Target
    cache: AnyCache
    drafter: Drafter | None
    sampler: Sampler


class RoundTimes(NamedTuple):
    """Seconds of one round; draft and verify are None where they were not told apart."""

    draft: float | None
    verify: float | None
    host: float


class Round(NamedTuple):
    """What one target forward gave: the accepted tokens, then the target's own next token."""

    tokens: list[int]
    n_drafted: int
    depth: int
    times: RoundTimes

    @property
    def n_accepted(self) -> int:
        """Accepted draft tokens."""
        return len(self.tokens) - 1


class _Flight(NamedTuple):
    """A round that has been submitted and not yet read; `clock` marks its stages in seconds."""

    tree: DraftTree
    verified: Verified
    choices: mx.array
    packed: mx.array
    clock: list[float]


def prefill(
    decoder: Decoder, prompt: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> None:
    """Run all tokens of `prompt` but the last through target and head; the last is the first root.

    Args:
        decoder: its cache and drafter may already hold the first rows of the prompt.
        prompt: token ids.
        progress: called with (tokens done, tokens in all) after every chunk.
    """
    target, cache, drafter, _ = decoder
    ids = mx.array(list(prompt), dtype=mx.int32)
    last = len(prompt) - 1
    if progress is not None:
        progress(cache.rows, len(prompt))
    while cache.rows < last:
        start, end = cache.rows, min(cache.rows + PREFILL_STEP, last)
        taps = target.extend(ids[start:end], cache)
        if drafter is not None:
            drafter.observe(taps, ids[start + 1 : end + 1])
        # A chunk at a time, or the graph of the whole prompt would be held in memory.
        mx.eval(cache.buffers, drafter.buffers if drafter is not None else [])
        mx.clear_cache()
        if progress is not None:
            progress(end, len(prompt))


def rounds(decoder: Decoder, root: int, shapes: Iterator[TreeShape]) -> Iterator[Round]:
    """Decode from `root`, the newest committed token, until the caller stops asking.

    Args:
        decoder: target, cache, drafter and sampler; everything before the root is committed.
        root: the newest committed token.
        shapes: the shape of each round's tree; with no drafter every round is plain.
    """
    flight = _launch(decoder, mx.array([root], dtype=mx.int32), next(shapes))
    read = flight.clock[0]
    while True:
        ahead = None
        if decoder.drafter is None:
            # Without a tree the next root is known to the device, so it need not wait for us.
            decoder.cache.commit([0])
            ahead = _launch(decoder, flight.choices, PLAIN)
        result, read = _land(decoder, flight, read)
        yield result
        flight = ahead or _launch(
            decoder, mx.array(result.tokens[-1:], dtype=mx.int32), next(shapes)
        )


def _launch(decoder: Decoder, root: mx.array, shape: TreeShape) -> _Flight:
    """Submit one round: draft below `root` [1], verify, choose; nothing is waited for."""
    target, cache, drafter, sampler = decoder
    clock = [time.perf_counter()]
    tree = DraftTree.chain(root) if drafter is None else drafter.draft(root, shape)
    clock.append(time.perf_counter())
    if tree.num_draft_tokens:
        # The device drafts while the verification graph is being built.
        mx.async_eval(tree.tokens, tree.parents)
    verified = target.verify(tree, cache)
    choices = sampler(verified.logits, tree, cache.rows)
    # Plain decoding knows what it drafted: nothing.
    packed = choices if drafter is None else mx.concatenate([tree.tokens, tree.parents, choices])
    if tree.num_draft_tokens and mx.default_device() == mx.cpu:
        # There is no submission to a GPU to save here, and it tells drafting from verifying.
        mx.eval(tree.tokens, tree.parents)
    clock.append(time.perf_counter())
    mx.async_eval(packed)
    return _Flight(tree, verified, choices, packed, clock)


def _land(decoder: Decoder, flight: _Flight, since: float) -> tuple[Round, float]:
    """Read one round back and commit what it accepted.

    Returns:
        The round, and the moment it was read; `since` is that moment of the round before.
    """
    packed = np.array(flight.packed)
    read = time.perf_counter()
    if decoder.drafter is None:
        return Round(packed.tolist(), 0, 0, RoundTimes(0.0, read - since, 0.0)), read
    tokens, parents, choices = packed.reshape(3, -1).tolist()
    path, token = accept(tokens, parents, choices)
    accepted = [tokens[node] for node in path[1:]] + [token]
    decoder.cache.commit(path)
    taps = flight.verified.taps
    kept = None if taps is None else taps[mx.array(path)]
    decoder.drafter.observe(kept, mx.array(accepted, dtype=mx.int32))
    depth = max(check_structure(parents))
    times = _times(flight.clock, read, time.perf_counter())
    return Round(accepted, flight.tree.num_draft_tokens, depth, times), read


def _times(clock: Sequence[float], read: float, end: float) -> RoundTimes:
    """Split a round's seconds from the moments at which its stages ended."""
    start, built, drafted = clock
    host = (built - start) + (end - read)
    if mx.default_device() == mx.cpu:
        return RoundTimes(drafted - built, read - drafted, host)
    return RoundTimes(None, None, host)
