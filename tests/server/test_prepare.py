"""What is refused before an answer begins, and what is not."""

import asyncio
from typing import Any

import mlx.core as mx
import pytest

from served import Held, Served, in_process

CHAT = "/v1/chat/completions"
SHORT: Any = {"messages": [{"role": "user", "content": "Tell all."}], "max_tokens": 2}


def test_what_an_answer_takes_leaves_the_next_one_its_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows, and whatever else it computes with, are free once it is over."""
    limits, held = served.engine.limits, Held(served)
    memory = mx.get_active_memory() + limits.cache_bytes(400)
    monkeypatch.setattr(served.engine, "limits", limits._replace(memory=memory, max_context=None))
    server, used = served.server(), list[mx.array]()

    def use_memory() -> None:
        used.append(mx.zeros(limits.cache_bytes(300), dtype=mx.uint8))
        mx.eval(used)
        held.hold()
        used.clear()
        served.engine.before = None

    served.engine.before = use_memory
    long: Any = SHORT | {"messages": [{"role": "user", "content": "a " * 250}]}

    async def main() -> list[int]:
        async with in_process(server) as client:
            first = asyncio.create_task(client.post(CHAT, json=SHORT))
            while not held.is_held.is_set():
                await asyncio.sleep(0.01)
            second = asyncio.create_task(client.post(CHAT, json=long))
            while not server.desk.n_waiting and not second.done():
                await asyncio.sleep(0.01)
            held.go.set()
            return [(await answer).status_code for answer in (first, second)]

    assert asyncio.run(main()) == [200, 200]


def test_no_request_asks_for_the_whole_vocabulary(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes a tenth of a second where a model knows 150,000 tokens."""
    server, inner = served.server(), type(served.engine.tokenizer._tokenizer)
    function = {"name": "find", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    body = SHORT | {"tools": tools, "tool_choice": "required", "thinking_budget": 9}
    get_vocab, asked = inner.get_vocab, list[int]()

    def note(self: Any) -> Any:
        asked.append(1)
        return get_vocab(self)

    async def main() -> None:
        async with in_process(server) as client:
            assert (await client.post(CHAT, json=body)).status_code == 200
            monkeypatch.setattr(inner, "get_vocab", note)
            assert (await client.post(CHAT, json=body)).status_code == 200

    asyncio.run(main())
    assert asked == []
