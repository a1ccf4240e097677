"""Earlier messages as one model's chat template wants them.

Messages here are in OpenAI's format, with "reasoning_content" for thoughts and the arguments of
calls as a dict. Templates name thoughts differently, and few take arguments as JSON text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

THOUGHTS = "reasoning_content"  # the key of thoughts in messages, here and in most templates
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


def with_single_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages with one call each, followed by its result: several templates insist."""
    single: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            single.append(message)
            continue
        n_results = next((n for n, m in enumerate(rest) if m.get("role") != "tool"), len(rest))
        results, rest = rest[:n_results], rest[n_results:]
        for place, call in enumerate(calls):
            said = message if place == 0 else {"role": "assistant", "content": ""}
            mine = [m for m in results if m.get("tool_call_id") == call.get("id")]
            single += [said | {"tool_calls": [call]}, *mine]
    return single


def with_unnamed_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose calls have the name "-", to see where a template writes their own."""
    return [
        message | {"tool_calls": [_unnamed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def with_short_texts(messages: Sequence[Message]) -> list[Message]:
    """Return messages that say and think "-" where they say or think anything, but for the last."""
    keys = ("content", *THOUGHT_KEYS)
    short = [
        m | {key: "-" for key in keys if isinstance(m.get(key), str) and m[key]} for m in messages
    ]
    return [*short[:-1], *messages[-1:]]


def with_ids(asked: Sequence[Message], answers: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return results of tools that say which call they belong to.

    Args:
        asked: the conversation so far.
        answers: messages that follow; results that name no call answer the calls in order, and
            what they say themselves stays.
    """
    calls = list(asked[-1].get("tool_calls") or []) if asked else []
    results = []
    for message in answers:
        named = message.get("tool_call_id")
        fit = [c for c in calls if named is None or c.get("id") == named]
        known: Message = {}
        if message.get("role") == "tool" and fit:
            calls.remove(fit[0])
            function = fit[0].get("function") or {}
            known = {"tool_call_id": fit[0].get("id"), "name": function.get("name")}
        results.append({k: v for k, v in known.items() if v is not None} | dict(message))
    return results


def template_text(tokenizer: Any) -> str:
    """Return the source of a chat template, of all if there are several; "" if there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return "\n".join(map(str, template.values()))
    return template if isinstance(template, str) else ""


def text_of(message: Mapping[str, Any]) -> str:
    """Return what a message says: its text, or the texts among its parts; "" if there is none."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def names_called_now(messages: Sequence[Message]) -> set[str]:
    """Return the names of the tools that were called since the last question."""
    asked = [n for n, message in enumerate(messages) if message.get("role") == "user"]
    since = messages[asked[-1] if asked else 0 :]
    calls = [call for message in since for call in message.get("tool_calls") or []]
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    return {str(function.get("name")) for function in functions if isinstance(function, dict)}


def _unnamed(call: Any) -> Any:
    """Return a call under the name "-", also in its id: some templates write that alone."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    name = str(call["function"].get("name"))
    own_id = {"id": str(call["id"]).replace(name, "-")} if call.get("id") else {}
    return call | own_id | {"function": call["function"] | {"name": "-"}}


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
