"""A conversation: what is committed, reused from turn to turn.

A session owns the caches of target and head. A new prompt keeps the rows that it shares with what
is committed and prefills the rest. It knows messages and tokens; the loop is `generate.py`.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, NamedTuple

import mlx.core as mx
from jinja2 import TemplateError

from mlx_eagle.drafters import Drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.generate import Decoder, Round, prefill, rounds
from mlx_eagle.sampling import Sampler
from mlx_eagle.stats import GenerationStats, HeadWatch
from mlx_eagle.target import Target
from mlx_eagle.text import TextStream
from mlx_eagle.tree import PLAIN, TreeShape

Prompt = str | Sequence[int] | Sequence[dict[str, str]]

# Until a planner measures the machine: the best chain by the published costs of an M4 Pro, with a
# 4-bit target and head (op-weighted from ml-explore/mlx#3839).
DEFAULT_SHAPE = TreeShape.chain(3)


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate; the names are mlx-lm's where it has one.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; see `sampling.py` for top_p, top_k, min_p and seed.
        stop: strings that end the answer; they are not part of its text.
        speculate: False decodes plainly, through the same loop.
        ignore_eos: go on to `max_tokens` whatever the model says.
        tree: the shape of every round's tree; None leaves the choice to the engine.
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
        watch: HeadWatch | None = None,
    ) -> None:
        self.system = system
        self._watch = watch
        self.messages: list[dict[str, str]] = []
        self._target, self._tokenizer = target, tokenizer
        self._make_drafter, self._speculation = make_drafter, speculation
        self._tokens: list[int]  # committed; the caches hold rows of all but the newest
        self._open: Responses | None = None
        self._reset()

    def clear(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._finish()
        self.messages = []
        self._reset()

    def ask(self, text: str, **options: Any) -> "Responses":
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

    def _answer(self, question: dict[str, str], stream: "Responses") -> "Responses":
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

    def stream_generate(self, prompt: Prompt, **options: Any) -> "Responses":
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

    def _guarded(self, stream: "Responses") -> "Responses":
        """Pass a stream on; caches that an exception leaves half-written are not used again."""
        try:
            yield from stream
        except GeneratorExit:
            raise
        except BaseException:
            self._reset()
            raise

    def _stream(self, ids: list[int], options: GenerationOptions, sampler: Sampler) -> "Responses":
        """Prefill, then turn rounds into responses until something ends the answer."""
        speculate = options.speculate and self._drafter is not None
        stats = GenerationStats(prompt_tokens=len(ids), speculation=self._say(options))
        mx.reset_peak_memory()
        started = time.perf_counter()
        self._rewind(ids, speculate)
        self._tokens = ids[: self._cache.rows]  # true even if the stream is closed here
        stats.cached_tokens = self._cache.rows
        drafter = self._drafter if speculate else None
        decoder = Decoder(self._target, self._cache, drafter, sampler)
        prefill(decoder, ids, options.progress)
        self._tokens = ids
        shape = options.tree or self._default_shape()
        stream = rounds(decoder, ids[-1], chain([PLAIN], repeat(shape)))
        text = TextStream(self._tokenizer, options.stop)
        ends = self._ends(options)
        for response in _responses(stream, text, self._tokens, stats, ends, started):
            if response.stats is not None and self._watch is not None:
                response.stats.advice = self._watch.advise(response.stats)
            yield response

    def _default_shape(self) -> TreeShape:
        """Return the shape for rounds that are left to the engine."""
        if self._drafter is None or self._drafter.max_depth >= DEFAULT_SHAPE.depth:
            return DEFAULT_SHAPE
        return TreeShape.chain(self._drafter.max_depth)

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

    def _ends(self, options: GenerationOptions) -> "_Ends":
        """Return what ends an answer: the model's end tokens and the limit."""
        eos = set() if options.ignore_eos else set(self._tokenizer.eos_token_ids)
        return _Ends(eos, options.max_tokens)

    def _say(self, options: GenerationOptions) -> str:
        """Return "on", or why there is no speculation."""
        if not options.speculate:
            return "off: not asked for"
        if options.tree == PLAIN:
            return "off: the tree has no nodes"
        return self._speculation

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


class _Ends(NamedTuple):
    """What ends an answer: an end token, or the number of tokens."""

    eos: set[int]
    max_tokens: int

    def reason(self, token: int, n_tokens: int, stopped: bool) -> str | None:
        """Return the finish reason after `n_tokens` tokens, the last being `token`."""
        if token in self.eos or stopped:
            return "stop"
        return "length" if n_tokens >= self.max_tokens else None


def _responses(
    stream: Iterator[Round],
    text: TextStream,
    tokens: list[int],
    stats: GenerationStats,
    ends: _Ends,
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
