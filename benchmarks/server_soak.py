#!/usr/bin/env python3
"""A server under many clients that come and go, and one that is killed at any moment.

    python benchmarks/server_soak.py [--model demo] [--requests 200] [--clients 8] [--kills 10]

First clients ask over all APIs, streaming or not, and a third of them goes away before the answer
has ended. Every stream must be well-formed as far as it was read, equal requests must get equal
texts, no client may overtake another, and once nothing runs any more the server must hold as much
memory as it did after a warm-up. Then servers are killed (SIGKILL) while they answer and while they
write rows to disk: each that follows must give the text that a server without any rows gives.
Prints one line per finding, and exits with 1 if there is any.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from server_process import PATIENCE, ServerProcess
from stream_checks import CHECKS, said

QUICK = ("--no-calibrate",)  # requests name their trees: nothing needs to be measured
GAP = 0.02  # of memory that may be more than after the warm-up
LONGEST = 6.0  # seconds for which a client that goes away has stayed
WARM = 0.4  # of the requests, after which memory is what it will be
MOST_OVERTAKEN = 2  # answers of another client between asking and the first word
TOPICS = ("zip", "map", "filter", "dict.get", "collections.deque", "os.path.join", "re.sub")
SHARED = "You answer questions about the standard library of Python. " * 6
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"]}


class Question(NamedTuple):
    """A request: its API and its body, without `stream`."""

    api: str
    body: dict[str, Any]


class Asked(NamedTuple):
    """What became of a request: times by `time.monotonic`, text, and faults that were found."""

    who: int
    question: int
    sent: float
    first: float | None
    ended: float
    text: str | None
    faults: list[str]


def make_questions(rng: random.Random, n: int) -> list[Question]:
    """Return requests that differ in API, length, sampling and what they ask to see."""
    return [
        make_question(rng, api, TOPICS[i % len(TOPICS)])
        for i, api in zip(range(n), cycle(PATHS), strict=False)
    ]


def make_question(rng: random.Random, api: str, topic: str) -> Question:
    """Return one request."""
    text = f"{SHARED if rng.random() < 0.5 else ''}What does {topic} do?"
    n_tokens = rng.choice([2, 8, 24, 64])
    draws = {"temperature": rng.choice([0, 0.8, 1.2])}
    messages = [{"role": "user", "content": text}]
    if api == "messages":
        return Question(
            api,
            draws | {"model": "m", "max_tokens": n_tokens, "messages": messages, "temperature": 0},
        )
    if api == "responses":
        return Question(api, {"max_output_tokens": n_tokens, "input": text, "temperature": 0})
    tree = rng.choice([{}, {"tree": "3"}, {"tree": "4x2x6"}])  # or the planner may never draft
    own = draws | tree | {"seed": rng.randrange(100), "max_tokens": n_tokens}
    if api == "completions":
        return Question(api, own | {"prompt": text, "logprobs": rng.choice([None, 2])})
    kind = rng.randrange(4)
    extras: list[dict[str, Any]] = [
        {},
        {"logprobs": True, "top_logprobs": 3},
        {"x_eagle": True, "speculate": rng.random() < 0.5},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ]
    return Question(
        api, own | {"messages": messages, "frequency_penalty": 0.2 * (kind == 0)} | extras[kind]
    )


class Clients:
    """Clients that ask one server, each its own questions one after another.

    Args:
        server: that answers.
        questions: to choose from.
        rng: chooses.
    """

    def __init__(
        self, server: ServerProcess, questions: list[Question], rng: random.Random
    ) -> None:
        self._server, self._questions, self._rng = server, questions, rng
        self.done: list[Asked] = []

    async def ask_all(self, n_requests: int, n_clients: int) -> None:
        """Let clients ask so many questions in all."""
        left = iter(range(n_requests))
        async with httpx2.AsyncClient(base_url=self._server.url, timeout=1800) as client:

            async def work(who: int) -> None:
                for _ in left:
                    self.done.append(await self._ask(client, who))
                    print(f"\r{len(self.done)} requests", end="", file=sys.stderr, flush=True)

            await asyncio.gather(*map(work, range(n_clients)))

    async def _ask(self, client: httpx2.AsyncClient, who: int) -> Asked:
        """Ask one question; go away before its answer has ended, one time in three."""
        number = self._rng.randrange(len(self._questions))
        question, streams = self._questions[number], self._rng.random() < 0.7
        patience = self._rng.uniform(0, LONGEST) if self._rng.random() < 1 / 3 else None
        got, sent = Got(question.api, streams), time.monotonic()
        try:
            async with asyncio.timeout(patience):
                body = question.body | {"stream": streams}
                headers = {"x-session-id": str(who)}
                async with client.stream(
                    "POST", PATHS[question.api], json=body, headers=headers
                ) as response:
                    await got.read(response)
        except TimeoutError:
            got.check(is_whole=False)
            return Asked(who, number, sent, got.first, time.monotonic(), None, got.faults)
        except httpx2.HTTPError as error:
            got.faults.append(f"{question.api}: {type(error).__name__}")
        got.check(is_whole=True)
        text = None if got.faults else got.text()
        return Asked(who, number, sent, got.first, time.monotonic(), text, got.faults)


class Got:
    """What has come of one answer."""

    def __init__(self, api: str, streams: bool) -> None:
        self._api, self._streams = api, streams
        self._status, self._body = 0, b""
        self.first: float | None = None
        self.faults: list[str] = []

    async def read(self, response: httpx2.Response) -> None:
        """Read an answer as it comes."""
        self._status = response.status_code
        async for part in response.aiter_bytes():
            self._body += part
            if self.first is None and self._streams and said(self._api, self._body):
                self.first = time.monotonic()

    def check(self, *, is_whole: bool) -> None:
        """Note what is wrong with what has come."""
        if is_whole and self._status != 200:
            self.faults.append(f"{self._api}: status {self._status}")
        elif self._streams and self._body:
            found = CHECKS[self._api](self._body, is_whole)
            self.faults += [f"{self._api}: {fault}" for fault in found]

    def text(self) -> str:
        """Return the text of the answer."""
        return said(self._api, self._body) if self._streams else whole_text(self._api, self._body)


def whole_text(api: str, body: bytes) -> str:
    """Return the text of an answer that came at once."""
    try:
        data = json.loads(body)
        match api:
            case "chat":
                return str(data["choices"][0]["message"]["content"])
            case "completions":
                return str(data["choices"][0]["text"])
            case "responses":
                texts = [item["content"][0]["text"] for item in data["output"]]
                return "".join(texts)
        return "".join(block["text"] for block in data["content"])
    except (ValueError, LookupError):
        return f"unreadable: {body[:200]!r}"


def compare_texts(done: list[Asked]) -> list[str]:
    """Return the questions that were answered in two ways."""
    texts = defaultdict[int, set[str]](set)
    for each in done:
        if each.text is not None:
            texts[each.question].add(each.text)
    return [f"question {n} has {len(t)} answers" for n, t in texts.items() if len(t) > 1]


def find_overtaken(done: list[Asked]) -> list[str]:
    """Return the requests that waited while another client was answered again and again."""
    found = []
    for each in done:
        if each.first is None:
            continue
        others = defaultdict[int, int](int)
        for other in done:
            is_between = each.sent < other.ended < each.first and other.text is not None
            others[other.who] += other.who != each.who and is_between
        if max(others.values(), default=0) > MOST_OVERTAKEN:
            found.append(
                f"client {each.who} was overtaken {max(others.values())} times by one other"
            )
    return found


def settle(server: ServerProcess) -> dict[str, float]:
    """Return what a server holds once nothing runs and no rows are kept: bytes, by what."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        while (state := client.get("/v1/status").json()) != {"running": 0, "waiting": 0}:
            assert server.is_running, state
            time.sleep(0.1)
        client.post("/v1/cache/clear", json={})
        lines = client.get("/metrics").text.splitlines()
    name = "mlx_eagle_active_memory_bytes "
    active = next(float(line[len(name) :]) for line in lines if line.startswith(name))
    return {"resident": server.memory(), "MLX": active}


