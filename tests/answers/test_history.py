"""Earlier messages, as templates of several publishers want them."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_eagle.answers.history import (
    as_template_wants,
    names_called_now,
    text_of,
    with_ids,
    with_json_arguments,
    with_single_calls,
)

CALL = {"type": "function", "id": "a", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
ANSWER = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]}


def wanted(message: dict[str, Any], template: str) -> dict[str, Any]:
    tokenizer = SimpleNamespace(chat_template=template)
    before = repr(message)
    (found,) = as_template_wants([message], tokenizer)
    assert repr(message) == before, "the conversation is not changed"
    return found


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{{ message.reasoning_content }}", "reasoning_content"),
        ("{% if message['thinking'] %}", "thinking"),
        ("{% if 'thinking' in message %}{{ message.thinking }}", "thinking"),
        ("{{ message.get('reasoning') }}", "reasoning"),
        ("{% if thinking %}{{ message.content }}", "reasoning_content"),
        ("", "reasoning_content"),
    ],
)
def test_b1_thoughts_stand_where_the_template_looks(template: str, key: str) -> None:
    found = wanted(ANSWER, template)
    assert found[key] == "hm"
    assert {"reasoning_content", "reasoning", "thinking"} & set(found) == {key}
    assert found["content"] == ""


def test_arguments_are_dicts_or_json_as_a_template_wants() -> None:
    text = {"name": "time", "arguments": '{"zone": "UTC"}'}
    message = ANSWER | {"tool_calls": [CALL | {"function": text}]}
    found = wanted(message, "")
    assert found["tool_calls"] == [CALL]
    assert with_json_arguments([found])[0]["tool_calls"][0]["function"] == text
    assert with_json_arguments([{"role": "user", "content": "a"}])[0]["content"] == "a"
    broken = ANSWER | {"tool_calls": [{"function": {"arguments": "no JSON"}}, 5]}
    assert wanted(broken, "")["tool_calls"] == broken["tool_calls"]


def test_gpt_oss_takes_one_text_beside_a_call() -> None:
    found = wanted(ANSWER | {"content": "I look."}, "{{ message.thinking }}")
    assert (found["content"], found["thinking"]) == ("", "hm\n\nI look.")
    assert "tool_calls" not in wanted({"role": "assistant", "tool_calls": []}, "")


def test_results_of_tools_name_the_calls_that_they_answer_in_order() -> None:
    second = CALL | {"id": "b", "function": {"name": "date", "arguments": {}}}
    asked = [ANSWER | {"tool_calls": [CALL, second]}]
    results = [{"role": "tool", "content": "noon"}, {"role": "tool", "content": "today"}]
    assert [(m["tool_call_id"], m["name"]) for m in with_ids(asked, results)] == [
        ("a", "time"),
        ("b", "date"),
    ]
    late = [{"role": "tool", "content": "x", "tool_call_id": "b"}, results[0]]
    assert [(m["tool_call_id"], m["name"]) for m in with_ids(asked, late)] == [
        ("b", "date"),
        ("a", "time"),
    ]
    assert with_ids([], results) == results
    nameless = [{"tool_calls": [{"function": {"name": "time"}}]}]
    assert with_ids(nameless, results[:1]) == [results[0] | {"name": "time"}]


def test_several_calls_become_single_ones_each_with_its_result() -> None:
    second = CALL | {"id": "b", "function": {"name": "date", "arguments": {}}}
    results = [{"role": "tool", "content": id_, "tool_call_id": id_} for id_ in ("b", "a")]
    asked = {"role": "user", "content": "?"}
    told = [asked, ANSWER | {"tool_calls": [CALL, second]}, *results, asked]
    found = with_single_calls(told)
    assert [m.get("content") for m in found] == ["?", None, "a", "", "b", "?"]
    assert [m["tool_calls"] for m in found if "tool_calls" in m] == [[CALL], [second]]
    assert with_single_calls([asked, ANSWER]) == [asked, ANSWER]
    assert names_called_now(told) == set()
    assert names_called_now(told[:-1]) == {"time", "date"}


def test_the_text_of_a_message_is_what_it_says() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, 5, {"text": "b"}]
    contents: list[Any] = ["x", None, parts, 5]
    assert [text_of({"content": content}) for content in contents] == ["x", "", "a\nb", ""]
