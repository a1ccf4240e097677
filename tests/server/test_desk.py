"""Requests wait fairly, are refused where too many wait, and end when their clients go."""

import asyncio
import gc
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from mlx_eagle.server.app import Server, Settings
from mlx_eagle.server.events import CallPart, Reading, Said, Thought
from mlx_eagle.server.outbox import MANY, Outbox
from mlx_eagle.session import prefix_files
from mlx_eagle.tree import TreeShape
from served import Held, Served, chunks, close_files, in_process, on_socket

CHAT = "/v1/chat/completions"
LONG: Any = {"messages": [{"role": "user", "content": "Tell all."}], "max_tokens": 1500}
MIDDLE: Any = LONG | {"max_tokens": 80}
SHORT: Any = LONG | {"max_tokens": 2}


def test_an_outbox_that_nobody_reads_joins_texts_and_loses_none() -> None:
    async def main() -> list[Any]:
        outbox = Outbox()
        for n in range(1000):
            outbox.put(Said(str(n)))
        for _ in range(1000):
            outbox.put(Thought("t"))
        outbox.put(CallPart(0, "x"))
        outbox.put(CallPart(1, "y"))
        outbox.put(Reading(1, 2))
        return await outbox.take()

    events = asyncio.run(main())
    assert len(events) < MANY + 8
    said = "".join(event.text for event in events if isinstance(event, Said))
    assert said == "".join(map(str, range(1000)))
    assert [event for event in events if isinstance(event, CallPart)] == [
        CallPart(0, "x"),
        CallPart(1, "y"),
    ]


@pytest.mark.parametrize("n_steps", range(4))
def test_who_waits_for_events_can_be_cancelled_at_any_moment(n_steps: int) -> None:
    async def main() -> None:
        outbox = Outbox()

        async def read() -> None:
            while True:
                await outbox.take(5)

        task = asyncio.create_task(read())
        await asyncio.sleep(0.001)
        outbox.put(Said("x"))
        for _ in range(n_steps):  # of the event loop, until the waiting one has woken
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        assert done

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "status"), [("chat/completions", 429), ("responses", 503), ("messages", 529)]
)
def test_too_many_are_refused_as_clients_of_each_api_try_again(
    path: str, status: int, served: Served
) -> None:
    held = Held(served)

    async def main() -> list[httpx2.Response]:
        async with in_process(served.server(Settings(queue=2))) as client:
            tasks = [asyncio.create_task(client.post(CHAT, json=SHORT)) for _ in range(3)]
            while not held.is_held.is_set():
                await asyncio.sleep(0.01)
            body = SHORT | {"model": "m", "input": "x"}
            refused = await client.post(f"/v1/{path}", json=body)
            held.go.set()
            return [refused, *await asyncio.gather(*tasks)]

    refused, *answers = asyncio.run(main())
    assert refused.status_code == status
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [answer.status_code for answer in answers] == [200] * 3


def test_of_many_at_once_those_that_may_wait_are_answered(served: Served) -> None:
    held = Held(served)

    async def main() -> list[httpx2.Response]:
        async with in_process(served.server(Settings(queue=4))) as client:
            tasks = [asyncio.create_task(client.post(CHAT, json=SHORT)) for _ in range(20)]
            while sum(task.done() for task in tasks) < 15:
                await asyncio.sleep(0.01)
            held.go.set()
            return await asyncio.gather(*tasks)

    answers = asyncio.run(main())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 15
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert [a.status_code for a in answers if a not in refused] == [200] * 5


def test_a_client_that_was_refused_asks_again_when_it_was_told_to(served: Served) -> None:
    held, server = Held(served), served.server(Settings(queue=0))
    server.desk._seconds.add(0.1)
    with on_socket(server) as port:
        url = f"http://127.0.0.1:{port}/v1"
        first = openai.OpenAI(api_key="x", base_url=url, max_retries=0)
        ask = threading.Thread(target=lambda: first.chat.completions.create(model="m", **SHORT))
        ask.start()
        assert held.is_held.wait(10)
        with pytest.raises(openai.RateLimitError):
            first.chat.completions.create(model="m", **SHORT)
        threading.Timer(0.2, held.go.set).start()
        again = openai.OpenAI(api_key="x", base_url=url, max_retries=1)
        done = again.chat.completions.create(model="m", **SHORT)
        ask.join(10)
    assert done.choices[0].finish_reason == "length"


