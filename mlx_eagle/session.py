"""A conversation: messages, and streams of answers that reuse what is held of them.

It knows messages and requests. What target and head hold is `context.py`'s matter, the loop
`generate.py`'s, files are `session_file.py`'s.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.chooser import Chooser, TreeConstraint
from mlx_eagle.context import Context
from mlx_eagle.drafters import Drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.generate import Decoder, prefill_steps, rounds
from mlx_eagle.limits import Limits, Room
from mlx_eagle.options import GenerationOptions
from mlx_eagle.planner import Planner
from mlx_eagle.planning import Planners
from mlx_eagle.policy import FixedShape, Policy
from mlx_eagle.prompt import Message, Prompt, check_ids, encode, is_messages, without_oldest_turn
from mlx_eagle.responses import Ends, Responses, responses
from mlx_eagle.session_file import About, read_session, write_session
from mlx_eagle.stats import GenerationStats, Planned
from mlx_eagle.target import Target
from mlx_eagle.text import TextStream
from mlx_eagle.tree import PLAIN, TreeShape


class Resources(NamedTuple):
    """What the conversations of an engine share.

    Attributes:
        target: the target.
        tokenizer: mlx-lm's wrapper of its tokenizer.
        make_drafter: makes a drafter with an empty cache; None if there is no head.
        speculation: "on", or "off: reason".
        planners: what plans the trees; None makes them anew.
        limits: how long conversations may become.
        constrain: returns what constrains an answer, by its options; None: nothing can.
        identity: returns what a saved conversation must agree with, in words by what they are of.
    """

    target: Target
    tokenizer: Any
    make_drafter: Callable[[], Drafter] | None
    speculation: str
    planners: Planners | None = None
    limits: Limits = Limits()
    constrain: Callable[[GenerationOptions], TreeConstraint | None] | None = None
    identity: Callable[[], dict[str, str]] | None = None


class Usage(NamedTuple):
    """What a conversation takes: tokens held, tokens it may have (None: unbounded), bytes."""

    tokens: int
    max_context: int | None
    cache_bytes: int


class Request(NamedTuple):
    """A checked request: the token ids of its prompt, its options, and the room there is for it.

    `n_dropped` messages were left out because they did not fit.
    """

    ids: list[int]
    options: GenerationOptions
    room: Room | None
    n_dropped: int
    chooser: Chooser


class Session:
    """One conversation with an engine.

    Args:
        resources: of the engine.
        system: the system prompt, or None.

    Attributes:
        messages: the conversation so far, as chat messages, without the system prompt.
        system: the system prompt, or None.
        context: what target and head hold of it.
    """

    def __init__(self, resources: Resources, system: str | None = None) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.context = Context(resources.target, resources.make_drafter)
        self._resources = resources
        self._is_hopeless = False  # once it is, the head has not followed the conversation
        self._open: Responses | None = None
        self._cancelled = threading.Event()
        max_depth = self.context.drafter.max_depth if self.context.drafter else 0
        self._planners = resources.planners or Planners(
            max_depth=max_depth, chains_only=resources.target.chains_only
        )

    # The conversation

    def ask(self, text: str, **options: Any) -> Responses:
        """Say something and stream the answer; both join the conversation.

        An answer that is cut short (by closing the stream, by `cancel`, or by asking again) joins
        it as far as it got. A request that is refused, or stopped before its first token, leaves
        the conversation as it was; see `stream_generate` for the errors.
        """
        self._finish()
        return self._answer(self.messages, {"role": "user", "content": text}, options)

    def regenerate(self, **options: Any) -> Responses:
        """Answer the last question anew; the new answer replaces the old one.

        Raises:
            EagleError: if nothing was asked yet; also what `ask` raises.
        """
        before, question = self._last_turn()
        return self._answer(before, question, options)

    def edit(self, text: str, **options: Any) -> Responses:
        """Ask `text` in place of the last question; it and its answer are forgotten.

        Raises:
            EagleError: if nothing was asked yet; also what `ask` raises.
        """
        before, _ = self._last_turn()
        return self._answer(before, {"role": "user", "content": text}, options)

    def undo(self) -> Message | None:
        """Forget the last question and its answer; return the question, None if there is none."""
        self._finish()
        if not self.messages:
            return None
        self.messages, question = self._last_turn()
        return question

    def clear(self) -> None:
        """Forget the conversation and free its caches; the system prompt stays."""
        self._finish()
        self.messages = []
        self._is_hopeless = False
        self.context.reset()
        mx.clear_cache()

    def cancel(self) -> None:
        """End the open stream after its round, with the reason "cancelled"; from any thread.

        While the prompt is still being read, the stream ends without a token; what was read stays.
        """
        self._cancelled.set()

    def usage(self) -> Usage:
        """Return what the conversation takes."""
        held = self.context
        return Usage(len(held.tokens), self._resources.limits.max_context, held.nbytes)

    def fork(self) -> "Session":
        """Return a second conversation that begins with this one; rows are shared, not copied.

        A prompt that many requests share is read once: let a session `read` it, and fork that.
        """
        self._finish()
        twin = Session.__new__(Session)
        vars(twin).update(vars(self))
        twin.messages = list(self.messages)
        twin.context = self.context.fork()
        twin._open, twin._cancelled = None, threading.Event()
        return twin

    def save(self, path: str | Path) -> None:
        """Write the conversation and its caches to one file; see `session_file.py`.

        Raises:
            EagleError: if the file cannot be written; an older file of that name is still whole.
        """
        self._finish()
        identity = self._resources.identity
        about = About(self.system, self.messages, identity() if identity else {})
        write_session(Path(path), about, self.context)

    @classmethod
    def load(cls, path: str | Path, resources: Resources) -> "Session":
        """Return the conversation in a file that `save` wrote.

        Raises:
            EagleError: if the file is damaged, or of another target, head or version.
        """
        session = cls(resources)
        identity = resources.identity
        about = read_session(Path(path), identity() if identity else {}, session.context)
        session.system, session.messages = about.system, about.messages
        return session

    # Requests

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer to `prompt`, reusing the rows it shares with what is held.

        The caches serve one stream at a time: a stream that is still open ends here.

        Args:
            prompt: a string or token ids, used as they are, or chat messages for the template.
            **options: the fields of `GenerationOptions`.

        Raises:
            EagleError: if the prompt is empty, of another kind or too long, if the chat template
                is missing or refuses the messages, or a grammar cannot be followed.
            TypeError: if an option does not exist.
            ValueError: if an option is out of range.
        """
        request = self._request(prompt, GenerationOptions(**options))
        self._finish()
        self._cancelled = threading.Event()
        self._open = self._guarded(self._stream(request))
        return self._open

    def read(self, prompt: Prompt, **options: Any) -> None:
        """Run a prompt through target and head, so that later prompts that begin with it need not.

        Args:
            prompt: as for `stream_generate`; for messages, an answer need not follow.
            **options: `progress` and `prefill_step_size` matter.

        Raises:
            EagleError: as `stream_generate` does.
        """
        request = self._request(prompt, GenerationOptions(**options))
        self._finish()
        for _ in self._guarded(self._prefill(self._decoder(request, True), request)):
            pass

    def _request(self, prompt: Prompt, options: GenerationOptions) -> Request:
        """Check a request before anything runs."""
        room = self._resources.limits.room(self.context.cache.rows)
        ids, n_dropped = encode(self._resources.tokenizer, prompt), 0
        if options.overflow == "truncate" and room is not None and is_messages(prompt):
            # An answer should fit, but a long limit must not cost the conversation.
            most = room.tokens - min(options.max_tokens, room.tokens // 4)
            messages: Any = prompt
            while len(ids) > most and (fewer := without_oldest_turn(messages)):
                n_dropped += len(messages) - len(fewer)
                messages, ids = fewer, encode(self._resources.tokenizer, fewer)
        check_ids(ids, self._resources.target.vocab_size)
        self._check_tree(options.tree)
        if room is not None:
            room.check(len(ids))
        constrain = self._resources.constrain
        constraint = constrain(options) if constrain else None
        chooser = Chooser(options.draws(), options.processors(), constraint, ids[:-1])
        return Request(ids, options, room, n_dropped, chooser)

    def _check_tree(self, tree: TreeShape | None) -> None:
        """Refuse trees that the drafter cannot make, or the target cannot verify."""
        drafter = self.context.drafter
        if tree is None or drafter is None:
            return
        self._resources.target.check_shape(tree)
        if tree.width > drafter.max_width:
            raise EagleError(
                f"a tree of width {tree.width} was asked for, but the head proposes among "
                f"{drafter.max_width} tokens"
            )
        if tree.depth > drafter.max_depth:
            raise EagleError(
                f"a tree of depth {tree.depth} was asked for, but the head proposes "
                f"{drafter.max_depth} tokens in a row"
            )

    # Streams

    def _last_turn(self) -> tuple[list[Message], Message]:
        """Return the messages before the last question, and the question, once nothing is open."""
        self._finish()
        asked = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not asked:
            raise EagleError("nothing was asked yet, so there is no question to go back to")
        return self.messages[: asked[-1]], self.messages[asked[-1]]

    def _answer(
        self, before: Sequence[Message], question: Message, options: dict[str, Any]
    ) -> Responses:
        """Stream the answer to a question that follows `before`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        stream = self.stream_generate([*system, *before, question], **options)
        self._open = self._noted([*before, question], stream)
        return self._open

    def _noted(self, asked: list[Message], stream: Responses) -> Responses:
        """Pass a stream on and note question and answer in the conversation."""
        answer: list[str] = []
        try:
            for response in stream:
                answer.append(response.text)
                yield response
        finally:
            stream.close()
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]

    def _finish(self) -> None:
        """End the stream that is still open, if any."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def _guarded(self, stream: Responses) -> Responses:
        """Pass a stream on; caches that an exception leaves half-written are not used again."""
        try:
            yield from stream
        except GeneratorExit:
            raise
        except BaseException:
            self.context.reset()
            raise

    def _stream(self, request: Request) -> Responses:
        """Prefill, then turn rounds into responses until something ends the answer."""
        ids, options, held = request.ids, request.options, self.context
        stats = GenerationStats(prompt_tokens=len(ids), speculation=self._resources.speculation)
        stats.dropped_messages = request.n_dropped
        policy = self._policy(options, len(ids), stats)
        mx.reset_peak_memory()
        started = time.perf_counter()
        decoder = self._decoder(request, policy is not None)
        stats.cached_tokens = held.cache.rows
        yield from self._prefill(decoder, request)
        if self._cancelled.is_set():
            return
        text = TextStream(self._resources.tokenizer, options.stop)
        ends = self._ends(request)
        with closing(rounds(decoder, ids[-1], policy or FixedShape(PLAIN))) as stream:
            for response in responses(stream, text, held.tokens, stats, ends, started):
                if options.progress is not None and response.generation_tokens == 1:
                    options.progress(len(ids), len(ids))
                if response.stats is not None:
                    self._conclude(response.stats, policy)
                yield response

    def _decoder(self, request: Request, speculate: bool) -> Decoder:
        """Go back to what is held of a prompt, and return the parties to its rounds."""
        self.context.reuse(request.ids, speculate)
        drafter = self.context.drafter if speculate else None
        return Decoder(self._resources.target, self.context.cache, drafter, request.chooser)

    def _prefill(self, decoder: Decoder, request: Request) -> Responses:
        """Read what is new of a prompt; a generator without responses, which `cancel` ends."""
        ids, options = request.ids, request.options
        for done in prefill_steps(decoder, ids, options.prefill_step_size):
            if options.progress is not None:
                options.progress(done, len(ids))
            # True even if the stream is closed here.
            self.context.tokens = ids[:done]
            if self._cancelled.is_set():
                return
        self.context.tokens = list(ids)
        decoder.cache.checkpoint()
        yield from ()

    def _ends(self, request: Request) -> Ends:
        """Return what ends an answer: end tokens, the limits, or somebody who has had enough."""
        options, room = request.options, request.room
        eos = set() if options.ignore_eos else set(self._resources.tokenizer.eos_token_ids)
        if room is None or len(request.ids) + options.max_tokens <= room.tokens:
            return Ends(eos, options.max_tokens, "", self._cancelled, options.logprobs)
        left = room.tokens - len(request.ids)
        return Ends(eos, left, room.reason, self._cancelled, options.logprobs)

    def _policy(
        self, options: GenerationOptions, n_tokens: int, stats: GenerationStats
    ) -> Policy | None:
        """Return what decides on the trees of this answer, or None, and note which and why."""
        drafter = self.context.drafter
        if not options.speculate:
            stats.speculation = "off: not asked for"
        elif options.tree == PLAIN:
            stats.speculation = "off: the tree has no nodes"
        elif drafter is not None and options.tree is not None:
            stats.speculation = "on"
            return FixedShape(options.tree)
        elif drafter is not None:
            stats.speculation = "on"
            planner = self._planners.planner(0.0 if options.is_greedy else 1.0)
            plain_seconds = planner.costs.plain(n_tokens)
            stats.planned = Planned(self._planners.calibration.source, plain_seconds)
            self._is_hopeless = self._is_hopeless or planner.is_hopeless(n_tokens)
            if not self._is_hopeless:
                return planner
            stats.speculation = f"off: {planner.why_hopeless(n_tokens)}"
        return None

    def _conclude(self, stats: GenerationStats, policy: Policy | None) -> None:
        """Complete the statistics of an answer, and keep what was learnt from it."""
        if isinstance(policy, Planner):
            if stats.planned is not None and stats.planned.is_mostly_plain:
                stats.speculation = f"off: {policy.why_plain(stats.prompt_tokens)}"
            if stats.planned is not None:
                stats.planned.plain_seconds = policy.costs.plain(len(self.context.tokens))
            self._planners.keep()
        if self._planners.watch is not None:
            stats.advice = self._planners.watch.advise(stats)
