"""The stream of an answer: each round's tokens become one response per token, with statistics."""

import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlx_eagle.answers.sections import Sections, Span
from mlx_eagle.decoding.rounds import Round
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.planner.policy import HEAD
from mlx_eagle.session.detokenize import TextStream


class DraftedTree(NamedTuple):
    """What a round drafted and what of it stood; node 0 is the root.

    Attributes:
        tokens: of the nodes.
        parents: of the nodes; the root is its own.
        path: the accepted nodes, from the root.
        log_probs: of the nodes, the drafter's log-probability of the path from the root.
    """

    tokens: list[int]
    parents: list[int]
    path: list[int]
    log_probs: list[float]

    def confidences(self) -> list[float]:
        """Return the drafter's probability of every token after the tokens above it; 1 for roots.

        The shares of siblings are told apart by the paths: exp(path of the node - path of its
        parent).
        """
        pairs = zip(self.log_probs, self.parents, strict=True)
        return [
            math.exp(value - self.log_probs[parent]) if value > -math.inf else 0.0
            for value, parent in pairs
        ]


class GenerationResponse(NamedTuple):
    """One token of a stream; the fields are mlx-lm's, and the last six are not.

    `text` is what became certain with this token and may be empty. `logprobs` [V] are those that
    the token was chosen from, after processors and grammar; None unless they were asked for.
    `peak_memory` is in GB, rates are in tokens per second. `finish_reason` is "stop", "length" or
    "cancelled", with the last token, as is `stats`. `n_accepted` counts the draft tokens that the
    rounds so far have accepted. `tree` comes with the first token of a round that drafted. `spans`
    are the text cut into what is said, what is thought and calls of tools; a mark of the model that
    may go on is held back in them. `message` is the whole answer as a chat message, with the last
    token (see `AnswerFormat.message`).
    """

    text: str
    token: int
    logprobs: mx.array | None
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None
    n_accepted: int
    tree: DraftedTree | None
    stats: GenerationStats | None
    spans: tuple[Span, ...] = ()
    message: dict[str, Any] | None = None

    @property
    def logprob(self) -> float | None:
        """The log-probability of the token."""
        return None if self.logprobs is None else float(self.logprobs[self.token])

    def top_logprobs(self, n: int) -> list[tuple[int, float]]:
        """Return the n likeliest tokens with their log-probabilities, the likeliest first.

        There are fewer where fewer may follow.

        Raises:
            ValueError: if `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n}; it must be 0 or more")
        if self.logprobs is None:
            return []
        ids = mx.argpartition(-self.logprobs, n)[:n] if n < self.logprobs.size else None
        kept = mx.arange(self.logprobs.size) if ids is None else ids
        tokens: list[int] = cast(list[int], kept.tolist())
        values: list[float] = cast(list[float], self.logprobs[kept].tolist())
        pairs = [(t, p) for t, p in zip(tokens, values, strict=True) if p > -math.inf]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


Responses = Generator[GenerationResponse, None, None]


class GenerationResult(NamedTuple):
    """A whole answer; `tokens` includes the end token where one ended it.

    `text` is as the model wrote it, `message` the same as a chat message, with thoughts and calls
    of tools apart. `logprobs` are those of the tokens, where they were asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stats: GenerationStats
    logprobs: list[float] | None
    message: dict[str, Any]


def whole_answer(stream: Responses) -> GenerationResult:
    """Return all of a stream as one result."""
    text, tokens, logprobs = "", [], list[float]()
    for response in stream:
        text += response.text
        tokens.append(response.token)
        if response.logprob is not None:
            logprobs.append(response.logprob)
    reason, stats, message = response.finish_reason, response.stats, response.message
    assert reason is not None and stats is not None and message is not None, "it has an end"
    return GenerationResult(text, tokens, reason, stats, logprobs or None, message)


