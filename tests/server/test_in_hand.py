"""Bodies are bounded before they reach the queue."""

import asyncio
import threading
from typing import Any

import httpx2
import pytest

from mlx_eagle.server.app import Settings
from served import Served, in_process

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "status"),
    [("completions", 429), ("responses", 503), ("messages/count_tokens", 529), ("/markdown", 429)],
)
def test_bodies_that_wait_to_be_read_are_bounded(path: str, status: int, served: Served) -> None:
    go = threading.Event()
    url = "/page/markdown" if path == "/markdown" else f"/v1/{path}"
    body = SHORT | {"model": "m", "input": "x", "prompt": "x"}
    body = {"text": "x"} if path == "/markdown" else body

    async def main() -> list[httpx2.Response]:
        server = served.server(Settings(bodies=2))
        server._thread.submit(go.wait, 10)
        async with in_process(server) as client:
            tasks = [asyncio.create_task(client.post(CHAT, json=SHORT)) for _ in range(2)]
            await asyncio.sleep(0.01)
            refused = await client.post(url, json=body)
            go.set()
            return [refused, *await asyncio.gather(*tasks), await client.post(url, json=body)]

    refused, *answers = asyncio.run(main())
    assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
    assert [answer.status_code for answer in answers] == [200] * 3
