"""One object of a data set becomes messages in OpenAI's format, or a text.

Data sets name the same things differently; what is meant is decided here, and what is not clear is
refused.
"""

import json
from typing import Any, NamedTuple

from mlx_eagle.answers.history import THOUGHT_KEYS, text_of
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import listed, quote, quote_value
from mlx_eagle.session.prompt import Message

KEYS = ("messages", "conversations", "prompt", "text")
ANSWERS = ("completion", "response", "answer", "output", "chosen")  # keys beside a question
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class Record(NamedTuple):
    """What an object of a data set says.

    Attributes:
        messages: in OpenAI's format; () for a plain text.
        text: a plain text; "" for messages.
        tools: as JSON schemas.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Message, ...] = ()


def read_record(row: object, where: str) -> Record:
    """Return what an object of a data set says; keys that say nothing of it are passed over.

    Args:
        row: a JSON value.
        where: stands before the message of an error.

    Raises:
        EagleError: if it is no object, holds none of KEYS or two that contradict each other, or a
            part is of another type or empty.
    """
    if not isinstance(row, dict):
        raise EagleError(f"{where}: expected an object, found {type(row).__name__}")
    found = [key for key in KEYS if key in row]
    if not found:
        keys = listed(map(quote, row)) or "nothing"
        raise EagleError(f"{where}: expected one of the keys {', '.join(KEYS)}; found {keys}")
    # Some sets repeat the first question as "prompt" beside the whole conversation.
    if len(found) > 1 and found not in (["messages", "prompt"], ["conversations", "prompt"]):
        raise EagleError(f"{where}: holds {' and '.join(found)}; expected one of them")
    key = found[0]
    if key == "text":
        return Record(text=_said(row["text"], f"{where}: text"))
    at = f"{where}: {key}"
    messages = _of_prompt(row, where) if key == "prompt" else _messages(row[key], at)
    if messages[-1]["role"] == "user":
        messages += _answer(row, where)
    messages = _with_system(row, messages, where)
    if messages[-1]["role"] == "system":
        raise EagleError(f"{where}: ends in a system prompt; expected a question or an answer")
    return Record(tuple(messages), tools=_tools(row.get("tools"), where))


def _of_prompt(row: dict[str, Any], where: str) -> list[Message]:
    """Return the message of a prompt."""
    return [{"role": "user", "content": _said(row["prompt"], f"{where}: prompt")}]


def _answer(row: dict[str, Any], where: str) -> list[Message]:
    """Return the answer that stands beside a question, if there is one."""
    found = [key for key in ANSWERS if row.get(key) is not None]
    if len(found) > 1:
        raise EagleError(f"{where}: holds {' and '.join(found)}; expected one of them")
    return [{"role": "assistant", "content": _said(row[key], f"{where}: {key}")} for key in found]


def _with_system(row: dict[str, Any], messages: list[Message], where: str) -> list[Message]:
    """Return messages with the system prompt that stands beside them, if there is one."""
    if row.get("system") is None:
        return messages
    system = _said(row["system"], f"{where}: system", may_be_empty=True)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages] if system else messages
    if system and system.strip() != messages[0]["content"].strip():
        raise EagleError(
            f"{where}: system is {quote(system)}, but the messages begin with another system "
            "prompt; expected one of them"
        )
    return messages


def _messages(value: Any, where: str) -> list[Message]:
    """Return a list of messages in OpenAI's format."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if isinstance(value, list) else quote_value(value)
        raise EagleError(f"{where} is {found}; expected a list of messages")
    return [_message(part, f"{where}, message {n}") for n, part in enumerate(value, start=1)]


def _message(value: Any, where: str) -> Message:
    """Return one message in OpenAI's format; what else OpenAI's messages have is kept."""
    if not isinstance(value, dict):
        raise EagleError(f"{where} is {quote_value(value)}; expected an object")
    named, key = ("role", "content") if "role" in value else ("from", "value")
    key = next((k for k in (key, "value", "content") if k in value), key)
    role = ROLES.get(value[named]) if isinstance(value.get(named), str) else None
    if role is None:
        raise EagleError(
            f"{where}: {named} is {quote_value(value.get(named))}; expected one of "
            f"{', '.join(ROLES)}"
        )
    _check_calls(value.get("tool_calls"), where)
    may_be_empty = role in ("tool", "system") or bool(value.get("tool_calls"))
    rest = {k: v for k, v in value.items() if k not in ("from", "value") and v is not None}
    for thoughts in THOUGHT_KEYS:
        if not isinstance(rest.get(thoughts, ""), str):
            raise EagleError(f"{where}: {thoughts} is {quote(rest[thoughts])}; expected a text")
    content = _content(value.get(key), f"{where}: {key}", may_be_empty)
    return rest | {"role": role, "content": content}


def _content(value: Any, where: str, may_be_empty: bool) -> str:
    """Return the text of a message, of its parts if it has several."""
    if isinstance(value, list):
        for part in value:
            kind = part.get("type", "text") if isinstance(part, dict) else None
            if kind != "text":
                raise EagleError(f"{where} has a part that is no text ({quote_value(kind)})")
        value = text_of({"content": value})
    if value is None and may_be_empty:
        return ""
    return _said(value, where, may_be_empty=may_be_empty)


def _check_calls(value: Any, where: str) -> None:
    """Refuse calls of tools that are not as OpenAI writes them."""
    calls = value if isinstance(value, list) else []
    functions = [c.get("function") if isinstance(c, dict) else None for c in calls]
    named = [isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions]
    if not isinstance(value, list | None) or not all(named):
        raise EagleError(
            f"{where}: tool_calls is not a list of calls; expected "
            '[{"function": {"name": .., "arguments": ..}}, ..]'
        )


def _tools(value: Any, where: str) -> tuple[Message, ...]:
    """Return the tools of a conversation; some sets have them as JSON in a text."""
    try:
        tools = json.loads(value or "[]") if isinstance(value, str) else value or []
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise EagleError(f"{where}: tools is not a list of JSON schemas")
    return tuple(tools)


def _said(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    """Return a text that says something."""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        found = "empty" if isinstance(value, str) else quote_value(value)
        raise EagleError(f"{where} is {found}; expected a text")
    return value