def test_clients_get_their_turn_one_after_another(served: Served) -> None:
    held, order = Held(served), list[str]()

    async def ask(client: httpx2.AsyncClient, who: str) -> None:
        await client.post(CHAT, json=SHORT, headers={"x-session-id": who[0]})
        order.append(who)

    async def main() -> None:
        async with in_process(served.server()) as client:
            tasks = []
            for who in ("a0", "a1", "a2", "b1", "b2", "c1"):
                tasks.append(asyncio.create_task(ask(client, who)))
                await asyncio.sleep(0.02)
            held.go.set()
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == ["a0", "a1", "b1", "c1", "a2", "b2"]


def test_what_an_answer_held_is_let_go_at_its_end(served: Served) -> None:
    server, jobs = served.server(), list[Any]()

    def note() -> None:
        assert server.desk.now is not None
        jobs.append(weakref.ref(server.desk.now.job))

    served.engine.before = note

    async def main() -> None:
        async with in_process(server) as client:
            assert (await client.post(CHAT, json=SHORT)).status_code == 200
            await idle(server)

    gc.disable()
    try:
        asyncio.run(main())
        served.worker.call(int)
        assert [job() for job in jobs] == [None]
    finally:
        gc.enable()


async def idle(server: Server) -> float:
    """Return after how many seconds nothing runs or waits."""
    started = time.monotonic()
    while server.desk.now is not None or server.desk.n_waiting:
        await asyncio.sleep(0.005)
        assert time.monotonic() - started < 30
    return time.monotonic() - started


async def leave(client: httpx2.AsyncClient, url: str, when: Callable[[], bool]) -> None:
    """Ask for a long answer, and go away at a moment of the server's."""
    asked = asyncio.create_task(client.post(url, json=LONG, timeout=30))
    while not when():
        await asyncio.sleep(0.005)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_ends_when_its_client_goes(streams: bool, served: Served) -> None:
    server = served.server()

    async def main(port: int) -> None:
        url = f"http://127.0.0.1:{port}{CHAT}"
        async with httpx2.AsyncClient() as client:
            if streams:
                async with client.stream("POST", url, json=LONG | {"stream": True}) as response:
                    lines = response.aiter_lines()
                    for _ in range(8):
                        await anext(lines)
            else:
                await leave(client, url, lambda: server.desk.now is not None)
            await idle(server)

    with on_socket(server) as port:
        asyncio.run(main(port))
        text = server.meters.text().decode()
    assert 'mlx_eagle_cancelled_total{why="client"} 1.0' in text
    assert "mlx_eagle_generation_tokens_total 0.0" in text


def test_a_client_that_goes_while_it_waits_is_counted_as_one_that_went(served: Served) -> None:
    held, server = Held(served), served.server()

    async def main(port: int) -> None:
        url = f"http://127.0.0.1:{port}{CHAT}"
        async with httpx2.AsyncClient() as client:
            first = asyncio.create_task(client.post(url, json=SHORT))
            while not held.is_held.is_set():
                await asyncio.sleep(0.01)
            await leave(client, url, lambda: server.desk.n_waiting == 1)
            while server.desk.n_waiting:
                await asyncio.sleep(0.005)
            held.go.set()
            assert (await first).status_code == 200
            await idle(server)

    with on_socket(server) as port:
        asyncio.run(main(port))
        text = server.meters.text().decode()
    assert 'mlx_eagle_cancelled_total{why="client"} 1.0' in text
    assert 'why="stopping"' not in text


def test_a_client_that_reads_nothing_holds_up_nobody(served: Served) -> None:
    from openai import OpenAI  # it takes long, and every process of a run reads this file

    with on_socket(served.server()) as port:
        body = httpx2.Request("POST", "http://x", json=MIDDLE | {"stream": True}).content
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(head.encode() + body)
            api = OpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
            done = api.chat.completions.create(model="m", **SHORT)
    assert done.choices[0].finish_reason == "length"


def test_a_stop_ends_streams_with_an_error_and_refuses_what_comes(served: Served) -> None:
    server = served.server(Settings(grace=0.05))

    async def main() -> Any:
        async with in_process(server) as client:
            tasks = [
                asyncio.create_task(client.post(CHAT, json=LONG | {"stream": True}))
                for _ in range(2)
            ]
            while server.desk.n_waiting < 1:
                await asyncio.sleep(0.005)
            tasks.append(asyncio.create_task(client.post(CHAT, json=LONG)))
            while server.desk.n_waiting < 2 or server.desk.now is None or not server.desk.now.job:
                await asyncio.sleep(0.005)
            await server.stop()
            late = await client.post(CHAT, json=SHORT)
            return [await task for task in tasks], late, await client.get("/health")

    (*streams, whole), late, health = asyncio.run(main())
    for stream in streams:
        error, done = chunks(stream)[-2:]
        assert (error["error"]["code"], done) == ("unavailable", "[DONE]")
    for refused in (whole, late):
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    assert (health.status_code, health.json()) == (503, {"status": "stopping"})


