"""`messages` and `count_tokens`, driven by the anthropic package.

It is imported in the tests, for it takes long, and every process of a run reads this file.
"""

from typing import Any

import httpx2
import pytest

from mlx_eagle.server.app import Settings
from mlx_eagle.server.messages_body import MessagesBody, read_messages
from mlx_eagle.server.prepare import Preparer
from served import Served, chunks

TOOLS: Any = [
    {
        "name": "find",
        "description": "Looks something up.",
        "input_schema": {"type": "object", "properties": {"w": {"type": "string"}}},
    }
]
ASKED: Any = [{"role": "user", "content": "What does zip do?"}]
ANSWER = (
    "<think>\nzip\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "find", "arguments": {"w": "zip"}}\n</tool_call>'
)


def claude(served: Served, use: Any, **options: Any) -> Any:
    """Return what `use` makes of the package's client."""
    from anthropic import AsyncAnthropic

    async def run(client: httpx2.AsyncClient) -> Any:
        api = AsyncAnthropic(
            api_key="x", base_url="http://localhost:8080", http_client=client, max_retries=0
        )
        return await use(api)

    return served.run(run, Settings(**options))


def test_a_budget_of_thoughts_reaches_the_engine_if_its_model_thinks(served: Served) -> None:
    body: Any = {"model": "m", "max_tokens": 9, "messages": ASKED}
    body["thinking"] = {"type": "enabled", "budget_tokens": 2}
    asked = read_messages(MessagesBody.model_validate(body))
    preparer = Preparer(served.engine, {})
    assert preparer.prepare(asked).options["thinking_budget"] == 2
    preparer._thinks = False
    assert "thinking_budget" not in preparer.prepare(asked).options, "clients send it to all models"


def test_blocks_come_in_order_and_usage_counts_nothing_twice(served: Served) -> None:
    served.engine.write(ANSWER)

    async def use(api: Any) -> Any:
        asked: Any = {"model": "m", "max_tokens": 200, "messages": ASKED, "tools": TOOLS}
        async with api.messages.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            message = await stream.get_final_message()
        return (
            kinds,
            message,
            await api.messages.count_tokens(model="m", messages=ASKED, tools=TOOLS),
        )

    kinds, message, counted = claude(served, use)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    thought, said, called = message.content
    assert thought.thinking == "zip"
    assert said.text == "I look."
    assert (called.name, called.input) == ("find", {"w": "zip"})
    assert called.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert usage.output_tokens == len(served.engine.script or [])


def test_an_answer_at_once_says_what_its_stream_says(served: Served) -> None:
    served.engine.write(ANSWER)

    async def use(api: Any) -> Any:
        return await api.messages.create(model="m", max_tokens=200, messages=ASKED, tools=TOOLS)

    message = claude(served, use)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.stop_reason == "tool_use"


def test_a_stop_string_is_named(served: Served) -> None:
    served.engine.write("one two three four")

    async def use(api: Any) -> Any:
        return await api.messages.create(
            model="m", max_tokens=50, messages=ASKED, stop_sequences=["nine", "three"]
        )

    message = claude(served, use)
    assert message.content[0].text == "one two "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "three")


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_know(
    served: Served,
) -> None:
    from anthropic import BadRequestError

    async def use(api: Any) -> Any:
        long: Any = [{"role": "user", "content": "zip " * 3000}]
        with pytest.raises(BadRequestError) as caught:
            await api.messages.create(model="m", max_tokens=9, messages=long)
        n_tokens = (await api.messages.count_tokens(model="m", messages=long)).input_tokens
        return caught.value.body, n_tokens

    body, n_tokens = claude(served, use)
    assert body["error"]["message"] == f"prompt is too long: {n_tokens} tokens > 2047 maximum"
    assert body["error"]["type"] == "invalid_request_error"


def test_a_conversation_goes_on_with_results_of_tools(served: Served) -> None:
    served.engine.write("It pairs items.")
    history: Any = [
        *ASKED,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "of another model"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_" + "a" * 24, "name": "find", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_" + "a" * 24, "content": "pairs"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    body = {"model": "m", "max_tokens": 50, "messages": history, "tools": TOOLS}
    answer = served.ask("/v1/messages?beta=true", body).json()
    assert answer["content"] == [{"type": "text", "text": "It pairs items."}]
    assert answer["stop_reason"] == "end_turn"


def test_what_claude_code_changes_every_turn_changes_no_prompt(served: Served) -> None:
    def count(billing: str, left: int) -> int:
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={billing};"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ]
        counter = f"<total_tokens>{left} tokens left</total_tokens>"
        messages = [*ASKED, {"role": "system", "content": counter}]
        body = {"model": "m", "messages": messages, "system": system}
        tokens: int = served.ask("/v1/messages/count_tokens", body).json()["input_tokens"]
        return tokens

    plain = {"model": "m", "messages": ASKED, "system": "Be brief."}
    want = served.ask("/v1/messages/count_tokens", plain).json()["input_tokens"]
    assert count("a1b2c", 100_000) == count("1", 7) == want


def test_a_fault_within_a_stream_is_an_event_and_the_next_request_works(served: Served) -> None:
    def fail() -> None:
        raise RuntimeError("something about the prompt")

    served.engine.before = fail
    body = {"model": "m", "max_tokens": 9, "messages": ASKED, "stream": True}
    events = chunks(served.ask("/v1/messages", body))
    served.engine.before = None
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    assert "prompt" not in events[-1]["error"]["message"]
    assert chunks(served.ask("/v1/messages", body))[-1]["type"] == "message_stop"


def test_tools_of_the_api_itself_are_refused_in_words_that_let_clients_go_on(
    served: Served,
) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    body = {"model": "m", "max_tokens": 9, "messages": ASKED, "tools": tools}
    answer = served.ask("/v1/messages", body)
    assert answer.status_code == 400
    assert "Input tag 'web_search_20250305'" in answer.json()["error"]["message"]
    assert answer.headers["request-id"] == answer.json()["request_id"]


def test_a_call_whose_arguments_no_object_can_hold_is_an_error_and_no_silence(
    served: Served,
) -> None:
    """A number beyond all floats is JSON by its grammar; half of it was sent when it shows.

    The request may be sent again, which finds the rows of its prompt.
    """
    served.worker.call(served.engine.keep_prefixes, 1 << 30)
    served.engine.write('<tool_call>\n{"name": "find", "arguments": {"w": 1e999}}\n</tool_call>')
    tools = [{"name": "find", "input_schema": {"type": "object"}}]
    body: Any = {"model": "m", "max_tokens": 60, "messages": ASKED, "tools": tools}
    refused = served.ask("/v1/messages", body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (500, "api_error")
    assert "no JSON object" in refused.json()["error"]["message"]
    assert "x-should-retry" not in refused.headers
    assert served.engine.prefix_cache is not None
    assert served.worker.call(served.engine.prefix_cache.held)[0] == 1
    last = chunks(served.ask("/v1/messages", body | {"stream": True}))[-1]
    assert (last["type"], last["error"]) == ("error", refused.json()["error"])
