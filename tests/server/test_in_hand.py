"""Bodies are bounded before they reach the queue."""

import asyncio
import threading
from typing import Any

import httpx2

from mlx_eagle.server.app import Settings
from served import Served, in_process

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
OTHERS: dict[str, tuple[dict[str, Any], int]] = {
    "/v1/completions": ({"prompt": "x"}, 429),
    "/v1/responses": ({"input": "x"}, 503),
    "/v1/messages/count_tokens": (SHORT | {"model": "m"}, 529),
    "/page/markdown": ({"text": "x"}, 429),
}


def test_bodies_that_wait_to_be_read_are_bounded(served: Served) -> None:
    go = threading.Event()

    async def main() -> tuple[dict[str, httpx2.Response], list[httpx2.Response]]:
        server = served.server(Settings(bodies=2))
        server._thread.submit(go.wait, 30)
        async with in_process(server) as client:
            tasks = [asyncio.create_task(client.post(CHAT, json=SHORT)) for _ in range(2)]
            await asyncio.sleep(0.01)
            refused = {
                path: await client.post(path, json=body) for path, (body, _) in OTHERS.items()
            }
            go.set()
            return refused, [*await asyncio.gather(*tasks), await client.post(CHAT, json=SHORT)]

    refused, answers = asyncio.run(main())
    for path, answer in refused.items():
        assert (answer.status_code, answer.headers["retry-after"]) == (OTHERS[path][1], "1"), path
    assert [answer.status_code for answer in answers] == [200] * 3
