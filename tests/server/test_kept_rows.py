"""Whatever was asked, given up, forgotten or written: answers are those of a fresh engine."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from cases import broad
from mlx_eagle.server.app import Settings
from mlx_eagle.server.guard import Rules
from mlx_eagle.session import prefix_files
from mlx_eagle.session.prefix_cache import PrefixCache
from mlx_eagle.tree import TreeShape
from served import Served, chunks, close_files, in_process

CHAT = "/v1/chat/completions"
WORDS = ["map", "zip", "filter", "deque", "Counter", "join", "split", "sorted", "range", "dict"]
N_TOKENS = 5


class Talks:
    """Conversations with one server that go on, branch, are given up and come back.

    Args:
        served: the engine.
        rng: draws what happens.
    """

    def __init__(self, served: Served, rng: random.Random) -> None:
        self._served, self._rng = served, rng
        self._talks: list[list[dict[str, Any]]] = [[]]
        self.tiers = set[bool]()

    def play(self, n_steps: int, budget: int) -> None:
        """Let so many things happen; every whole answer must be the right one."""
        self.open(budget)
        for _ in range(n_steps):
            if self._rng.random() < 0.15:
                close_files(self._served.engine)
                self.open(budget)
            asyncio.run(self._step())
            kept = self._served.engine.prefix_cache
            self._served.worker.call(int)  # rows are kept once an answer is sent
            assert kept is not None
            assert kept.nbytes <= budget
        close_files(self._served.engine)

    def open(self, budget: int) -> None:
        """Begin as a process does."""
        self._served.worker.call(self._served.engine.keep_prefixes, budget, 1 << 30)

    async def _step(self) -> None:
        """Ask something in a conversation, or in one that leaves it halfway."""
        talk = self._rng.choice(self._talks)
        talk = (
            talk[: self._rng.randrange(0, len(talk) + 1, 2)] if self._rng.random() < 0.3 else talk
        )
        words = " ".join(self._rng.choices(WORDS, k=self._rng.choice([3, 40])))
        messages = [*talk, {"role": "user", "content": words}]
        body: dict[str, Any] = {"messages": messages, "max_tokens": N_TOKENS}
        body |= {"seed": self._rng.randrange(9), "temperature": self._rng.choice([0, 1])}
        async with in_process(self._served.usual) as client:
            if self._rng.random() < 0.25:  # and goes away
                asked = client.post(CHAT, json=body | {"max_tokens": 400, "stream": True})
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asked, self._rng.uniform(0.001, 0.1))
            answer = (await client.post(CHAT, json=body)).json()
        self.tiers.add(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
        message = answer["choices"][0]["message"]
        assert message["content"] == self._fresh(body)
        self._talks = [*self._talks[-3:], [*messages, message]]

    def _fresh(self, body: dict[str, Any]) -> str:
        """Return what the engine answers where nothing is kept."""
        engine, options = self._served.engine, dict(body)
        kept, engine.prefix_cache = engine.prefix_cache, None
        result = self._served.worker.call(engine.generate, options.pop("messages"), **options)
        engine.prefix_cache = kept
        return str(result.text)


ASKED = {"messages": [{"role": "user", "content": "What does zip do? " * 5}], "max_tokens": 2}


@pytest.mark.parametrize("keys", [("one",), ("one", "two")])
def test_who_has_another_key_finds_no_rows_of_others(keys: tuple[str, ...], served: Served) -> None:
    served.worker.call(served.engine.keep_prefixes, 1 << 30)

    async def use(client: Any) -> list[int]:
        found = []
        for key in (keys[0], keys[-1], keys[0], keys[-1]):
            answer = await client.post(CHAT, json=ASKED, headers={"x-api-key": key})
            served.worker.call(int)
            found.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        return found

    found = served.run(use, Settings(rules=Rules(keys=keys)))
    n_empty = len(keys)
    assert found[:n_empty] == [0] * n_empty
    assert all(n > 20 for n in found[n_empty:])


def test_who_has_another_key_neither_sees_nor_clears_what_is_kept_of_others(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", 8)
    served.engine.tree = TreeShape.chain(1)  # so that there are rows of the head, too
    served.worker.call(served.engine.keep_prefixes, 1 << 30, 1 << 30)
    one, two = {"x-api-key": "one"}, {"x-api-key": "two"}

    async def use(client: Any) -> list[bool]:
        await client.post(CHAT, json=ASKED, headers=one)
        served.worker.call(int)
        sizes = []
        for clears in ((), (two,), (one,)):
            for key in clears:
                await client.post("/v1/cache/clear", json={}, headers=key)
            for key in (one, two):
                kept = (await client.get("/v1/cache", headers=key)).json()
                parts = (kept["memory"]["prefixes"], kept["memory"]["bytes"], kept["disk"]["bytes"])
                assert len(set(map(bool, parts))) == 1
                sizes.append(parts[0] > 0)
        return sizes

    found = served.run(use, Settings(rules=Rules(keys=("one", "two"))))
    close_files(served.engine)
    assert found == [True, False, True, False, False, False]


def test_an_answer_has_ended_whatever_becomes_of_its_rows(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served.worker.call(served.engine.keep_prefixes, 1 << 30)

    def fail(*_: Any) -> None:
        raise KeyError("canary")

    monkeypatch.setattr(PrefixCache, "keep", fail)
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 2, "stream": True}
    *_, last, done = chunks(served.ask(CHAT, body))
    served.worker.call(int)
    assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert "keeping the rows of" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize("n", [1, broad(60)])
def test_answers_are_those_of_a_fresh_engine(
    n: int, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    for name, value in (("BLOCK", 16), ("LEAST_BLOCKS", 2), ("MOST_BLOCKS", 3)):
        monkeypatch.setattr(prefix_files, name, value)
    served.worker.call(served.engine.keep_prefixes, 1 << 30)
    served.ask(CHAT, {"messages": [{"role": "user", "content": "x " * 40}], "max_tokens": 1})
    served.worker.call(int)
    assert served.engine.prefix_cache is not None
    budget = 3 * served.engine.prefix_cache.nbytes
    tiers = list[set[bool]]()
    for seed in range(n):
        talks = Talks(served, random.Random(seed))
        talks.play(9, budget)
        tiers.append(talks.tiers)
    # In few of them every conversation that goes on has been forgotten, or was never kept.
    assert set.union(*tiers) == {True, False}
    assert sum(True not in found for found in tiers) <= n // 10
