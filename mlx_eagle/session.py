"""A conversation: what is committed, reused from turn to turn.

A session owns the caches of target and head. A new prompt keeps the rows that it shares with what
is committed and prefills the rest. It knows messages and tokens; the loop is `generate.py`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from jinja2 import TemplateError

from mlx_eagle.drafters import Drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.generate import Decoder, prefill, rounds
from mlx_eagle.planner import Planner
from mlx_eagle.planning import Planners
from mlx_eagle.policy import FixedShape, Policy
from mlx_eagle.responses import Ends, Responses, responses
from mlx_eagle.sampling import Sampler
from mlx_eagle.stats import GenerationStats, Planned
from mlx_eagle.target import Target
from mlx_eagle.text import TextStream
from mlx_eagle.tree import PLAIN, TreeShape

Prompt = str | Sequence[int] | Sequence[dict[str, str]]


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate; the names are mlx-lm's where it has one.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; see `sampling.py` for top_p, top_k, min_p and seed.
        stop: strings that end the answer; they are not part of its text.
        speculate: False decodes plainly, through the same loop.
        ignore_eos: go on to `max_tokens` whatever the model says.
        tree: the shape of every round's tree; None leaves the choice to the planner.
        progress: called with (prompt tokens done, prompt tokens in all) during prefill.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: Sequence[str] = ()
    speculate: bool = True
    ignore_eos: bool = False
    tree: TreeShape | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be 1 or more")
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the string {self.stop!r}; give a list of strings")

    def sampler(self) -> Sampler:
        """Return the sampler that these options describe."""
        return Sampler(self.temperature, self.top_p, self.top_k, self.min_p, self.seed)


class Session:
    """One conversation with an engine.

    Attributes:
        messages: the conversation so far, as chat messages, without the system prompt.
        system: the system prompt, or None.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Any,
        make_drafter: Callable[[], Drafter] | None,
        speculation: str,
        system: str | None = None,
        planners: Planners | None = None,
    ) -> None:
        self.system = system
        self._is_hopeless = False  # once it is, the head has not followed the conversation
        self.messages: list[dict[str, str]] = []
        self._target, self._tokenizer = target, tokenizer
        self._make_drafter, self._speculation = make_drafter, speculation
        self._tokens: list[int]  # committed; the caches hold rows of all but the newest
        self._open: Responses | None = None
        self._reset()
        max_depth = self._drafter.max_depth if self._drafter else 0
        self._planners = planners or Planners(max_depth=max_depth)

    def clear(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._finish()
        self.messages = []
        self._is_hopeless = False
        self._reset()

    def ask(self, text: str, **options: Any) -> Responses:
        """Say something and stream the answer; both join the conversation.

        An answer that is cut short (by closing the stream, or by asking again) joins it as far as
        it got. A request that is refused, or stopped before its first token, leaves the
        conversation as it was; see `stream_generate` for the errors.
        """
        self._finish()
        question = {"role": "user", "content": text}
        system = [{"role": "system", "content": self.system}] if self.system else []
        stream = self.stream_generate([*system, *self.messages, question], **options)
        self._open = self._answer(question, stream)
        return self._open

    def _answer(self, question: dict[str, str], stream: Responses) -> Responses:
        """Pass a stream on and note question and answer in the conversation."""
        answer: list[str] = []
        try:
            for response in stream:
                answer.append(response.text)
                yield response
        finally:
            stream.close()
            if answer:
                said = {"role": "assistant", "content": "".join(answer)}
                self.messages += [question, said]

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer to `prompt`, reusing the rows it shares with what is committed.

        The caches serve one stream at a time: a stream that is still open ends here.

        Args:
            prompt: a string or token ids, used as they are, or chat messages for the template.
            **options: the fields of `GenerationOptions`.

        Raises:
            EagleError: if the prompt is empty or of another kind, or the chat template is missing
                or refuses the messages.
            TypeError: if an option does not exist.
            ValueError: if an option is out of range.
        """
        chosen = GenerationOptions(**options)
        sampler = chosen.sampler()
        ids = self._encode(prompt)
        self._check(ids, chosen.tree)
        self._finish()
        self._open = self._guarded(self._stream(ids, chosen, sampler))
        return self._open

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
            self._reset()
            raise

    def _stream(self, ids: list[int], options: GenerationOptions, sampler: Sampler) -> Responses:
        """Prefill, then turn rounds into responses until something ends the answer."""
        stats = GenerationStats(prompt_tokens=len(ids), speculation=self._speculation)
        policy = self._policy(options, len(ids), stats)
        mx.reset_peak_memory()
        started = time.perf_counter()
        self._rewind(ids, policy is not None)
        self._tokens = ids[: self._cache.rows]  # true even if the stream is closed here
        stats.cached_tokens = self._cache.rows
        drafter = self._drafter if policy is not None else None
        decoder = Decoder(self._target, self._cache, drafter, sampler)
        prefill(decoder, ids, options.progress)
        self._tokens = ids
        text = TextStream(self._tokenizer, options.stop)
        ends = self._ends(options)
        with closing(rounds(decoder, ids[-1], policy or FixedShape(PLAIN))) as stream:
            for response in responses(stream, text, self._tokens, stats, ends, started):
                if response.stats is not None:
                    self._conclude(response.stats, policy)
                yield response

    def _policy(
        self, options: GenerationOptions, n_tokens: int, stats: GenerationStats
    ) -> Policy | None:
        """Return what decides on the trees of this answer, or None, and note which and why."""
        if not options.speculate:
            stats.speculation = "off: not asked for"
        elif options.tree == PLAIN:
            stats.speculation = "off: the tree has no nodes"
        elif self._drafter is not None and options.tree is not None:
            stats.speculation = "on"
            return FixedShape(options.tree)
        elif self._drafter is not None:
            stats.speculation = "on"
            planner = self._planners.planner(options.temperature)
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
                stats.planned.plain_seconds = policy.costs.plain(len(self._tokens))
            self._planners.keep()
        if self._planners.watch is not None:
            stats.advice = self._planners.watch.advise(stats)

    def _check(self, ids: Sequence[int], tree: TreeShape | None) -> None:
        """Refuse tokens that the target does not know and trees that the drafter cannot make."""
        n_tokens = self._target.vocab_size
        foreign = [i for i in ids if i < 0 or (n_tokens is not None and i >= n_tokens)]
        if foreign:
            raise EagleError(
                f"the prompt holds token {foreign[0]}, but the target has {n_tokens} tokens; "
                "encode the prompt with the target's own tokenizer"
            )
        if tree is None or self._drafter is None:
            return
        if tree.width > self._drafter.max_width:
            raise EagleError(
                f"a tree of width {tree.width} was asked for, but the head proposes among "
                f"{self._drafter.max_width} tokens"
            )
        if tree.depth > self._drafter.max_depth:
            raise EagleError(
                f"a tree of depth {tree.depth} was asked for, but the head proposes "
                f"{self._drafter.max_depth} tokens in a row"
            )

    def _ends(self, options: GenerationOptions) -> Ends:
        """Return what ends an answer: the model's end tokens and the limit."""
        eos = set() if options.ignore_eos else set(self._tokenizer.eos_token_ids)
        return Ends(eos, options.max_tokens)

    def _encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt."""
        if isinstance(prompt, str):
            bos = self._tokenizer.bos_token
            has_bos = bos is not None and prompt.startswith(bos)
            ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=not has_bos)
        elif isinstance(prompt, list | tuple) and all(isinstance(m, dict) for m in prompt):
            ids = self._apply_template(list(prompt)) if prompt else []
        elif isinstance(prompt, list | tuple) and all(type(i) is int for i in prompt):
            ids = list(prompt)
        else:
            raise EagleError(
                f"the prompt is {type(prompt).__name__}; give a string, a list of token ids (int) "
                "or a list of chat messages (dict)"
            )
        if not ids:
            raise EagleError("the prompt is empty; give at least one token")
        return ids

    def _apply_template(self, messages: list[Any]) -> list[int]:
        """Return the token ids of chat messages."""
        if not self._tokenizer.has_chat_template:
            raise EagleError(
                "this target has no chat template, so chat messages cannot be encoded; "
                "give the prompt as a string (on the command line: --raw)"
            )
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True
            )
        except (TemplateError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EagleError(
                f"the target's chat template refuses the messages: {error}; a system prompt or "
                "the order of the roles may be what it does not take"
            ) from error
        return ids

    def _reset(self) -> None:
        """Start with empty caches."""
        self._cache = self._target.make_cache()
        self._drafter = self._make_drafter() if self._make_drafter else None
        self._tokens = []

    def _rewind(self, ids: Sequence[int], speculate: bool) -> None:
        """Go back to the rows that target and head hold of this prompt, or to none.

        The newest shared token is run again: the head needs its taps once its follower changes.
        """
        shared = 0
        for old, new in zip(self._tokens, ids, strict=False):
            if old != new:
                break
            shared += 1
        rows = min(max(shared - 1, 0), self._cache.rows)
        if speculate and self._drafter is not None:
            rows = min(rows, self._drafter.rows)
        if rows == 0 or not self._cache.can_trim(rows):
            self._reset()
            return
        self._cache.trim(rows)
        if self._drafter is not None:
            self._drafter.trim(min(rows, self._drafter.rows))
