"""Answers on their way: signs of life, failures within a stream, what a client that goes leaves."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx2
import pytest

from mlx_eagle.server import prepare
from mlx_eagle.server.answer_events import AnswerJob
from mlx_eagle.server.app import Settings
from mlx_eagle.server.asked import Asked
from mlx_eagle.server.chat_writer import ChatWriter
from mlx_eagle.server.delivery import Delivery
from mlx_eagle.server.desk import Running
from mlx_eagle.server.events import CallPart, Drafted, End, Event, Reading, Said, Usage
from mlx_eagle.server.ids import ServedModel
from mlx_eagle.server.messages_writer import PATIENT, MessagesWriter
from mlx_eagle.server.outbox import TOO_MANY, Outbox
from mlx_eagle.server.prepare import Prepared
from mlx_eagle.server.responses_writer import ResponsesWriter
from served import Served, chunks, on_socket

CHAT = "/v1/chat/completions"
ASKED: Any = {"messages": [{"role": "user", "content": "Tell all."}], "max_tokens": 1500}
MODEL = ServedModel("m", 0, None, False, True, "f")
WRITERS: dict[str, Any] = {
    "chat": ChatWriter,
    "responses": ResponsesWriter,
    "messages": MessagesWriter,
}
LIFE = {  # what shows that the server lives, by API and client
    ("chat", ""): b": prefill ",
    ("responses", ""): b"event: response.in_progress",
    ("messages", ""): b"event: ping",
    ("messages", "claude-cli/2.1"): b'{"type":"thinking_delta","thinking":""}',
}


async def never() -> Any:
    """Receive nothing: the client stays."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(("api", "client"), LIFE)
def test_a_prompt_that_is_read_in_many_pieces_is_no_silence(api: str, client: str) -> None:
    """Pieces come more often than signs of life; what is said is a sign by itself."""
    asked = Asked(api=api, prompt="x", client=client, streams=True)
    parts: list[bytes] = []

    async def main() -> int:
        running = Running(Prepared(asked, "x", 40, {}, ()))
        running.accepted -= PATIENT if client else 0
        delivery = Delivery(running, WRITERS[api](asked, MODEL, 0), "req_", beat=0.08)

        async def send(message: Any) -> None:
            parts.append(message.get("body", b""))

        task = asyncio.create_task(delivery({}, never, send))
        for done in range(1, 33):
            running.put(Reading(done, 40))
            await asyncio.sleep(0.01)
        n_before = sum(LIFE[api, client] in part for part in parts)
        for text in "abc":
            running.put(Said(text))
        running.put(End("stop", "", Usage(40, 1, 3), {}))
        await task
        return n_before

    assert asyncio.run(main()) >= 3  # the first one belongs to the beginning
    _, first, after = b"".join(parts).partition(b':"a"')
    assert first and LIFE[api, client] not in after


def test_what_was_drafted_is_left_out_for_a_client_that_does_not_read() -> None:
    async def main() -> list[Event]:
        outbox = Outbox()
        for n in range(3 * TOO_MANY):
            outbox.put(Drafted(str(n), True, None))
            outbox.put(Said(str(n)))
        outbox.put(CallPart(0, "{}"))
        return await outbox.take()

    events = asyncio.run(main())
    assert len(events) <= TOO_MANY + 3
    said = "".join(event.text for event in events if isinstance(event, Said))
    assert said == "".join(map(str, range(3 * TOO_MANY)))


@pytest.mark.parametrize("streams", [True, False])
def test_an_event_that_cannot_be_written_ends_its_answer_alone(
    streams: bool, served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("words of the answer")

    body = ASKED | {"max_tokens": 4, "stream": streams}
    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):
        patch.setattr(ChatWriter, "_delta", fail)
        patch.setattr("mlx_eagle.server.chat_writer.finish_reason", fail)
        answer = served.ask(CHAT, body, Settings())
    error = chunks(answer)[-2]["error"] if streams else answer.json()["error"]
    assert (answer.status_code, error["code"]) == (200 if streams else 500, "internal_error")
    assert "words of" not in answer.text + caplog.text
    assert "ValueError (server/chat_writer.py:" in caplog.text
    assert served.ask(CHAT, body | {"stream": False}).status_code == 200


