"""Earlier messages as one model's chat template wants them.

Messages here are in OpenAI's format, with "reasoning_content" for thoughts and the arguments of
calls as a dict. Templates name thoughts differently, and few take arguments as JSON text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_eagle.answers.answer_format import THOUGHTS, template_text

# Under which key a template may look for thoughts; the first that it names counts.
THOUGHT_KEYS = (THOUGHTS, "reasoning", "thinking", "thought")

Message = dict[str, Any]


def as_template_wants(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[Message]:
    """Return messages with thoughts and calls as the chat template reads them.

    Args:
        messages: in OpenAI's format; not changed.
        tokenizer: mlx-lm's wrapper.
    """
    key = _thought_key(template_text(tokenizer))
    return [_wanted(dict(message), key) for message in messages]


def with_json_arguments(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose calls have their arguments as JSON text, for templates that want it."""
    return [
        message | {"tool_calls": [_call(call, json.dumps) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def with_ids(asked: Sequence[Message], answers: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return results of tools that say which call they belong to: one for each, in order.

    Args:
        asked: the conversation so far.
        answers: messages that follow; what they say themselves stays.
    """
    calls = list(asked[-1].get("tool_calls") or []) if asked else []
    results = []
    for message in answers:
        known: Message = {}
        if message.get("role") == "tool" and calls:
            call = calls.pop(0)
            known = {"tool_call_id": call["id"], "name": call["function"]["name"]}
        results.append(known | dict(message))
    return results


def _thought_key(template: str) -> str:
    """Return the key under which a template looks for thoughts."""
    for key in THOUGHT_KEYS:
        if re.search(rf"\.{key}\b|\[['\"]{key}['\"]\]|['\"]{key}['\"] (not )?in\b", template):
            return key
        if re.search(rf"\.get\(['\"]{key}['\"]", template):
            return key
    return THOUGHTS


def _wanted(message: Message, key: str) -> Message:
    """Return one message with thoughts under `key`, no content as "", and arguments as dicts."""
    for other in (THOUGHTS, "reasoning"):
        if other != key and isinstance(message.get(other), str):
            message[key] = message.pop(other)
    if message.get("content") is None:
        message["content"] = ""
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
        return message
    message["tool_calls"] = [_call(call, _loaded) for call in message["tool_calls"]]
    if key == "thinking" and message.get(key) and message["content"]:
        # gpt-oss's template takes one of both beside a call, and calls either of them analysis.
        message[key] += f"\n\n{message['content']}"
        message["content"] = ""
    return message


def _call(call: Any, change: Any) -> Any:
    """Return a call of a tool with its arguments changed."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return call | {"function": function | {"arguments": change(function["arguments"])}}


def _loaded(arguments: Any) -> Any:
    """Return arguments as a dict, if they are the JSON of one."""
    if not isinstance(arguments, str):
        return arguments
    try:
        loaded = json.loads(arguments)
    except ValueError:
        return arguments
    return loaded if isinstance(loaded, dict) else arguments