def soak(args: argparse.Namespace, folder: Path) -> list[str]:
    """Let clients come and go; returns what was found."""
    rng = random.Random(args.seed)
    server = ServerProcess(folder, "--model", args.model, *QUICK, "--cache-memory", "0.1")
    clients = Clients(server, make_questions(rng, 40), rng)
    n_warm = int(args.requests * WARM)
    asyncio.run(clients.ask_all(n_warm, args.clients))
    before = settle(server)
    asyncio.run(clients.ask_all(args.requests - n_warm, args.clients))
    after = settle(server)
    found = [fault for each in clients.done for fault in each.faults]
    found += compare_texts(clients.done) + find_overtaken(clients.done)
    n_whole = sum(each.text is not None for each in clients.done)
    print(f"{len(clients.done)} requests of {args.clients} clients, {n_whole} answered to the end")
    for what, size in before.items():
        print(f"{what}: {size / 1e6:.1f} MB after {n_warm}, {after[what] / 1e6:.1f} MB at the end")
        if after[what] > size * (1 + GAP):
            found.append(f"memory grew: {what}, {size / 1e6:.1f} to {after[what] / 1e6:.1f} MB")
    if len(clients.done) != args.requests:
        found.append(f"{args.requests - len(clients.done)} requests are lost")
    if status := server.stop():
        found.append(f"the server ended with status {status}")
    return found


