"""The teacher-forced draft score of a head: how it drafts a text that its target wrote.

The head drafts at every token of the text, all positions in one pass per step, as in training-time
test (EAGLE-3, arXiv 2503.01840, section 3.2). True tokens stand in for drafted ones, which is exact
as far as a draft is accepted. One text so gives a score at hundreds of positions, where decoding
would give one per round.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.block import BlockDrafter
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.eagle import EagleHead, HeadCache
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.mtp import MtpHead
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.heads.unroll_rows import UnrolledRows
from mlx_eagle.planner.policy import FixedShape
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN

STEPS = 3  # drafted tokens that are followed at every position

CLEARLY = 3.0  # standard errors by which one reading must beat another

Progress = Callable[[str, int, int], None]


class Evidence(NamedTuple):
    """A text that the target wrote, and what could be tapped while it did.

    Attributes:
        tokens: the prompt, then the target's own greedy continuation.
        n_prompt: tokens of the prompt.
        taps: by boundary, [L, D] for the first L = len(tokens) - 1 tokens.
    """

    tokens: list[int]
    n_prompt: int
    taps: dict[int, mx.array]


class Score(NamedTuple):
    """The teacher-forced draft score of a head on some texts.

    Attributes:
        agreement: share of positions whose first drafted token is the target's.
        acceptance_length: tokens per round of a chain of STEPS on these texts.
        dense_acceptance_length: the same if a round began at every position: steadier, so it is
            what comparisons use.
        likelihoods: [P] log-probability of the target's next STEPS tokens at each position; it
            tells two readings apart on half the text that counting accepted tokens needs.
    """

    agreement: float
    acceptance_length: float
    dense_acceptance_length: float
    likelihoods: np.ndarray


class _DraftScores(NamedTuple):
    """At P positions of one text: were the next STEPS tokens drafted, and how likely were they."""

    hits: np.ndarray  # [STEPS, P] bool
    log_probs: np.ndarray  # [STEPS, P]


def record_evidence(
    target: Target, prompts: Sequence[Sequence[int]], n_tokens: int, progress: Progress
) -> list[Evidence]:
    """Let the target continue each prompt by `n_tokens` and record its taps along the way."""
    found = []
    for done, prompt in enumerate(prompts):
        progress("write", done, len(prompts))
        decoder = Decoder(target, target.make_cache(), None, TokenSelector(SeededSampler()))
        prefill(decoder, prompt)
        stream = rounds(decoder, prompt[-1], FixedShape(PLAIN))
        written = [next(stream).tokens[0] for _ in range(n_tokens)]
        tokens = [*prompt, *written]
        cache = target.make_cache()
        taps = target.extend(mx.array(tokens[:-1], dtype=mx.int32), cache)
        assert taps is not None, "the target that the doctor measures is tapped"
        by_boundary = dict(zip(target.taps, mx.split(taps, len(target.taps), axis=-1), strict=True))
        mx.eval(by_boundary)
        found.append(Evidence(tokens, len(prompt), by_boundary))
    progress("write", len(prompts), len(prompts))
    return found


def score_head(
    target: Target, evidence: Sequence[Evidence], head: Head, rival: Score | None = None
) -> Score:
    """Score a head; where it has no embedding or output layer it borrows the target's.

    Args:
        target: the target that wrote the texts.
        evidence: the texts.
        head: the head to measure.
        rival: the score to beat: once the head is clearly worse, the other texts are left out.
    """
    head.set_dtype(target.embedding(mx.array([0])).dtype)
    found: list[_DraftScores] = []
    for text in evidence:
        found.append(_draft_scores(head, target, text))
        likelihoods = np.concatenate([part.log_probs.sum(axis=0) for part in found])
        if rival is not None and z_score(likelihoods, rival.likelihoods) < -CLEARLY:
            break
    hits = np.concatenate([part.hits for part in found], axis=1)
    dense_acceptance_length = 1 + float(np.cumprod(hits, axis=0).sum(axis=0).mean())
    emitted = [n for part in found for n in _rounds(part.hits)]
    return Score(
        float(hits[0].mean()), float(np.mean(emitted)), dense_acceptance_length, likelihoods
    )


def _rounds(hits: np.ndarray) -> list[int]:
    """Return the tokens of every round that a chain would make of one text: hits [STEPS, P]."""
    accepted = np.cumprod(hits, axis=0).sum(axis=0)
    emitted, start = [], 0
    while start < len(accepted):
        emitted.append(int(accepted[start]) + 1)
        start += emitted[-1]
    return emitted


def z_score(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return by how many standard errors `ours` [P] beats `theirs`, position by position.

    Neighbouring positions share tokens, so an error is somewhat larger than it is taken for.
    """
    n = min(len(ours), len(theirs))
    gain = ours[:n] - theirs[:n]
    error = float(gain.std()) / math.sqrt(n)
    return float(gain.mean()) / error if error else 0.0


