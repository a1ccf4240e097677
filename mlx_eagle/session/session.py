"""A conversation: messages, and streams of answers that reuse the rows already cached.

It knows messages. The rows of target and head are in `prefix.py`, one answer in `answer.py`, the
file of a conversation in `session_file.py`.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from mlx_eagle.answers.history import with_ids
from mlx_eagle.errors import EagleError
from mlx_eagle.session.answer import Answering
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.prefix import CachedPrefix, shared_tokens
from mlx_eagle.session.prompt import (
    PLAIN_TEMPLATE,
    Message,
    Prompt,
    Template,
    encode,
    is_messages,
)
from mlx_eagle.session.request import check_request
from mlx_eagle.session.responses import Responses
from mlx_eagle.session.session_file import About, read_session, write_session
from mlx_eagle.speculation import ON

if TYPE_CHECKING:
    from mlx_eagle.engine import Engine


class Usage(NamedTuple):
    """What a conversation takes: tokens held, tokens it may have (None: unbounded), bytes."""

    tokens: int
    max_context: int | None
    cache_bytes: int


class Session:
    """One conversation with an engine.

    Args:
        engine: that answers.
        system: the system prompt, or None.
        template: what the chat template is given in every turn.

    Attributes:
        messages: the conversation so far, as chat messages, without the system prompt; thoughts
            and calls of tools stand apart in them (OpenAI's format, "reasoning_content").
        system: the system prompt, or None.
        template: what the chat template is given; a turn may add to it.
        prefix: what target and head hold of it.
    """

    def __init__(
        self, engine: "Engine", system: str | None = None, template: Template = PLAIN_TEMPLATE
    ) -> None:
        self.system = system
        self.template = template
        self.messages: list[Message] = []
        self.prefix = CachedPrefix(engine)
        self._engine = engine
        self._open: Responses | None = None
        self._cancelled = threading.Event()

    # The conversation

    def ask(self, text: str, **options: Any) -> Responses:
        """Say something and stream the answer; both join the conversation.

        An answer that is cut short (by closing the stream, by `cancel`, or by asking again) joins
        it as far as it got. A request that is refused, or stopped before its first token, leaves
        the conversation as it was, but ends a stream that is open; see `stream_generate` for the
        errors.
        """
        question = _question(text)
        self._finish()
        return self._answer(self.messages, [question], options)

    def send(self, messages: Sequence[Message], **options: Any) -> Responses:
        """Add messages, such as the results of tools, and stream the answer; all join.

        Args:
            messages: in OpenAI's format; results of tools ("role": "tool") that do not say which
                call they belong to follow the order of the calls. An answer as the last of them
                is begun, and goes on.
            **options: as for `ask`.

        Raises:
            EagleError: if they are no messages; also what `ask` raises.
        """
        has_roles = is_messages(messages) and all(isinstance(m.get("role"), str) for m in messages)
        if not messages or not has_roles:
            raise EagleError("send takes a list of chat messages (dict with a role), at least one")
        self._finish()
        return self._answer(self.messages, with_ids(self.messages, messages), options)

    def regenerate(self, **options: Any) -> Responses:
        """Answer the last question anew; the new answer replaces the old one.

        Raises:
            EagleError: if nothing was asked yet; also what `ask` raises.
        """
        before, question = self._last_turn()
        return self._answer(before, [question], options)

    def edit(self, text: str, **options: Any) -> Responses:
        """Ask `text` in place of the last question; it and its answer are forgotten.

        Raises:
            EagleError: if nothing was asked yet; also what `ask` raises.
        """
        question = _question(text)
        before, _ = self._last_turn()
        return self._answer(before, [question], options)

    def undo(self) -> Message | None:
        """Forget the last question and its answer; return the question, None if there is none."""
        self._finish()
        if not any(message["role"] == "user" for message in self.messages):
            return None
        self.messages, question = self._last_turn()
        return question

    def clear(self) -> None:
        """Forget the conversation and free its caches; the system prompt stays."""
        self._finish()
        self.messages = []
        self.prefix.reset()
        self.prefix.outlook = ON
        mx.clear_cache()

    def cancel(self) -> None:
        """End the open stream after its round, with the reason "cancelled"; from any thread.

        While the prompt is still being read, the stream ends without a token; what was read stays.
        """
        self._cancelled.set()

    def write_prefix(self) -> None:
        """Write what is new of the conversation's rows to disk, if the engine keeps any there."""
        if self._engine.prefix_cache is not None:
            self._engine.prefix_cache.write(self.prefix)

    def usage(self) -> Usage:
        """Return what the conversation takes."""
        held = self.prefix
        return Usage(len(held.tokens), self._engine.limits.max_context, held.nbytes)

    def fork(self) -> "Session":
        """Return a second conversation that begins with this one; a stream that is open ends.

        Nothing is read again. The first of both to go on copies the rows, so a fork takes memory
        once it is used. A prompt that many requests share is read once: let a session `read` it,
        and fork that.
        """
        self._finish()
        twin = Session.__new__(Session)
        vars(twin).update(vars(self))
        twin.messages = list(self.messages)
        twin.prefix = self.prefix.fork()
        twin._open, twin._cancelled = None, threading.Event()
        return twin

    def save(self, path: str | Path) -> None:
        """Write the conversation and its caches to one file; a stream that is open ends.

        Raises:
            EagleError: if the file cannot be written; an older file of that name is still whole.
        """
        self._finish()
        about = About(self.system, self.messages, self._engine.identity, self.template)
        write_session(_path(path), about, self.prefix)

    @classmethod
    def load(cls, path: str | Path, engine: "Engine") -> "Session":
        """Return the conversation in a file that `save` wrote.

        Raises:
            EagleError: if the file is damaged, or of another target, head or version.
        """
        session = cls(engine)
        about = read_session(_path(path), engine.identity, session.prefix)
        session.system, session.messages = about.system, about.messages
        own, args = about.template, {**engine.template.args, **about.template.args}
        session.template = Template(args, own.tools or engine.template.tools)
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
        self._open = self._answering(prompt, options).stream()
        return self._open

    def read(self, prompt: Prompt, **options: Any) -> bool:
        """Run a prompt through target and head, so that later prompts that begin with it need not.

        Args:
            prompt: as for `stream_generate`; for messages, an answer need not follow.
            **options: `progress` and `prefill_step_size` matter.

        Returns:
            False if it was cancelled; what was read stays.

        Raises:
            EagleError: as `stream_generate` does.
        """
        return self._answering(prompt, options).read()

    def read_ahead(self) -> bool:
        """Read what stands before the next question, whatever that will be.

        That is the system prompt, what was said so far, and what the chat template adds to them:
        an app calls this while its user is typing, and the answer begins sooner.

        Returns:
            False if it was cancelled; what was read stays.

        Raises:
            EagleError: as `stream_generate` does.
        """
        template = self.chosen_template({})
        asked = [self._with_system([*self.messages, _question(text)]) for text in ("a", "Z")]
        ids, other = (encode(self._engine.tokenizer, prompt, template) for prompt in asked)
        n_shared = shared_tokens(ids, other)
        return self.read(ids[:n_shared]) if n_shared else True

    def chosen_template(self, options: Mapping[str, Any]) -> Template:
        """Return what the chat template is given in a turn with these options.

        Args:
            options: of the turn; "template_args" are added to the session's, "tools" replace them.

        Raises:
            ValueError: if they are of another kind.
        """
        given = GenerationOptions(
            template_args=options.get("template_args"), tools=options.get("tools")
        )
        args = {**self.template.args, **(given.template_args or {})}
        return Template(args, given.tools if "tools" in options else self.template.tools)

    def _answering(self, prompt: Prompt, options: dict[str, Any]) -> Answering:
        """Check a request, then end the stream that is open."""
        args, tools = self.chosen_template(options)
        chosen = GenerationOptions(**options | {"template_args": args, "tools": tools})
        request = check_request(self._engine, self.prefix, prompt, chosen)
        self._finish()
        self._cancelled = threading.Event()
        return Answering(self._engine, self.prefix, request, self._cancelled)

    def _last_turn(self) -> tuple[list[Message], Message]:
        """Return the messages before the last question, and the question, once nothing is open."""
        self._finish()
        asked = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not asked:
            raise EagleError("nothing was asked yet, so there is no question to go back to")
        return self.messages[: asked[-1]], self.messages[asked[-1]]

    def _answer(
        self, before: Sequence[Message], asked: Sequence[Message], options: dict[str, Any]
    ) -> Responses:
        """Stream the answer to what was asked after `before`."""
        answering = self._answering(self._with_system([*before, *asked]), options)
        # An abandoned stream must not keep the conversation, and its caches, alive.
        self._open = _noted(weakref.ref(self), [*before, *asked], answering)
        return self._open

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages after the system prompt, if there is one."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *messages]

    def _finish(self) -> None:
        """End the stream that is still open, if any."""
        if self._open is not None:
            with self._engine.turn.taken():
                self._open.close()
        self._open = None


def _question(text: str) -> Message:
    """Return the message that asks something.

    Raises:
        EagleError: if it is no text.
    """
    if not isinstance(text, str):
        raise EagleError(f"the question is {type(text).__name__}; give it as a string")
    return {"role": "user", "content": text}


def _path(path: str | Path) -> Path:
    """Return where a conversation is kept, if that can be a file's name."""
    if not Path(path).name or "\0" in str(path):
        raise EagleError(f"{str(path)!r} is not the name of a file")
    return Path(path)


def _noted(
    session: "weakref.ref[Session]", asked: list[Message], answering: Answering
) -> Responses:
    """Stream an answer, and note what was asked and the answer in the conversation."""
    is_begun = False
    stream = answering.stream()
    try:
        for response in stream:
            is_begun = True
            yield response
    finally:
        stream.close()
        owner = session()
        if is_begun and owner is not None:
            owner.messages = _with_answer(asked, answering.message())
            owner.write_prefix()


def _with_answer(asked: list[Message], answer: Message) -> list[Message]:
    """Return a conversation with an answer, which may go on with one that was begun."""
    begun = asked[-1]
    if begun["role"] != "assistant":
        return [*asked, answer]
    content = f"{begun.get('content') or ''}{answer['content']}"
    return [*asked[:-1], begun | answer | {"content": content}]
