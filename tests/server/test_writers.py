"""Orders that clients insist on, from events alone, as no short answer brings them about."""

import json
from typing import Any

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.events import (
    CalledTool,
    CallEnd,
    CallPart,
    CallStart,
    End,
    Event,
    Reading,
    Said,
    Usage,
    Whole,
)
from mlx_eagle.server.ids import ServedModel
from mlx_eagle.server.messages_writer import PATIENT, MessagesWriter
from mlx_eagle.server.refusal import as_json
from mlx_eagle.server.responses_writer import ResponsesWriter

MODEL = ServedModel("m", 0, None, False, True, "f")
STOPPED = End("stop", "", Usage(4, 0, 9), {})


def events_of(lines: bytes) -> list[dict[str, Any]]:
    """Return the JSON of a stream's events."""
    return [json.loads(line[6:]) for line in lines.decode().split("\n") if line.startswith("data:")]


def test_a_block_that_is_open_goes_on_after_a_sign_of_life() -> None:
    asked = Asked(api="messages", prompt="x", client="claude-cli/2.0")
    for opening in (CallStart(0, "call_0", "find"), Said("I ")):
        writer = MessagesWriter(asked, MODEL, 0)
        lines = writer.write(Reading(0, 4)) + writer.write(opening)
        lines += writer.beat(PATIENT + 1, 4, 4)
        more: list[Event] = [Said("look.")]
        if isinstance(opening, CallStart):
            more = [CallPart(0, '{"w": 1}'), CallEnd(0)]
        for event in [*more, STOPPED]:
            lines += writer.write(event)
        kinds = [event["type"] for event in events_of(lines)]
        assert kinds.count("ping") == 1, "after a minute, pings do not count"
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
        assert kinds[-2:] == ["message_delta", "message_stop"]


def test_claude_code_gets_more_than_pings_before_anything_is_said() -> None:
    asked = Asked(api="messages", prompt="x", client="claude-cli/2.0")
    writer = MessagesWriter(asked, MODEL, 0)
    lines = writer.beat(PATIENT + 1, 2, 4) + writer.write(Said("x")) + writer.write(STOPPED)
    blocks = [e for e in events_of(lines) if e["type"] == "content_block_start"]
    assert [block["content_block"]["type"] for block in blocks] == ["thinking", "text"]
    assert [block["index"] for block in blocks] == [0, 1]


def test_a_call_that_was_not_completed_is_incomplete_whatever_follows() -> None:
    half = [CallStart(0, "call_0", "find"), CallPart(0, '{"w"')]
    for following in (Said("x"), CallStart(1, "call_1", "count"), STOPPED):
        writer = ResponsesWriter(Asked(api="responses", prompt="x"), MODEL, 0)
        lines = b"".join(map(writer.write, [*half, following]))
        done = [e["item"] for e in events_of(lines) if e["type"] == "response.output_item.done"]
        assert done[0]["status"] == "incomplete"
    writer = ResponsesWriter(Asked(api="responses", prompt="x"), MODEL, 0)
    lines = b"".join(map(writer.write, [*half, CallPart(0, ": 1}"), CallEnd(0)]))
    assert events_of(lines)[-1]["item"]["status"] == "completed"


def test_every_piece_of_a_calls_arguments_reaches_clients_of_messages() -> None:
    for pieces in (['{"code": "d =', " {}", '\\n"}'], ['{"a": ', "{}", "}"], ["{}"]):
        writer = MessagesWriter(Asked(api="messages", prompt="x"), MODEL, 0)
        parts = [CallPart(0, piece) for piece in pieces]
        written = [CallStart(0, "call_0", "edit"), *parts, CallEnd(0)]
        sent = [e.get("delta", {}) for e in events_of(b"".join(map(writer.write, written)))]
        assert "".join(d.get("partial_json", "") for d in sent) == "".join(pieces)


def test_half_a_character_in_a_call_is_escaped() -> None:
    writer = MessagesWriter(Asked(api="messages", prompt="x"), MODEL, 0)
    call = CalledTool("call_0", "find", '{"w": "\\ud800"}', True)
    sent = as_json(writer.whole(Whole("", "", [call], [], STOPPED)))
    assert json.loads(sent)["content"][0]["input"] == {"w": "\ud800"}
