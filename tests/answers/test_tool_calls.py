"""Calls of tools, as the models of many publishers write them."""

from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tool_parsers import (
    function_gemma,
    gemma4,
    glm47,
    json_tools,
    kimi_k2,
    kimi_k3,
    laguna,
    longcat,
    minicpm5,
    minimax_m2,
    mistral,
    muse_spark,
    pythonic,
    qwen3_coder,
)

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
        function_gemma.parse_tool_call,
        "call:weather{city:<escape>Rome<escape>,days:2}",
    ),
    (
        glm47.parse_tool_call,
        "weather<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n",
    ),
    (
        laguna.parse_tool_call,
        "weather\n<arg_key>city</arg_key><arg_value>Rome</arg_value>"
        "<arg_key>days</arg_key><arg_value>2</arg_value>",
    ),
    (
        longcat.parse_tool_call,
        "weather\n<longcat_arg_key>city</longcat_arg_key>"
        "<longcat_arg_value>Rome</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>"
        "<longcat_arg_value>2</longcat_arg_value>\n",
    ),
    (
        minimax_m2.parse_tool_call,
        '\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n',
    ),
    (
        minicpm5.parse_tool_call,
        '"weather"><param name="city">Rome</param><param name="days">2</param>',
    ),
    (
        muse_spark.parse_tool_call,
        '<atem:invoke name="weather"><atem:parameter name="city">Rome</atem:parameter>'
        '<atem:parameter name="days">2</atem:parameter></atem:invoke>',
    ),
    (
        kimi_k3.parse_tool_call,
        '<|open|>call tool="weather"<|sep|><|open|>argument key="city" type="string"<|sep|>Rome'
        '<|close|>argument<|sep|><|open|>argument key="days" type="integer"<|sep|>2'
        "<|close|>argument<|sep|><|close|>call<|sep|>",
    ),
    (
        kimi_k3.parse_tool_call,
        '<|open|>call tool="weather"<|sep|><|open|>json type="object"<|sep|>'
        '{"city": "Rome", "days": 2}<|close|>json<|sep|><|close|>call<|sep|>',
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


ALONE = ("tool_calls", "pythonic", "minicpm5", "json_tools")  # lists, or a mark for each call


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        case
        for case in WRITTEN
        if case[0].__module__.split(".")[-1] not in ALONE and not case[1].startswith("[")
    ],
)
def test_no_call_is_lost_where_several_stand_between_two_marks(parse: Any, text: str) -> None:
    for joint in ("", "\n"):
        assert parse_calls(text + joint + text, parse, [TOOL]) == [WEATHER] * 2


def test_what_looks_like_another_call_within_an_argument_is_none() -> None:
    for text, parse in [
        (
            "<function=weather>\n<parameter=city>\n</function>\n<function=x>\n</parameter>\n"
            "</function>",
            qwen3_coder.parse_tool_call,
        ),
        (
            "weather<arg_key>city</arg_key><arg_value></function>\n<function=x></arg_value>",
            glm47.parse_tool_call,
        ),
    ]:
        (call,) = parse_calls(text, parse, [TOOL])
        assert call.arguments == {"city": "</function>\n<function=x>"}


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
