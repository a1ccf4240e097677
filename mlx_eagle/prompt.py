"""What a prompt may be, and its token ids."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from mlx_eagle.errors import EagleError

Message = dict[str, str]
Prompt = str | Sequence[int] | Sequence[Message]


def is_messages(prompt: Any) -> bool:
    """Say whether a prompt is a list of chat messages, for the chat template."""
    return isinstance(prompt, list | tuple) and all(isinstance(m, dict) for m in prompt)


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        prompt: a string or token ids, used as they are, or chat messages for the template.

    Raises:
        EagleError: if the prompt is empty or of another kind, or the chat template is missing or
            refuses the messages.
    """
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        has_bos = bos is not None and prompt.startswith(bos)
        ids: list[int] = tokenizer.encode(prompt, add_special_tokens=not has_bos)
    elif is_messages(prompt):
        ids = _apply_template(tokenizer, list(prompt)) if prompt else []
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


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """Return messages without the first turn after the system prompt; None if none is to spare.

    A turn is everything up to the next question.
    """
    start = 1 if messages and messages[0].get("role") == "system" else 0
    later = range(start + 1, len(messages))
    following = next((i for i in later if messages[i].get("role") == "user"), None)
    return None if following is None else [*messages[:start], *messages[following:]]


def _apply_template(tokenizer: Any, messages: list[Any]) -> list[int]:
    """Return the token ids of chat messages."""
    if not tokenizer.has_chat_template:
        raise EagleError(
            "this target has no chat template, so chat messages cannot be encoded; "
            "give the prompt as a string (on the command line: --raw)"
        )
    try:
        ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    except (TemplateError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EagleError(
            f"the target's chat template refuses the messages: {error}; a system prompt or "
            "the order of the roles may be what it does not take"
        ) from error
    return ids
