"""A conversation becomes tokens, and which of them a head learns to foresee.

These are the tokens that the target writes: answers with the mark that ends them, not what its chat
template writes around them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.answer_spans import ChatTemplate, Span
from mlx_eagle.training.texts.conversations import Conversation

_NO_ARGS: Mapping[str, Any] = MappingProxyType({})


@dataclass
class ExampleCounts:
    """What became of some conversations.

    Attributes:
        examples: texts that were made; a long plain text makes several.
        tokens: of all of them.
        trained: tokens that a head learns to foresee.
        cut: conversations that were longer than the target's context.
        last_only: conversations whose last answer alone is trained: the chat template rewrites the
            earlier ones.
        unanswered: questions without any answer, of which nothing is trained.
        without_system: conversations whose system prompt went into the first question, because
            the chat template takes none.
        untrained: conversations that were cut before their first answer.
        opened: conversations that began with an answer to nothing, without which they are used:
            many chat templates refuse it, and no prompt is like it.
    """

    examples: int = 0
    tokens: int = 0
    trained: int = 0
    cut: int = 0
    last_only: int = 0
    unanswered: int = 0
    without_system: int = 0
    untrained: int = 0
    opened: int = 0


class Encoder:
    """Makes examples of conversations and counts what became of them.

    Args:
        tokenizer: mlx-lm's wrapper of the target's tokenizer.
        context: most tokens of an example: the target's context; None is no limit.
        train_on: "answers" or "all".
        template_args: what the chat template is given besides the messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        context: int | None = None,
        train_on: str = "answers",
        template_args: Mapping[str, Any] = _NO_ARGS,
    ) -> None:
        self.counts = ExampleCounts()
        self._tokenizer = tokenizer
        self._context = context
        self._train_on = train_on
        has_template = tokenizer.has_chat_template
        self._template = ChatTemplate(tokenizer, template_args) if has_template else None

    @property
    def has_template(self) -> bool:
        """Whether the target has a chat template, without which it reads plain text alone."""
        return self._template is not None

    def examples(self, conversations: Iterable[Conversation]) -> list[Example]:
        """Return what can be trained of some conversations.

        Raises:
            EagleError: if one cannot be encoded; the message says where it stands.
        """
        return [example for each in conversations for example in self.encode(each)]

    def encode(self, conversation: Conversation) -> list[Example]:
        """Return one conversation as an example, a plain text as one or several, or nothing.

        Raises:
            EagleError: if it cannot be encoded; the message says where it stands.
        """
        if conversation.messages:
            made = self._of_messages(conversation)
        else:
            made = self._of_text(conversation.text)
        self.counts.examples += len(made)
        self.counts.tokens += sum(len(example.tokens) for example in made)
        self.counts.trained += sum(int(example.trained.sum()) for example in made)
        return made

    def _of_text(self, text: str) -> list[Example]:
        """Return a plain text, cut where the context is full; all of it is trained."""
        ids: list[int] = list(self._tokenizer.encode(text, verbose=False))
        end = self._tokenizer.eos_token_id
        if end is not None and ids[-1:] != [end]:
            ids.append(end)
        most = self._context or max(len(ids), 1)
        parts = [np.array(ids[n : n + most], dtype=np.int32) for n in range(0, len(ids), most)]
        return [Example(part, np.ones(len(part), dtype=bool)) for part in parts]

    def _of_messages(self, conversation: Conversation) -> list[Example]:
        """Return a conversation from the first question to its last answer."""
        if self._template is None:
            raise EagleError(
                f"{conversation.where}: this target has no chat template, so a conversation cannot "
                "be encoded; put the chat_template of the model that it was made from into its "
                'tokenizer_config.json, or give plain text ({"text": ..})'
            )
        if n_opening := conversation.n_opening:
            self.counts.opened += 1
            conversation = conversation._replace(messages=conversation.messages[n_opening:])
        if not conversation.messages:
            self.counts.unanswered += 1
            return []
        try:
            if self._train_on == "all":
                ids, trained = self._everything(conversation, self._template)
            else:
                ids, trained = self._answers(conversation, self._template)
        except EagleError as error:
            raise EagleError(f"{conversation.where}: {error}") from error
        return self._shortened(ids, trained)

    def _everything(
        self, conversation: Conversation, template: ChatTemplate
    ) -> tuple[list[int], np.ndarray]:
        """Return the tokens of a conversation, all of them trained."""
        rendered = template.render(conversation.messages, conversation.tools)
        first = conversation.messages[0]
        self.counts.without_system += rendered.messages[0]["role"] != first["role"]
        ids: list[int] = list(self._tokenizer.encode(rendered.text, add_special_tokens=False))
        return ids, np.ones(len(ids), dtype=bool)

    def _answers(
        self, conversation: Conversation, template: ChatTemplate
    ) -> tuple[list[int], np.ndarray]:
        """Return the tokens of a conversation up to its last answer, and which are of answers."""
        messages, tools = _to_last_answer(conversation.messages), conversation.tools
        if not messages:
            self.counts.unanswered += 1
            return [], np.zeros(0, dtype=bool)
        rendered = template.render(messages, tools)
        found = template.answers(rendered, tools)
        self.counts.without_system += rendered.messages[0]["role"] != messages[0]["role"]
        self.counts.last_only += found.is_last_only
        ids, places = tokens_and_places(self._tokenizer, rendered.text, found.spans)
        end = self._tokenizer.eos_token_id
        trained = np.zeros(len(ids), dtype=bool)
        for start, stop in places:
            trained[start:stop] = True
        if not found.has_end and end is not None:
            n_written = places[-1].stop  # what the template writes after it, a line end, goes
            return [*ids[:n_written], end], np.append(trained[:n_written], True)
        return ids, trained

    def _shortened(self, ids: list[int], trained: np.ndarray) -> list[Example]:
        """Return tokens as an example no longer than the context, if any of it is trained."""
        if self._context is not None and len(ids) > self._context:
            self.counts.cut += 1
            ids, trained = ids[: self._context], trained[: self._context]
            self.counts.untrained += not trained.any()
        if not trained.any():
            return []
        return [Example(np.array(ids, dtype=np.int32), trained)]