@pytest.mark.parametrize(("n_failures", "status"), [(1, 200), (2, 500)])
def test_kept_rows_are_given_up_for_an_answer_that_finds_no_memory(
    n_failures: int, status: int, served: Served
) -> None:
    failures = iter(range(n_failures))

    def fail() -> None:
        if next(failures, None) is not None:
            raise RuntimeError("[metal::malloc] something")

    served.worker.call(served.engine.keep_prefixes, 1 << 30)
    body = ASKED | {"max_tokens": 2}
    assert served.ask(CHAT, body).status_code == 200
    served.worker.call(int)  # rows are kept once an answer is sent
    kept = served.engine.prefix_cache
    assert kept is not None and len(kept) == 1
    served.engine.before = fail
    answer = served.ask(CHAT, body)
    assert answer.status_code == status
    if status == 500:
        assert (answer.json()["error"]["code"], len(kept)) == ("oom", 0)
        return
    usage = answer.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


class Reader:
    """Holds the engine while it reads a prompt, from its second piece on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_pieces, self.is_held, self.go = 0, threading.Event(), threading.Event()
        progress = AnswerJob._progress

        def held(job: AnswerJob, done: int, total: int) -> None:
            progress(job, done, total)
            self.n_pieces += 1
            if self.n_pieces == 2:
                self.is_held.set()
                assert self.go.wait(30)

        monkeypatch.setattr(prepare, "PREFILL_STEP", 32)
        monkeypatch.setattr(AnswerJob, "_progress", held)


@pytest.mark.parametrize("streams", [True, False])
def test_a_prompt_is_read_for_one_more_piece_at_most_when_its_client_goes(
    streams: bool, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, server = Reader(monkeypatch), served.server()
    long = ASKED | {"messages": [{"role": "user", "content": "zip " * 300}], "stream": streams}

    async def main(port: int) -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            asked = asyncio.create_task(client.post(CHAT, json=long, timeout=30))
            while not reader.is_held.is_set():
                await asyncio.sleep(0.005)
            asked.cancel()
            while server.desk.now is not None and not server.desk.now.is_cancelled:
                await asyncio.sleep(0.005)
            reader.go.set()
            while server.desk.now is not None:
                await asyncio.sleep(0.005)

    with on_socket(server) as port:
        asyncio.run(main(port))
    assert reader.n_pieces <= 3


def pieces(response: httpx2.Response) -> Iterator[str]:
    """Yield the text of a stream as it comes."""
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])["choices"][0]["delta"].get("content", "")


def test_what_a_client_that_went_has_seen_is_kept(served: Served) -> None:
    served.worker.call(served.engine.keep_prefixes, 1 << 30)
    server, got = served.server(), list[str]()
    body = ASKED | {"stream": True}

    with on_socket(server) as port:
        with httpx2.stream("POST", f"http://127.0.0.1:{port}{CHAT}", json=body) as response:
            got += islice(pieces(response), 4)
        while server.desk.now is not None:
            time.sleep(0.01)
        served.worker.call(int)
    kept = served.engine.prefix_cache
    assert kept is not None
    (prefix,) = kept._kept
    n_read = prefix.n_read + 1
    text = served.engine.tokenizer.decode(prefix.tokens[n_read:])
    assert text.startswith("".join(got)) and "".join(got)
    assert len(prefix.tokens) - n_read < ASKED["max_tokens"] / 2


def test_what_is_there_is_taken_without_waiting() -> None:
    async def main() -> list[Event]:
        outbox = Outbox()
        outbox.put(Said("x"))
        assert await outbox.take(0) == [Said("x")]
        return await outbox.take(0)

    assert asyncio.run(main()) == []
