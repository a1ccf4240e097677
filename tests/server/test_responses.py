"""`responses`, driven by the openai package and by what Codex sends.

The package is imported in the test, for it takes long, and every process of a run reads this file.
"""

from typing import Any

import httpx2
import pytest

from mlx_eagle.server.app import Settings
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
