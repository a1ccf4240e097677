"""One answer: the prompt is read, rounds run, and their tokens are streamed as responses.

However an answer ends, the cached prefix then holds the prompt and the tokens that the caller was
given, and nothing else.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import mlx.core as mx

from mlx_eagle.decoding.loop import rounds
from mlx_eagle.decoding.prefill import prefill_steps
from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.decoding.stats import GenerationStats, Planned
from mlx_eagle.drafters.drawn import DrawnDrafts
from mlx_eagle.planner.planner import Planner
from mlx_eagle.planner.policy import FixedShape, Policy
from mlx_eagle.sampling.options import LOSSY
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.session.detokenize import TextStream
from mlx_eagle.session.prefix import CachedPrefix
from mlx_eagle.session.prompt import Message
from mlx_eagle.session.request import Request
from mlx_eagle.session.responses import Ends, Responses, responses
from mlx_eagle.session.wired import wired
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.static_tree import Shape
from mlx_eagle.tree import PLAIN

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine

AHEAD = 512  # rows for which an answer makes room at a time
LEFT = 256  # rows of them, at which it makes more: a round's tree and the growth of a cache fit


class Answering:
    """The answering of one request.

    Args:
        engine: which answers.
        prefix: of the conversation; changed.
        request: what `check_request` returned for them.
        cancelled: ends it after its round once it is set.
    """

    def __init__(
        self, engine: "Engine", prefix: CachedPrefix, request: Request, cancelled: threading.Event
    ) -> None:
        self._engine, self._prefix = engine, prefix
        self._planners = engine.planners  # also where the engine is calibrated meanwhile
        self._request, self._cancelled = request, cancelled
        status = engine.info.status
        self._stats = GenerationStats(prompt_tokens=len(request.ids), status=status)
        self._stats.dropped_messages, self._stats.seed = request.n_dropped, request.seed
        self._stats.acceptance_rule = request.options.rule
        self._text = ""  # of the answer, as far as it was given
        self._n_reserved = 0  # tokens for whose rows room was made

    def message(self) -> Message:
        """Return the answer so far as a chat message."""
        request, salt = self._request, str(len(self._request.ids))
        form, tools = self._engine.answer_format, request.options.tools
        return form.message(self._text, request.begun, tools, salt)

    def stream(self) -> Responses:
        """Read the prompt, then turn rounds into responses until something ends the answer."""
        with self._engine.turn.taken():  # refused here, there is nothing to end and to wait for
            prefix, before = self._prefix, list(self._prefix.tokens)
        n_given = 0
        try:
            with closing(self._steps()) as steps:
                for response in steps:
                    n_given += 1
                    yield response
        except GeneratorExit:
            raise
        except BaseException:
            # Caches may be half-written: their tokens are read again when they are needed.
            held = [*prefix.tokens] if n_given else before
            prefix.reset()
            prefix.tokens = held
            raise
        finally:
            with self._engine.turn.awaited():
                prefix.trim_to_tokens()
            self._request.selector.end(n_given)

    def _steps(self) -> Responses:
        """Pass on responses; the engine is taken while one is made, and free in between."""
        stream = self._stream()
        with wired(), self._closing(stream):
            while True:
                with self._engine.turn.taken():
                    response = next(stream, None)
                if response is None:
                    return
                yield response

    @contextmanager
    def _closing(self, stream: Responses) -> Iterator[None]:
        """Close a stream before the prefix is trimmed: the head's rows must be complete then."""
        try:
            yield
        finally:
            with self._engine.turn.awaited():
                stream.close()

    def read(self) -> bool:
        """Read the prompt; returns False if that was cancelled, and then keeps what was read."""
        with self._engine.turn.taken(), wired():
            try:
                return self._read(self._decoder(speculate=True))
            except BaseException:
                self._prefix.reset()
                raise

    def _stream(self) -> Responses:
        request, prefix, stats = self._request, self._prefix, self._stats
        policy = self._policy()
        mx.reset_peak_memory()
        started = time.perf_counter()
        decoder = self._decoder(speculate=policy is not None)
        stats.cached_tokens = prefix.cache.rows
        if not self._read(decoder):
            return
        text = TextStream(self._engine.tokenizer, request.options.stop)
        sections = self._engine.answer_format.sections(request.begun)
        ends, report = self._ends(), request.options.progress
        n_prompt = len(request.ids)

        def is_end(tokens: Sequence[int]) -> bool:
            return ends.within(tokens, stats.generation_tokens)

        plan = policy or FixedShape(PLAIN)
        with closing(rounds(decoder, request.ids[-1], plan, is_end)) as stream:
            for response in responses(stream, text, sections, stats, ends, started):
                prefix.tokens.append(response.token)
                prefix.stand_alone()  # a round has written rows
                self._make_room(len(prefix.tokens))
                self._text += response.text
                if report is not None and response.generation_tokens == 1:
                    report(n_prompt, n_prompt)
                if response.finish_reason is not None:
                    self._conclude(policy)
                    response = response._replace(message=self.message())
                yield response

    def _decoder(self, *, speculate: bool) -> Decoder:
        """Go back to what is held of the prompt, and return the parties to its rounds."""
        prefix, request = self._prefix, self._request
        prefix.reuse(request.ids, speculate)
        self._make_room(len(request.ids))
        drafter = prefix.drafter if speculate else None
        if drafter is not None and isinstance(request.sampler, RatioSampler):
            drafter = DrawnDrafts(drafter, request.sampler)
        return Decoder(self._engine.target, prefix.cache, drafter, request.selector)

    def _make_room(self, n_tokens: int) -> None:
        """Let go of the oldest rows of other conversations, as far as the next rows need memory.

        Args:
            n_tokens: of prompt and answer so far; room is made for some more.
        """
        kept, limits, budget = self._engine.prefix_cache, self._engine.limits, self._request.budget
        if kept is None or limits.memory is None or n_tokens + LEFT <= self._n_reserved:
            return
        self._n_reserved = n_tokens + AHEAD
        n_rows = self._n_reserved if budget is None else min(self._n_reserved, budget.tokens)
        held = 0 if self._prefix.is_shared else self._prefix.nbytes
        needed = limits.cache_bytes(n_rows) - held
        kept.make_room(needed - (limits.memory - mx.get_active_memory()))

    def _read(self, decoder: Decoder) -> bool:
        """Read what is new of the prompt; returns False if somebody cancelled it."""
        ids, options, prefix = self._request.ids, self._request.options, self._prefix
        kept = self._engine.prefix_cache
        step = (kept.step if kept is not None else 0) or options.prefill_step_size
        n_before = prefix.cache.rows
        for done in prefill_steps(decoder, ids, step):
            if prefix.n_read == n_before:
                prefix.n_read = done
            prefix.tokens, n_before = ids[:done], done
            if options.progress is not None:
                options.progress(done, len(ids))
            if self._cancelled.is_set():
                return False
        prefix.tokens = list(ids)
        decoder.checkpoint()
        return True

    def _ends(self) -> Ends:
        """Return what ends the answer: end tokens, the limits, or somebody who has had enough."""
        options, budget, ids = self._request.options, self._request.budget, self._request.ids
        eos = set() if options.ignore_eos else set(self._engine.tokenizer.eos_token_ids)
        left, full = options.max_tokens, ""
        if budget is not None and budget.tokens - len(ids) < left:
            left, full = budget.tokens - len(ids), budget.reason
        return Ends(eos, left, full, self._cancelled, options.logprobs)

    def _policy(self) -> Policy | None:
        """Return what decides on the trees, or None, and note which and why."""
        options, stats, prefix = self._request.options, self._stats, self._prefix
        if not options.speculate:
            stats.status = Speculation.off("not asked for")
        elif options.tree == PLAIN:
            stats.status = Speculation.off("the tree has no nodes")
        elif prefix.drafter is not None and isinstance(options.tree, Shape):
            stats.status = ON
            return FixedShape(options.tree)
        elif prefix.drafter is not None:
            return self._planner()
        return None

    def _planner(self) -> Planner | None:
        """Return the planner, or None where no tree could pay."""
        stats, prefix, planners = self._stats, self._prefix, self._planners
        n_tokens = stats.prompt_tokens
        options = self._request.options
        planner = planners.planner(0.0 if options.is_greedy else 1.0, options.rule)
        if prefix.outlook.is_on or prefix.judged_by is not planners:
            prefix.outlook, prefix.judged_by = planners.outlook(n_tokens), planners
        stats.status = prefix.outlook
        if prefix.outlook.is_on or not planners.calibration.is_awaited:  # else nothing is known
            stats.planned = Planned(planners.calibration.source, planner.costs.plain(n_tokens))
        return planner if prefix.outlook.is_on else None

    def _conclude(self, policy: Policy | None) -> None:
        """Complete the statistics, and keep what was learnt."""
        stats, planners = self._stats, self._planners
        if isinstance(policy, Planner):
            if stats.planned is not None and stats.planned.is_mostly_plain:
                stats.status = Speculation.off(policy.why_plain(stats.prompt_tokens))
            if stats.planned is not None:
                stats.planned.plain_seconds = policy.costs.plain(len(self._prefix.tokens))
            planners.keep()
        if planners.watch is not None:
            stats.advice = planners.watch.advise(stats)
        stats.advice = self._engine.target.few_rows.take_advice() or stats.advice
        kept = self._engine.prefix_cache
        if kept is not None and kept.files is not None:
            stats.advice = kept.files.take_note() or stats.advice
        if stats.is_lossy:
            stats.advice = LOSSY
