"""A prompt becomes token ids: text, ids or chat messages."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from jinja2 import TemplateError

from mlx_eagle.answers.history import (
    as_template_wants,
    names_called_now,
    with_json_arguments,
    with_short_texts,
    with_single_calls,
    with_unnamed_calls,
)
from mlx_eagle.errors import EagleError

REFUSALS = (TemplateError, ValueError, LookupError, TypeError, AttributeError)  # of a template
AT_ONCE = 4  # turns that are left out together, where there are many

Message = dict[str, Any]


@dataclass(frozen=True)
class EncodedMessages:
    """Chat messages and the token ids that the template made of them, on another thread perhaps."""

    messages: Sequence[Message]
    ids: Sequence[int]


Prompt = str | Sequence[int] | Sequence[Message] | EncodedMessages


class Template(NamedTuple):
    """What a chat template is given besides the messages.

    Attributes:
        args: names and values; those that it does not know have no effect.
        tools: functions that an answer may call, as JSON schemas.
    """

    args: Mapping[str, Any] = MappingProxyType({})
    tools: Sequence[Mapping[str, Any]] | None = None


PLAIN_TEMPLATE = Template()


def is_messages(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Say whether a prompt is a list of chat messages, for the chat template."""
    return isinstance(prompt, list | tuple) and all(isinstance(m, dict) for m in prompt)


def messages_of(prompt: Prompt) -> Sequence[Message]:
    """Return the chat messages of a prompt; none where it is text or token ids."""
    if isinstance(prompt, EncodedMessages):
        return prompt.messages
    return prompt if is_messages(prompt) else ()


def encode(tokenizer: Any, prompt: Prompt, template: Template = PLAIN_TEMPLATE) -> list[int]:
    """Return the token ids of a prompt.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        prompt: a string or token ids, used as they are, or chat messages for the template, encoded
            already perhaps; an answer as the last of them is begun, and goes on.
        template: what the chat template is given besides.

    Raises:
        EagleError: if the prompt is empty or of another kind, or the chat template is missing or
            refuses the messages.
    """
    if isinstance(prompt, EncodedMessages):
        return list(prompt.ids)
    if isinstance(prompt, str):
        _check_text(prompt)
        bos = tokenizer.bos_token
        has_bos = bos is not None and prompt.startswith(bos)
        ids: list[int] = tokenizer.encode(prompt, add_special_tokens=not has_bos)
    elif is_messages(prompt):
        ids = _apply_template(tokenizer, list(prompt), template) if prompt else []
    elif isinstance(prompt, list | tuple) and all(_is_id(i) for i in prompt):
        ids = [operator.index(i) for i in prompt]
    else:
        raise EagleError(
            f"the prompt is {type(prompt).__name__}; give a string, a list of token ids (int) "
            "or a list of chat messages (dict)"
        )
    if not ids:
        raise EagleError("the prompt is empty; give at least one token")
    return ids


def encode_chat_or_text(tokenizer: Any, messages: Sequence[Message], text: str) -> list[int]:
    """Return the token ids of messages, or of a text where the target has no chat template.

    Raises:
        EagleError: as `encode` does.
    """
    return encode(tokenizer, list(messages) if tokenizer.has_chat_template else text)


def check_ids(ids: Sequence[int], n_tokens: int | None) -> None:
    """Refuse tokens that the target does not know.

    Args:
        ids: of a prompt.
        n_tokens: tokens that the target knows; None where that is not clear.

    Raises:
        EagleError: naming the first of them.
    """
    foreign = [i for i in ids if i < 0 or (n_tokens is not None and i >= n_tokens)]
    if foreign:
        raise EagleError(
            f"the prompt holds token {foreign[0]}, but the target has {n_tokens} tokens; "
            "encode the prompt with the target's own tokenizer"
        )


def turns_dropped(messages: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield messages without ever more of the oldest turns; the system prompt stays.

    A turn is everything up to the next question. Several go at a time, so that the turns after
    begin with the same messages and what was computed of them is used again.
    """
    start = 1 if messages and messages[0].get("role") == "system" else 0
    questions = [i for i, m in enumerate(messages) if i > start and m.get("role") == "user"]
    step = AT_ONCE if len(questions) > 2 * AT_ONCE else 1
    for first in [*questions[step - 1 :: step], *questions[-1:]]:
        yield [*messages[:start], *messages[first:]]


def template_forms(tokenizer: Any, messages: Sequence[Message]) -> list[list[Message]]:
    """Return messages in the forms that a chat template may want, the usual one first.

    Args:
        tokenizer: mlx-lm's wrapper.
        messages: in OpenAI's format; not changed.
    """
    forms = [as_template_wants(messages, tokenizer)]
    if any(message.get("tool_calls") for message in messages):
        single = with_single_calls(forms[0])
        forms += [with_json_arguments(forms[0]), single, with_json_arguments(single)]
    return forms


def _is_id(value: Any) -> bool:
    """Say whether a value is an integer, of NumPy perhaps, and no bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_text(text: str) -> None:
    """Refuse text that no tokenizer can read: half a character, as broken bytes leave behind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EagleError(
            f"the prompt is not Unicode text: character {error.start + 1} is half of a pair "
            f"(U+{ord(text[error.start]):04X}); was it read with another encoding?"
        ) from error


def _apply_template(tokenizer: Any, messages: list[Any], template: Template) -> list[int]:
    """Return the token ids of chat messages."""
    for message in messages:
        for part in message.values():
            if isinstance(part, str):
                _check_text(part)
    if not tokenizer.has_chat_template:
        raise EagleError(
            "this target has no chat template, so chat messages cannot be encoded; "
            "give the prompt as a string (on the command line: --raw)"
        )
    # An answer that is begun goes on without a new one being opened.
    goes_on = messages[-1].get("role") == "assistant"
    mode = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
    own = {"tools": list(template.tools)} if template.tools else {}
    return _rendered(tokenizer, messages, mode | own | dict(template.args))


def _rendered(tokenizer: Any, messages: list[Message], options: dict[str, Any]) -> list[int]:
    """Return the token ids of messages in the first form that the template takes as a whole."""
    names, reasons = names_called_now(messages), list[str]()
    for form in template_forms(tokenizer, messages):
        try:
            ids: list[int] = tokenizer.apply_chat_template(form, **options)
        except REFUSALS as error:
            reasons.append(
                f"refuses the messages: {error}; a system prompt or the order of the roles may be "
                "what it does not take"
            )
            continue
        if not names or _says_calls(tokenizer, form, options):
            return ids
        reasons.append("leaves out the calls of tools, so the model would not know what it called")
    raise EagleError(f"the target's chat template {reasons[0]}")


def _says_calls(tokenizer: Any, form: list[Message], options: dict[str, Any]) -> bool:
    """Say whether a template names the tools that were called since the last question.

    Tools that are offered are named as well: so with the calls' names left out, each must be there
    less often. What messages say is no matter, and long: it is left out at first.
    """
    as_text = options | {"tokenize": False}
    for messages in (with_short_texts(form), form):
        text = without = ""
        with suppress(*REFUSALS):
            text = tokenizer.apply_chat_template(messages, **as_text)
            without = tokenizer.apply_chat_template(with_unnamed_calls(messages), **as_text)
        if all(text.count(name) > without.count(name) for name in names_called_now(form)):
            return True
    return False
