"""`responses`, driven by the openai package and by what Codex sends.

The package is imported in the test, for it takes long, and every process of a run reads this file.
"""

import json
from typing import Any

import httpx2
import pytest

from mlx_eagle.server.app import Settings
from mlx_eagle.server.custom_tools import InputStream
from served import Served, chunks

ANSWER = (
    "<think>\nzip\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "find", "arguments": {"w": "zip"}}\n</tool_call>'
)
PARAMETERS = {"type": "object", "properties": {"w": {"type": "string"}}}
TOOL = {"type": "function", "name": "find", "parameters": PARAMETERS}
ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


def without_repeats(kinds: list[str]) -> list[str]:
    return [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]


def test_items_come_in_the_order_that_the_package_accepts(served: Served) -> None:
    from openai import AsyncOpenAI

    served.engine.write(ANSWER)

    async def use(client: httpx2.AsyncClient) -> Any:
        api = AsyncOpenAI(
            api_key="x", base_url="http://localhost:8080/v1", http_client=client, max_retries=0
        )
        asked: Any = {"model": "m", "input": "What does zip do?", "tools": [TOOL]}
        async with api.responses.stream(**asked) as stream:
            events = [event async for event in stream]
            return events, await stream.get_final_response()

    events, final = served.run(use)
    kinds = [event.type for event in events]
    assert without_repeats(kinds) == ORDER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output_text == "I look."
    assert final.output[2].arguments == '{"w": "zip"}'
    assert final.usage.total_tokens == final.usage.input_tokens + final.usage.output_tokens
    assert final.usage.output_tokens_details.reasoning_tokens > 0