def draft_hits(head: Head, target: Target, text: Evidence, steps: int) -> list[np.ndarray]:
    """Return where the likeliest token of each drafting step is the one that the target wrote.

    Args:
        head: it is not changed.
        target: the target that wrote the text.
        text: prompt and answer; only tokens of the answer are looked at.
        steps: drafted tokens that are followed at every position.

    Returns:
        For step n, of the tokens after which n + 1 more were written, [P - n] bool: is token
        n + 1 drafted, given the true ones before it? The share is n-alpha, teacher-forced.
    """
    tokens, n_last = np.array(text.tokens), len(text.tokens) - 2
    starts = np.arange(max(text.n_prompt - 2, 0), n_last)
    hits = []
    for step, logits in enumerate(_levels(head, target, text, starts, steps)):
        known = starts[starts < n_last - step]
        truth = _draft_ids(head)[tokens[known + 2 + step]]
        hits.append(np.array(logits.argmax(-1))[: len(known)] == truth)
    return hits


def _draft_scores(head: Head, target: Target, text: Evidence) -> _DraftScores:
    """Compare what the head drafts at every position with what the target wrote there."""
    tokens, n_rows = np.array(text.tokens), len(text.tokens) - 1
    # Row t drafts the tokens t + 2, t + 3, ...: only those that the target itself has written.
    starts = np.arange(max(text.n_prompt - 2, 0), n_rows - STEPS)
    draft_id = _draft_ids(head)
    hits, log_probs = [], []
    for step, logits in enumerate(_levels(head, target, text, starts, STEPS)):
        truth = draft_id[tokens[starts + 2 + step]]
        hits.append(np.array(logits.argmax(-1)) == truth)
        log_probs.append(_log_probs(logits, truth, len(draft_id)))
    return _DraftScores(np.stack(hits), np.stack(log_probs))


def _draft_ids(head: Head) -> np.ndarray:
    """Return the draft id of every target id, [V]; -1 for tokens that cannot be drafted."""
    draft_id = np.full(head.config.target_vocab_size, -1)
    draft_id[np.array(head.draft_to_target)] = np.arange(head.draft_to_target.size)
    return draft_id


def _levels(
    head: Head, target: Target, text: Evidence, starts: np.ndarray, steps: int
) -> Iterator[mx.array]:
    """Yield the logits [P, W] of each drafting step that begins after the rows `starts` [P]."""
    taps = mx.concatenate([text.taps[b] for b in head.config.taps], axis=-1)[None]
    rows = mx.array(starts)
    if isinstance(head, EagleHead):
        next_tokens = mx.array(text.tokens[1:], dtype=mx.int32)
        drafter = EagleDrafter(head, target)  # it knows what the head borrows
        for states in _step_everywhere(drafter, head, taps, next_tokens, steps):
            yield drafter.unembed(states[rows])
    elif isinstance(head, BlockHead):
        yield from _block_levels(head, target, taps[0], text.tokens, starts, steps)
    else:
        drafts = [head(taps[:, i : i + 1], target.unembed, steps) for i in starts.tolist()]
        yield from mx.stack(drafts, axis=1)


def _block_levels(
    head: BlockHead,
    target: Target,
    taps: mx.array,
    tokens: list[int],
    starts: np.ndarray,
    steps: int,
) -> mx.array:
    """Return the logits [steps, P, W] of blocks after the rows `starts` [P] of taps [L, A * D].

    A block's rows attend to each other, so each start has a block of its own.
    """
    drafter, found = make_drafter(head, target), []
    assert isinstance(drafter, BlockDrafter), "block heads have a drafter of their own"
    depth = min(steps, head.max_depth)
    padded = mx.array([*tokens, *[tokens[-1]] * depth], dtype=mx.int32)
    for start in starts.tolist():
        drafter.observe(taps[drafter.rows : start + 1], padded[drafter.rows + 1 : start + 2])
        path = padded[start + 2 : start + 1 + depth]
        found.append(drafter.logits_along(padded[start + 1 : start + 2], path))
    return mx.stack(found, axis=1)


def _log_probs(logits: mx.array, truth: np.ndarray, n_tokens: int) -> np.ndarray:
    """Return the log-probabilities [P] of draft ids `truth` [P] under logits [P, W].

    A token that cannot be drafted (-1) counts as one that is no likelier than any of `n_tokens`.
    """
    logits = logits.astype(mx.float32)
    ids = mx.array(np.maximum(truth, 0))[:, None]
    found = mx.take_along_axis(logits, ids, axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
    return np.where(truth < 0, -math.log(n_tokens), np.array(found))


def _cache_of_all(head: EagleHead, length: int) -> HeadCache:
    """Return an empty cache for all starts of a text of L tokens."""
    if isinstance(head, MtpHead) and head.config.block_config is not None:
        return TreeCache([UnrolledRows(length)])
    return UnrolledCache.of(head)


def _step_everywhere(
    drafter: EagleDrafter, head: EagleHead, taps: mx.array, next_tokens: mx.array, steps: int
) -> Iterator[mx.array]:
    """Yield, for each drafting step, the states [L, h] from which logits after L tokens are made.

    Step j of start t sees the true rows up to t, and its own rows of the steps before.
    """
    n, cache = next_tokens.shape[0], _cache_of_all(head, next_tokens.shape[0])
    hidden, tokens = head.fuse(taps), next_tokens[None]
    for _ in range(steps):
        out = head(hidden, drafter.embed(tokens), cache)
        yield out.normed[0]
        if head.config.algorithm == "p-eagle":
            hidden, tokens = head.masked(n)
        else:
            hidden = out.feedback
            # The last start has no next token; its logits are not scored.
            tokens = mx.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)
