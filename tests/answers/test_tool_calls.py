"""Calls of tools, as the models of many publishers write them."""

from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tool_parsers import gemma4, json_tools, kimi_k2, mistral, pythonic, qwen3_coder

from mlx_eagle.answers.tool_calls import (
    Call,
    as_messages,
    parse_calls,
    parse_channel,
    parse_json,
    parser_of_mark,
)

WEATHER = Call("weather", {"city": "Rome", "days": 2})
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
OBJECT = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
WRITTEN: list[tuple[Any, str]] = [
    (parse_json, OBJECT),
    (parse_json, f"[{OBJECT}]"),
    (parse_json, OBJECT.replace("arguments", "parameters")),
    (json_tools.parse_tool_call, f"\n{OBJECT}\n"),
    (mistral.parse_tool_call, f"[{OBJECT}]"),
    (mistral.parse_tool_call, 'weather[ARGS]{"city": "Rome", "days": 2}'),
    (pythonic.parse_tool_call, '[weather(city="Rome", days=2)]'),
    (gemma4.parse_tool_call, 'call:weather{city:<|"|>Rome<|"|>,days:2}'),
    (
        qwen3_coder.parse_tool_call,
        "<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>",
    ),
    (
        parse_channel("<|channel|>commentary to=functions.weather <|constrain|>json"),
        '{"city": "Rome", "days": 2}',
    ),
    (parse_channel(" to=weather<|channel|>commentary"), '{"city": "Rome", "days": 2}'),
]


@pytest.mark.parametrize(("parse", "text"), WRITTEN)
def test_a_call_is_read_in_every_spelling(parse: Any, text: str) -> None:
    assert parse_calls(text, parse, [TOOL]) == [WEATHER]


def test_several_calls_and_the_ids_that_a_model_gives_are_kept() -> None:
    assert parse_calls(f"{OBJECT}; {OBJECT}\n{OBJECT}", parse_json, [TOOL]) == [WEATHER] * 3
    text = (
        "<|tool_call_begin|>functions.weather:7<|tool_call_argument_begin|>"
        '{"city": "Rome", "days": 2}<|tool_call_end|>'
    )
    assert parse_calls(text, kimi_k2.parse_tool_call, [TOOL]) == [
        WEATHER._replace(id="functions.weather:7")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        OBJECT[:-5],
        f"{OBJECT} and more",
        f"[{OBJECT}, 5]",
        "5",
        '{"name": "weather"}',
        '{"name": 5, "arguments": {}}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": "Rome"}',
    ],
)
def test_what_is_no_call_is_none_whatever_the_parser_raises(text: str) -> None:
    assert parse_calls(text, parse_json, [TOOL]) == []
    for parse in (json_tools, mistral, pythonic, gemma4, kimi_k2, qwen3_coder):
        found = parse_calls(text, parse.parse_tool_call, [TOOL])
        assert all(isinstance(call.arguments, dict) for call in found)


def test_what_was_not_offered_is_no_call() -> None:
    other = {"function": {"name": "time"}}
    assert parse_calls(OBJECT, parse_json, None) == parse_calls(OBJECT, parse_json, [other]) == []
    assert parse_calls(OBJECT, parse_json, [other, TOOL["function"]]) == [WEATHER]
    assert parse_calls(f"[{OBJECT}]", parse_json, [{"name": 5}, "weather", {}]) == []


def test_ids_suit_every_template_and_are_the_same_for_the_same_answer() -> None:
    messages = as_messages([WEATHER, WEATHER], "12")
    ids = [message["id"] for message in messages]
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids)
    assert len(set(ids)) == 2
    assert as_messages([WEATHER, WEATHER], "12") == messages
    assert as_messages([WEATHER], "13")[0]["id"] not in ids
    assert as_messages([WEATHER._replace(id="own")], "12")[0]["id"] == "own"


def test_the_models_own_parser_reads_what_follows_its_own_mark() -> None:
    own = SimpleNamespace(has_tool_calling=True, tool_call_start="<call>", tool_parser=len)
    assert parser_of_mark("<call>", own) is len
    assert parser_of_mark("<tool_call>", own) is parse_json
    assert parser_of_mark("[TOOL_CALLS]", own) is mistral.parse_tool_call