def test_what_codex_sends_is_answered(served: Served) -> None:
    served.engine.write('<tool_call>\n{"name": "list", "arguments": {}}\n</tool_call>')
    message = {"type": "message", "role": "developer", "content": [text_part("Be careful.")]}
    body = {
        "model": "m",
        "instructions": "You are Codex.",
        "input": [message, {"role": "user", "content": [text_part("Which files?")]}],
        "tools": [
            TOOL,
            {"type": "namespace", "name": "files", "tools": [TOOL | {"name": "list"}]},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "a",
        "client_metadata": {"x": "y"},
    }
    events = chunks(served.ask("/v1/responses", body))
    assert events[-1]["type"] == "response.completed"
    call = events[-1]["response"]["output"][0]
    assert (call["name"], call["namespace"], call["arguments"]) == ("list", "files", "{}")
    assert events[-1]["response"]["usage"]["input_tokens"] > 0


def text_part(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def test_a_conversation_goes_on_with_calls_and_their_results(served: Served) -> None:
    served.engine.write("It pairs items.")
    items = [
        {"role": "user", "content": "What does zip do?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "pairs"},
    ]
    body = {"model": "m", "input": items, "tools": [TOOL]}
    answer = served.ask("/responses", body).json()
    assert answer["status"] == "completed"
    assert answer["output"][0]["content"][0]["text"] == "It pairs items."
    items[2]["call_id"] = "c2"
    refused = served.ask("/responses", body)
    assert refused.status_code == 400
    assert "belongs to no call" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background"])
def test_what_needs_a_memory_is_refused(name: str, served: Served) -> None:
    body = {"input": "x", name: True if name == "background" else "resp_1"}
    answer = served.ask("/v1/responses", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


def test_a_stream_whose_prompt_is_too_long_fails_as_codex_knows_it(served: Served) -> None:
    body = {"input": "zip " * 3000, "stream": True}

    async def use(client: httpx2.AsyncClient) -> Any:
        answer = await client.post("/v1/responses", json=body)
        return answer, (await client.get("/metrics")).text

    answer, metrics = served.run(use, Settings())
    assert 'mlx_eagle_cancelled_total{why="too_long"} 1.0' in metrics
    events = chunks(answer)
    kinds = [event["type"] for event in events]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
    assert served.ask("/v1/responses", {"input": "zip " * 3000}).status_code == 400


def test_an_answer_that_is_cut_is_incomplete(served: Served) -> None:
    served.engine.write(ANSWER)
    body = {"input": "What does zip do?", "tools": [TOOL], "max_output_tokens": 20}
    answer = served.ask("/v1/responses", body).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


NAMED: dict[str, Any] = {"type": "function", "name": "list", "parameters": PARAMETERS}
PATCH: dict[str, Any] = {"type": "custom", "name": "patch", "description": "Changes files."}


def test_the_package_drives_tools_whose_input_is_text(served: Served) -> None:
    """And hands it back in the next turn, with its result."""
    from openai import AsyncOpenAI

    text = '*** Begin\n+ "a" \\n \t{é😀}\n'
    call = json.dumps({"name": "patch", "arguments": {"input": text}}, ensure_ascii=False)
    served.engine.write(f"<tool_call>\n{call}\n</tool_call>")
    asked: Any = {"model": "m", "input": [{"role": "user", "content": "Go."}], "tools": [PATCH]}

    async def use(client: httpx2.AsyncClient) -> Any:
        api = AsyncOpenAI(
            api_key="x", base_url="http://localhost:8080/v1", http_client=client, max_retries=0
        )
        async with api.responses.stream(**asked) as stream:
            events = [event async for event in stream]
            streamed = await stream.get_final_response()
        whole = await api.responses.create(**asked)
        result = {"type": "custom_tool_call_output", "output": "done"}
        result["call_id"] = whole.output[0].call_id
        items = [*asked["input"], whole.output[0].model_dump(exclude_none=True), result]
        served.engine.write("Good.")
        return events, streamed, whole, await api.responses.create(**asked | {"input": items})

    events, streamed, whole, following = served.run(use)
    for answer in (streamed, whole):
        (item,) = answer.output
        assert (item.type, item.name, item.input) == ("custom_tool_call", "patch", text)
    deltas = [e.delta for e in events if e.type == "response.custom_tool_call_input.delta"]
    assert len(deltas) > 3 and "".join(deltas) == text
    done = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert [event.input for event in done] == [text]
    assert following.output_text == "Good."


def test_a_regex_of_a_text_is_forced_and_other_grammars_are_refused(served: Served) -> None:
    grammar = {"type": "grammar", "syntax": "regex", "definition": "[0-9]{2}|x"}
    tools = [PATCH | {"format": grammar}]
    body: Any = {"input": "x", "tools": tools, "max_output_tokens": 60}
    body["tool_choice"] = {"type": "custom", "name": "patch"}
    for text, status in (("42", 200), ("421", 400)):
        call = json.dumps({"name": "patch", "arguments": {"input": text}})
        served.engine.write(f"<tool_call>\n{call}\n</tool_call>")
        answer = served.ask("/v1/responses", body)
        assert answer.status_code == status, text
        if status == 200:
            assert answer.json()["output"][0]["input"] == text
            assert answer.json()["tool_choice"] == body["tool_choice"]
    grammar["syntax"] = "lark"
    refused = served.ask("/v1/responses", body)
    assert refused.json()["error"]["param"] == "tools[0].format.syntax"


def test_a_custom_tool_has_its_name_alone(served: Served) -> None:
    space = {"type": "namespace", "name": "disk", "tools": [TOOL | {"name": "patch"}]}
    refused = served.ask("/v1/responses", {"input": "x", "tools": [PATCH, space]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    assert "patch names a custom tool and another one" in refused.json()["error"]["message"]


HALVES = "x\ud83d y\ud83d\n\ud83dé\ud83d😀\ude00"  # of characters


@pytest.mark.parametrize("step", [1, 5, 100])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (r'{"input": "a\ud83d\ude00\n\"\\u\u00e9"}', 'a😀\n"\\ué'),
        (r'{"input": "\x"}', r"\x"),
        (r'{"input": "x\ud83d y\ud83d\n\ud83d\u00e9\ud83d\ud83d\ude00\ude00"}', HALVES),
        ('{"other": 1, "input": "x"}', "x"),
        ('{"other": 1}', '{"other": 1}'),
        ("{'input': 1}", "{'input': 1}"),
    ],
)
def test_the_text_of_a_tool_is_read_however_it_was_written(
    step: int, arguments: str, text: str
) -> None:
    stream = InputStream()
    parts = [arguments[at : at + step] for at in range(0, len(arguments), step)]
    assert "".join(map(stream.add, parts)) + stream.finish(is_complete=True) == text == stream.text


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "function", "name": "no"}, "tool_choice"),
        ({"type": "file_search"}, "tool_choice"),
        ({"type": "allowed_tools", "mode": "any", "tools": [TOOL]}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [PATCH]}, "tool_choice.tools[0]"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_by_name(
    choice: dict[str, Any], param: str, served: Served
) -> None:
    refused = served.ask("/v1/responses", {"input": "x", "tools": [TOOL], "tool_choice": choice})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_tool_that_is_chosen_is_called_and_no_other_than_those_that_are_allowed(
    served: Served,
) -> None:
    body: Any = {"input": "x", "tools": [TOOL, NAMED], "max_output_tokens": 60}
    named = [{"type": "function", "name": "list"}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": named}
    for choice, name, status in [
        ({"type": "function", "name": "list"}, "find", 400),
        (allowed, "list", 200),
        (allowed, "find", 400),
    ]:
        call = json.dumps({"name": name, "arguments": {}})
        served.engine.write(f"<tool_call>\n{call}\n</tool_call>")
        answer = served.ask("/v1/responses", body | {"tool_choice": choice})
        assert answer.status_code == status, (choice, name)
    functions = [{"type": "function", "function": {"name": name}} for name in ("list", "find")]
    chat: Any = {"messages": [{"role": "user", "content": "x"}], "tools": functions}
    own = {"mode": "required", "tools": functions[:1]}
    chat |= {"max_tokens": 60, "tool_choice": {"type": "allowed_tools", "allowed_tools": own}}
    assert served.ask("/v1/chat/completions", chat).status_code == 400, "it would call the other"
    chat["tool_choice"] = {"type": "custom", "custom": {"name": "x"}}
    assert "'custom'" in served.ask("/v1/chat/completions", chat).json()["error"]["message"]
    chat["tools"] = [{"type": "custom", "custom": {"name": "x"}}]
    assert "'custom'" in served.ask("/v1/chat/completions", chat).json()["error"]["message"]