def tokens_and_places(
    tokenizer: Any, text: str, spans: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """Return the tokens of a text, and which of them stand in some spans of its characters.

    A token that begins before a span and reaches into it does not belong to it: it is not one that
    the model could have written.

    Args:
        tokenizer: mlx-lm's wrapper.
        text: with the marks of special tokens; no token is added to it.
        spans: of characters, ascending.
    """
    inner = tokenizer._tokenizer  # the wrapper cannot be called
    if inner.is_fast:
        encoded = inner(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )  # not verbose: it would warn of texts longer than the context, which are cut
        ids: list[int] = list(encoded["input_ids"])
        starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
        bounds = [np.searchsorted(starts, span, side="left") for span in spans]
        return ids, [Span(int(start), int(stop)) for start, stop in bounds]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return ids, [Span(*(_n_tokens(tokenizer, text[:at], ids) for at in span)) for span in spans]


def _n_tokens(tokenizer: Any, begin: str, ids: Sequence[int]) -> int:
    """Return how many of the tokens of a text stand before the end of its beginning, at least.

    Where a token reaches over that end, the tokens of the beginning alone part from those of the
    whole text before it; the first that may reach over counts as before.
    """
    own = tokenizer.encode(begin, add_special_tokens=False)
    pairs = enumerate(zip(own, ids, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(own), len(ids)))
    return same if same == len(own) else same + 1


def _to_last_answer(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return messages without those that follow the last answer; none if there is no answer."""
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    return tuple(dict(message) for message in messages[: answers[-1] + 1]) if answers else ()
