"""Messages of any API as one conversation that chat templates take, the same for the same history.

A prompt is read from its first changed token on, so whatever clients change from turn to turn and
no model needs is left out, and what is said twice is written once.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from mlx_eagle.answers.history import THOUGHTS
from mlx_eagle.server.ids import DIGITS
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.session.prompt import Message

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
SYSTEM_ROLES = ("system", "developer")
SHORT_ID = 9  # characters: what the templates of Mistral insist on
# What Claude Code sends anew every turn, in these exact forms: whose bill, and what is left.
BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*")
COUNTER = re.compile(r"\s*<total_tokens>[^<\n]*</total_tokens>\s*")
OWN_ID = re.compile(rf"(?:call|toolu)_([0-9a-f]{{{DIGITS}}})")


def canonical(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation with one system prompt at its start, and calls as templates want them.

    Args:
        messages: in OpenAI's format, contents as text.

    Raises:
        RefusalError: if a result belongs to no call.
    """
    system = [str(m.get("content") or "") for m in messages if m["role"] in SYSTEM_ROLES]
    system = [text for text in system if text.strip() and not is_noise(text)]
    rest = [m for m in messages if m["role"] not in SYSTEM_ROLES]
    head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return head + _with_calls(rest)


def is_noise(text: str) -> bool:
    """Say whether a system text is one that a client changes every turn and no model needs."""
    return bool(BILLING.fullmatch(text.strip()) or COUNTER.fullmatch(text))


def text_parts(content: Any, where: str) -> str:
    """Return the text of a message's content: a string, parts, or nothing.

    Args:
        content: of pydantic's making: parts have a `type` and perhaps a `text`.
        where: it stands in the body.

    Raises:
        RefusalError: if a part is something else than text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for place, part in enumerate(content):
        if part.type not in TEXT_PARTS:
            here = f"{where}[{place}]"
            raise RefusalError(
                "content", f"{here} is of type {part.type!r}; this model reads text", here
            )
        texts.append(part.text or "")
    return "".join(texts)


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments as a mapping, which most templates want."""
    try:
        loaded = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return {"value": text}
    return loaded if isinstance(loaded, dict) else {"value": loaded}


def template_id(call_id: str) -> str:
    """Return a call's id as templates get it: short, if it is one of ours."""
    own = OWN_ID.fullmatch(call_id)
    return own[1][:SHORT_ID] if own else call_id


def _with_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which every result of a tool names its tool."""
    done: list[Message] = []
    called = dict[str, str]()
    for place, message in enumerate(messages):
        own = {key: value for key, value in message.items() if value is not None}
        if calls := own.get("tool_calls"):
            own["tool_calls"] = [_call(call) for call in calls]
            called |= {c["id"]: c["function"]["name"] for c in own["tool_calls"]}
        if own["role"] == "tool":
            own["tool_call_id"] = call_id = template_id(str(own.get("tool_call_id", "")))
            if call_id not in called:
                raise RefusalError(
                    "invalid",
                    f"the result of a tool, message {place} after the system prompt, belongs to "
                    "no call before it; send the assistant's message with its tool_calls as well",
                    "messages",
                )
            own["name"] = called[call_id]
        if not own.get(THOUGHTS):
            own.pop(THOUGHTS, None)
        done.append(own)
    return done


def _call(call: Message) -> Message:
    """Return one call with a short id and its arguments as a mapping."""
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, dict):
        arguments = arguments_of(str(arguments or ""))
    named = {"name": function["name"], "arguments": arguments}
    return {"type": "function", "id": template_id(str(call.get("id") or "")), "function": named}