class Ends(NamedTuple):
    """What ends an answer: an end token, the number of tokens, or somebody who cancels it.

    `full` says why there can be no more tokens, where the limit is not the one that was asked for.
    `logprobs` is whether responses carry log-probabilities.
    """

    eos: set[int]
    max_tokens: int
    full: str
    cancelled: threading.Event
    logprobs: bool

    def reason(self, token: int, n_tokens: int, stopped: bool) -> str | None:
        """Return the finish reason after `n_tokens` tokens, the last being `token`."""
        if token in self.eos or stopped:
            return "stop"
        if n_tokens >= self.max_tokens:
            return "length"
        return "cancelled" if self.cancelled.is_set() else None

    def within(self, tokens: Sequence[int], n_tokens: int) -> bool:
        """Say whether the answer ends with one of `tokens`, which come after `n_tokens`.

        A stop string may end it all the same: that is known once the tokens have become text.
        """
        is_full = n_tokens + len(tokens) >= self.max_tokens
        return is_full or not self.eos.isdisjoint(tokens) or self.cancelled.is_set()


def responses(
    stream: Iterator[Round],
    text: TextStream,
    sections: Sections,
    stats: GenerationStats,
    ends: Ends,
    started: float,
) -> Responses:
    """Turn rounds into one response per token, but for the message that the last one carries."""
    for index, round_ in enumerate(stream):
        now = time.perf_counter()
        if index == 0:
            stats.prompt_seconds, first = now - started, now
        else:
            stats.generation_seconds = now - first
            count_round(stats, round_)
        log_probs = _rows(round_.log_probs) if ends.logprobs else None
        tree = _drafted(round_)
        for place, token in enumerate(round_.tokens):
            stats.generation_tokens += 1
            shown = "" if token in ends.eos else text.add(token)
            reason = ends.reason(token, stats.generation_tokens, text.stopped)
            if reason:
                shown += text.finish()
            spans = sections.add(shown, from_draft := place < round_.n_accepted)
            if reason:
                spans += sections.finish()
                reason = "stop" if text.stopped else reason
                stats.peak_memory_bytes = mx.get_peak_memory()
                stats.ended_by = ends.full if reason == "length" else ""
                stats.stop_string = text.stopped_by
            yield GenerationResponse(
                text=shown,
                token=token,
                logprobs=None if log_probs is None else log_probs[place],
                from_draft=from_draft,
                finish_reason=reason,
                tree=None if place else tree,
                stats=stats if reason else None,
                spans=tuple(spans),
                **_so_far(stats),
            )
            if reason:
                return


def _so_far(stats: GenerationStats) -> dict[str, Any]:
    """Return the fields of a response that count what has been generated so far."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "prompt_tps": stats.prompt_tps,
        "generation_tokens": stats.generation_tokens,
        "generation_tps": stats.generation_tps,
        "peak_memory": mx.get_peak_memory() / 1e9,
        "n_accepted": stats.accepted,
    }


def _rows(array: mx.array) -> list[mx.array]:
    """Return the rows of an array, computed: a response must not hold on to a whole round."""
    rows = [mx.contiguous(row) for row in array]
    mx.eval(rows)
    return rows


def count_round(stats: GenerationStats, round_: Round) -> None:
    """Add a round to the statistics."""
    stats.add_round(round_.depth, round_.n_drafted, round_.n_accepted)
    sources = round_.tree.sources or (HEAD,) * round_.n_drafted
    stats.add_sources(sources, round_.path)
    times = round_.times
    stats.add_times(times.draft, times.verify, times.host)
    if stats.planned is not None:
        stats.planned.add(len(round_.tokens), round_.times.total, round_.review)
    if round_.review is not None:
        stats.add_first(round_.review.source, is_right=round_.review.first_right)
    elif sources and stats.planned is None:
        judged = HEAD if HEAD in sources else sources[0]
        first = [sources[node - 1] for node in round_.path[1:2]]
        stats.add_first(judged, is_right=first == [judged])


def _drafted(round_: Round) -> DraftedTree | None:
    """Return what a round drafted, or None for a plain one; it has been read already."""
    if not round_.n_drafted:
        return None
    tree = round_.tree
    tokens = cast(list[int], tree.tokens.tolist())
    log_probs = cast(list[float], tree.log_probs.tolist())
    return DraftedTree(tokens, tree.structure(), round_.path, log_probs)
