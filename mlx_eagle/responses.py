"""The stream of an answer: rounds of tokens turned into one response per token, with statistics."""

import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.generate import Round
from mlx_eagle.stats import GenerationStats
from mlx_eagle.text import TextStream


class GenerationResponse(NamedTuple):
    """One token of a stream; the fields are mlx-lm's, but for logprobs, plus the last three.

    `text` is what became certain with this token and may be empty. `peak_memory` is in GB, rates
    are in tokens per second. `n_accepted` counts the draft tokens that the rounds so far have
    accepted; `stats` comes with the last token.
    """

    text: str
    token: int
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    n_accepted: int
    finish_reason: str | None
    stats: GenerationStats | None


Responses = Generator[GenerationResponse, None, None]


class GenerationResult(NamedTuple):
    """A whole answer; `tokens` includes the end token where one ended it."""

    text: str
    tokens: list[int]
    finish_reason: str
    stats: GenerationStats


class Ends(NamedTuple):
    """What ends an answer: an end token, or the number of tokens."""

    eos: set[int]
    max_tokens: int

    def reason(self, token: int, n_tokens: int, stopped: bool) -> str | None:
        """Return the finish reason after `n_tokens` tokens, the last being `token`."""
        if token in self.eos or stopped:
            return "stop"
        return "length" if n_tokens >= self.max_tokens else None


def responses(
    stream: Iterator[Round],
    text: TextStream,
    tokens: list[int],
    stats: GenerationStats,
    ends: Ends,
    started: float,
) -> Responses:
    """Turn rounds into one response per token; `tokens` grows by what is committed."""
    for index, round_ in enumerate(stream):
        now = time.perf_counter()
        if index == 0:
            stats.prompt_seconds, first = now - started, now
        else:
            stats.generation_seconds = now - first
            stats.add_round(round_.depth, round_.n_drafted, round_.n_accepted)
            stats.add_times(round_.times)
            if stats.planned is not None:
                stats.planned.add(len(round_.tokens), round_.seconds, round_.review)
        tokens.extend(round_.tokens)
        for place, token in enumerate(round_.tokens):
            stats.generation_tokens += 1
            shown = "" if token in ends.eos else text.add(token)
            reason = ends.reason(token, stats.generation_tokens, text.stopped)
            if reason:
                shown += text.finish()
                stats.peak_memory_bytes = mx.get_peak_memory()
            from_draft = place < round_.n_accepted
            yield _response(shown, token, from_draft, stats, reason)
            if reason:
                return


def _response(
    text: str, token: int, from_draft: bool, stats: GenerationStats, reason: str | None
) -> GenerationResponse:
    """Fill in a response from the statistics so far."""
    return GenerationResponse(
        text=text,
        token=token,
        from_draft=from_draft,
        prompt_tokens=stats.prompt_tokens,
        prompt_tps=stats.prompt_tps,
        generation_tokens=stats.generation_tokens,
        generation_tps=stats.generation_tps,
        peak_memory=mx.get_peak_memory() / 1e9,
        n_accepted=stats.accepted,
        finish_reason=reason,
        stats=stats if reason else None,
    )
