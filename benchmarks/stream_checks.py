"""Whether the streams of the server's APIs are well-formed, also as far as one was read."""

import json
from collections.abc import Callable
from typing import Any

Events = list[tuple[str, Any]]  # names ("" where there is none) and JSON


def read_events(body: bytes) -> Events:
    """Return the events of a stream that are complete; "[DONE]" is text.

    Raises:
        ValueError: if one of them is no event.
    """
    events: Events = []
    *blocks, _ = body.split(b"\n\n")
    for block in blocks:
        lines = [line for line in block.decode().split("\n") if not line.startswith(":")]
        if not lines:
            continue
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else ""
        if len(lines) != 1 or not lines[0].startswith("data: "):
            raise ValueError(f"a block of {len(lines)} lines")
        text = lines[0].removeprefix("data: ")
        events.append((name, text if text == "[DONE]" else json.loads(text)))
    return events


def said(api: str, body: bytes) -> str:
    """Return the text that a stream has said so far."""
    return "".join(_piece(api, data) for _, data in read_events(body) if data != "[DONE]")


def _piece(api: str, data: Any) -> str:
    """Return what one event says."""
    if api in ("chat", "completions"):
        choice = (data.get("choices") or [{}])[0]
        return choice.get("text") or choice.get("delta", {}).get("content") or ""
    if data["type"] == "response.output_text.delta":
        return str(data["delta"])
    return str(data["delta"].get("text", "")) if data["type"] == "content_block_delta" else ""


def check_chat(body: bytes, is_whole: bool) -> list[str]:
    """Return what is wrong with a stream of `chat/completions` or `completions`."""
    events = [data for _, data in read_events(body)]
    faults = ["an error within it" for data in events if "error" in data]
    chunks = [data for data in events if data != "[DONE]" and data.get("choices")]
    roles = sum("role" in chunk["choices"][0].get("delta", {}) for chunk in chunks)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]]
    if roles > 1:
        faults.append(f"the role was said {roles} times")
    if len({chunk["id"] for chunk in chunks}) > 1:
        faults.append("names of the answer differ")
    if is_whole and (len(reasons) != 1 or events[-1] != "[DONE]"):
        faults.append(f"ended with {len(reasons)} finish reasons and {events[-1:]}")
    return faults


def check_responses(body: bytes, is_whole: bool) -> list[str]:
    """Return what is wrong with a stream of `responses`."""
    events = read_events(body)
    kinds = [data["type"] for _, data in events]
    faults = []
    if [data["sequence_number"] for _, data in events] != list(range(len(events))):
        faults.append("numbers are not in order")
    if any(name != data["type"] for name, data in events):
        faults.append("an event is called otherwise than it says")
    if kinds[:1] not in ([], ["response.created"]):
        faults.append(f"begins with {kinds[0]}")
    if is_whole and kinds[-1] not in ("response.completed", "response.incomplete"):
        faults.append(f"ends with {kinds[-1]}")
    added, done = (kinds.count(f"response.output_item.{word}") for word in ("added", "done"))
    if not done <= added <= done + 1 or (is_whole and added != done):
        faults.append(f"{added} items begun, {done} done")
    return faults


def check_messages(body: bytes, is_whole: bool) -> list[str]:
    """Return what is wrong with a stream of `messages`."""
    events = read_events(body)
    kinds = [data["type"] for _, data in events]
    faults = ["an error within it"] if "error" in kinds else []
    if kinds[:1] not in ([], ["message_start"]):
        faults.append(f"begins with {kinds[0]}")
    if is_whole and kinds[-2:] != ["message_delta", "message_stop"]:
        faults.append(f"ends with {kinds[-2:]}")
    started, stopped = (kinds.count(f"content_block_{word}") for word in ("start", "stop"))
    if not stopped <= started <= stopped + 1 or (is_whole and started != stopped):
        faults.append(f"{started} blocks begun, {stopped} ended")
    return faults


CHECKS: dict[str, Callable[[bytes, bool], list[str]]] = {
    "chat": check_chat,
    "completions": check_chat,
    "responses": check_responses,
    "messages": check_messages,
}
