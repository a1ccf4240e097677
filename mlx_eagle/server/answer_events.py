"""An answer as events, made on the engine's thread."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from mlx_eagle.answers.sections import Kind
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.engine import Engine
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.server.events import (
    Drafted,
    End,
    Event,
    Failed,
    Reading,
    Said,
    TokenLogprob,
    Usage,
)
from mlx_eagle.server.faults import LOG, failure, is_memory
from mlx_eagle.server.ids import new_id
from mlx_eagle.server.prepare import Prepared
from mlx_eagle.server.refusal import LOST, RefusalError
from mlx_eagle.server.split import Split
from mlx_eagle.session.prefix_files import PrefixFiles
from mlx_eagle.session.responses import GenerationResponse, Responses
from mlx_eagle.session.session import Session


class AnswerJob:
    """One answer.

    Args:
        engine: that makes it; its thread calls `events`, any thread the rest.
        prepared: what was asked.
        report: told of what is read of the prompt, on the engine's thread.
    """

    def __init__(self, engine: Engine, prepared: Prepared, report: Callable[[Event], None]) -> None:
        self._engine, self._prepared, self._report = engine, prepared, report
        self._session = self._new_session()
        self._split = Split(
            engine.answer_format,
            prepared.tools,
            lambda: new_id("call_"),
            takes_text=prepared.asked.api != "messages",
            loose=prepared.loose,
        )
        self._is_cancelled = self._is_out_of_time = False
        self._cached = self._n_thought = 0
        self._has_read = self._has_begun = False
        self._kind = Kind.SAID

    def cancel(self) -> None:
        """End the answer soon, even if it has not begun."""
        self._is_cancelled = True
        self._session.cancel()

    def time_out(self) -> None:
        """End the answer soon, as if it were as long as it may be."""
        self._is_out_of_time = True
        self.cancel()

    def events(self) -> Generator[Event]:
        """Yield what happens, to the end; nothing is raised."""
        try:
            yield from self._attempts()
        except GeneratorExit:
            raise
        except RefusalError as error:
            yield Failed(error.kind, str(error))
        except ClusterError as error:
            yield Failed("lost", LOST.format(self._engine.target.lost or error))
        except EagleError as error:
            yield Failed("invalid", str(error))
        except Exception as error:
            yield failure(self._prepared.asked.request_id, error)

    def _attempts(self) -> Iterator[Event]:
        """Answer; where memory is short before the first token, again without any kept rows."""
        kept = self._engine.prefix_cache
        try:
            yield from self._attempt()
            return
        except Exception as error:
            if self._has_begun or kept is None or not kept.nbytes or not is_memory(error):
                raise
        LOG.warning("%s: memory is short, kept rows are given up", self._prepared.asked.request_id)
        kept.make_room(kept.nbytes)
        self._session, self._has_read = self._new_session(), False
        yield from self._attempt()

    def _attempt(self) -> Iterator[Event]:
        """Answer, and keep the rows for later requests."""
        files = self._files
        n_damaged = files.n_damaged if files is not None else 0
        try:
            with closing(self._stream()) as stream:
                yield from self._answer(stream)
        except RefusalError:  # of what was written: its rows are sound
            self._end_attempt(n_damaged)
            raise
        self._end_attempt(n_damaged)

    def _end_attempt(self, n_damaged: int) -> None:
        """Keep the rows of an answer that is over, and say what became of files.

        Args:
            n_damaged: files that were found damaged before it.
        """
        files = self._files
        try:  # the answer has ended, and nothing may follow it
            self._keep()
        except Exception as error:
            failure(f"keeping the rows of {self._prepared.asked.request_id}", error)
        if files is not None and files.n_damaged > n_damaged:
            LOG.warning("removed damaged rows on disk: %d files", files.n_damaged - n_damaged)
        if files is not None and (note := files.take_note()):
            LOG.warning("%s", note)

    @property
    def _files(self) -> PrefixFiles | None:
        """The rows on disk, if any are kept there."""
        kept = self._engine.prefix_cache
        return None if kept is None else kept.files

    def _keep(self) -> None:
        """Keep the rows of an answer that is over, if the engine keeps any."""
        if self._engine.prefix_cache is not None:
            self._engine.prefix_cache.keep(self._session.prefix)

    def _new_session(self) -> Session:
        """Return a conversation that finds the rows of its own client."""
        session = self._engine.session()
        session.prefix.salt = self._prepared.asked.salt
        return session

    def _stream(self) -> Responses:
        prepared = self._prepared
        tools = list(prepared.tools) or None
        stream = self._session.stream_generate(
            prepared.prompt, tools=tools, progress=self._progress, **prepared.options
        )
        if self._is_cancelled:  # a session forgets what was cancelled before its stream
            self._session.cancel()
        return stream

    def _progress(self, done: int, total: int) -> None:
        """Report what is read; the first time, that is what was cached."""
        if not self._has_read:
            self._cached, self._has_read = done, True
        self._report(Reading(done, total))

    def _answer(self, stream: Responses) -> Iterator[Event]:
        stats, reason = None, "cancelled"
        for response in stream:
            self._has_begun = True
            yield from self._events_of(response)
            if response.finish_reason is not None:
                stats, reason = response.stats, response.finish_reason
        is_cut = reason != "stop" or bool(stats and stats.stop_string)
        yield from self._split.finish(is_cut=is_cut)
        yield self._end(stats, reason)

    def _events_of(self, response: GenerationResponse) -> Iterator[Event]:
        """Yield the events of one token."""
        if response.spans:
            self._kind = response.spans[-1].kind
        self._n_thought += self._kind is Kind.THOUGHT
        asked = self._prepared.asked
        if asked.shows_drafts:
            yield Drafted(response.text, response.from_draft, self._tree(response))
        logprobs: list[TokenLogprob] = []
        is_end = response.token in self._engine.tokenizer.eos_token_ids
        is_said = self._kind is Kind.SAID or asked.api == "completions"
        if asked.n_logprobs is not None and is_said and not is_end:
            logprobs = [self._logprob(response, asked.n_logprobs)]
        if asked.api == "completions":  # all of the text, as the model wrote it
            yield Said(response.text, tuple(logprobs))
        else:
            yield from self._split.add(response.spans, logprobs)

    def _logprob(self, response: GenerationResponse, n: int) -> TokenLogprob:
        value = response.logprob
        assert value is not None, "log-probabilities were asked for"
        top = response.top_logprobs(n) if n else []
        shown = tuple((self._spell(token), logprob) for token, logprob in top)
        return TokenLogprob(self._spell(response.token), value, shown)

    def _spell(self, token: int) -> bytes:
        """Return the bytes of a token."""
        try:
            return self._engine.vocabulary.spell(token)
        except EagleError:  # no grammar can be followed; then the text will do
            return str(self._engine.tokenizer.decode([token])).encode()

    def _tree(self, response: GenerationResponse) -> dict[str, Any] | None:
        tree = response.tree
        if tree is None:
            return None
        texts = [self._engine.tokenizer.decode([token]) for token in tree.tokens]
        return {"tokens": texts, "parents": tree.parents, "path": tree.path}

    def _end(self, stats: GenerationStats | None, reason: str) -> End:
        stats = stats or GenerationStats(prompt_tokens=self._prepared.n_prompt)
        usage = Usage(
            prompt=stats.prompt_tokens,
            cached=self._cached,
            completion=stats.generation_tokens,
            thought=self._n_thought,
        )
        if reason == "cancelled" and self._is_out_of_time:
            reason = "length"
        elif reason == "stop" and self._split.n_complete and not stats.stop_string:
            reason = "tool_calls"
        return End(
            reason,
            stats.stop_string,
            usage,
            figures(stats),
            bool(stats.ended_by),
            self._session.prefix.hit.tier,
            self._split.n_unread,
        )


def figures(stats: GenerationStats) -> dict[str, Any]:
    """Return what an answer cost and what drafting gave, by llama.cpp's names where it has one."""
    planned = stats.planned
    plain = planned.plain_seconds if planned is not None else 0.0
    return {
        "cache_n": stats.cached_tokens,
        "prompt_n": stats.prompt_tokens - stats.cached_tokens,
        "prompt_ms": round(stats.prompt_seconds * 1000, 1),
        "prompt_per_second": round(stats.prompt_tps, 2),
        "predicted_n": stats.generation_tokens,
        "predicted_ms": round(stats.generation_seconds * 1000, 1),
        "predicted_per_second": round(stats.generation_tps, 2),
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
        "acceptance_length": round(stats.acceptance_length, 3),
        "plain_per_second": round(1 / plain, 2) if plain else None,
        "speculation": stats.speculation,
    }