def test_an_answer_that_takes_too_long_is_cut(served: Served) -> None:
    answer = served.ask(CHAT, LONG, Settings(max_seconds=0.2)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < 1500


@pytest.mark.parametrize("ends", ["cancel", "time_out"])
def test_an_answer_that_is_ended_before_it_begins_says_nothing(ends: str, served: Served) -> None:
    server = served.server()

    def end() -> None:  # on the engine's thread, before the stream is there
        assert server.desk.now is not None
        getattr(server.desk.now, ends)()

    served.engine.before = end

    async def main() -> Any:
        async with in_process(server) as client:
            return (await client.post(CHAT, json=LONG)).json()

    answer = asyncio.run(main())
    assert answer["usage"]["completion_tokens"] <= 1
    assert answer["choices"][0]["finish_reason"] == ("stop" if ends == "cancel" else "length")


def test_an_answer_ends_that_was_ended_while_the_engine_was_busy(served: Served) -> None:
    server, busy = served.server(), Held(served)

    async def main() -> Any:
        async with in_process(server) as client:
            served.worker.submit(busy.hold)
            task = asyncio.create_task(client.post(CHAT, json=LONG))
            while server.desk.now is None:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            served.engine.before = None
            server.desk.now.cancel()
            busy.go.set()
            return (await task).json()

    assert asyncio.run(main())["usage"]["completion_tokens"] <= 1


def test_everything_is_refused_in_order_once_the_server_stops(served: Served) -> None:
    server = served.server(Settings(grace=0))

    async def main() -> list[int]:
        async with in_process(server) as client:
            await server.stop()
            paths = ("chat/completions", "messages/count_tokens", "messages", "responses")
            bodies = [(f"/v1/{path}", SHORT | {"model": "m", "input": "x"}) for path in paths]
            bodies.append(("/page/markdown", {"text": "x"}))
            return [(await client.post(path, json=body)).status_code for path, body in bodies]

    assert asyncio.run(main()) == [503] * 5


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_a_stream_shows_that_it_lives_until_the_first_token(path: str, served: Served) -> None:
    held = Held(served)
    body = SHORT | {"model": "m", "input": "x", "stream": True, "max_output_tokens": 2}

    async def main() -> str:
        async with in_process(served.server(Settings(beat=0.05))) as client:
            task = asyncio.create_task(client.post(f"/v1/{path}", json=body))
            await asyncio.sleep(0.4)
            held.go.set()
            return (await task).text

    text = asyncio.run(main())
    beat = {"chat/completions": ": prefill 0/", "messages": "event: ping"}
    marks = [place.start() for place in re.finditer(beat.get(path, "event: response.in_"), text)]
    first = {"chat/completions": '"content":" ', "messages": "text_delta"}
    before = text.index(first.get(path, "output_text.delta"))
    assert sum(mark < before for mark in marks) > 3


def test_nothing_that_was_said_is_in_counts_log_or_names_of_files(
    served: Served,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", 4)
    served.engine.tree = TreeShape.chain(1)
    served.worker.call(served.engine.keep_prefixes, 1 << 30, 1 << 30)
    canary = "canarywordthatisnowhereelse"
    served.engine.write(f"answer {canary}")
    asked: Any = {"messages": [{"role": "user", "content": canary}], "max_tokens": 60}

    async def use(client: httpx2.AsyncClient) -> Any:
        await client.post(CHAT, json=asked)
        await client.post(CHAT, json=asked | {"temperature": canary})
        await client.post(CHAT, json=asked | {"tool_choice": canary})
        await client.post(CHAT, json=asked | {"response_format": {"type": canary}})
        served.engine.before = lambda: 1 / len("")  # type: ignore[assignment,return-value]
        failed = await client.post(CHAT, json=asked)
        return failed, (await client.get("/metrics")).text

    with caplog.at_level(logging.DEBUG):
        failed, metrics = served.run(use, Settings())
    assert failed.status_code == 500
    assert canary not in failed.text
    assert 'mlx_eagle_requests_total{api="chat",status="200"} 1.0' in metrics
    assert 'mlx_eagle_requests_total{api="other"' not in metrics  # itself is not over yet
    assert re.search(r"mlx_eagle_active_memory_bytes [\d.e+]+\n", metrics)
    assert canary not in metrics
    assert canary not in caplog.text
    close_files(served.engine)
    files = [str(path) for path in tmp_path.rglob("*.safetensors")]
    assert files and canary not in "".join(files)