def long_question(n: int) -> dict[str, Any]:
    """Return a request whose prompt is long enough to be written to disk."""
    text = f"Case {n}. " + "The function returns an iterator over the items of its argument. " * 85
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 24}


def answer(server: ServerProcess, n: int) -> dict[str, Any]:
    """Return the answer to a long question."""
    response = httpx2.post(server.url + PATHS["chat"], json=long_question(n), timeout=PATIENCE)
    return {"text": "", **response.json()} | {"status": response.status_code}


def text_of(data: dict[str, Any]) -> str:
    """Return the text of an answer, or that there is none."""
    return str(data["choices"][0]["message"]["content"]) if data["status"] == 200 else str(data)


def kill_again_and_again(args: argparse.Namespace, folder: Path) -> list[str]:
    """Kill servers at any moment; returns what was found by those that followed."""
    rng, found = random.Random(args.seed), list[str]()
    plain = ServerProcess(folder, "--model", args.model, *QUICK, "--no-disk-cache")
    want = {n: text_of(answer(plain, n)) for n in range(3)}
    plain.stop()
    n_cached = n_removed = 0
    for time_to_die in rng.sample(range(args.kills), args.kills):
        server = ServerProcess(folder, "--model", args.model, *QUICK)
        n_removed += sum("Removed" in line for line in server.log)
        for n in want:
            data = answer(server, n)
            n_cached += data["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            if text_of(data) != want[n]:
                found.append(f"another text after a kill: {text_of(data)!r}, not {want[n]!r}")
        asyncio.run(die_while_asked(server, 10 + time_to_die, rng.uniform(0, args.longest)))
        server.kill()
    server = ServerProcess(folder, "--model", args.model, *QUICK)
    found += [
        f"another text at the end: {n}" for n in want if text_of(answer(server, n)) != want[n]
    ]
    server.stop()
    left = [path.name for path in folder.rglob("*.partial*")]
    found += [f"left over: {name}" for name in left]
    print(f"{args.kills} kills; {n_cached} answers went on from rows on disk or in memory,")
    print(f"{n_removed} starts removed what was damaged or not written to the end")
    return found


async def die_while_asked(server: ServerProcess, n: int, seconds: float) -> None:
    """Kill a server while it answers new questions, and writes what it has read."""

    async def ask(number: int) -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
            await client.post(PATHS["chat"], json=long_question(number))

    tasks = [asyncio.create_task(ask(100 * n + i)) for i in range(4)]
    await asyncio.sleep(seconds)
    server.kill()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Parse the command line, try both, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds until a kill")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = list[str]()
    for use, wanted in ((soak, args.requests), (kill_again_and_again, args.kills)):
        with tempfile.TemporaryDirectory() as folder:
            found += use(args, Path(folder)) if wanted else []
    print("\n".join(sorted(set(found))) or "nothing was found")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
