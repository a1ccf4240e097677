"""An agent's session, turn by turn: what is read of each prompt is what is new in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import broad
from mlx_eagle.session import prefix_files
from mlx_eagle.tree import TreeShape
from recurrent_pair import make_recurrent_pair
from served import CONTEXT, Served, close_files

BLOCK = 64
TOOL = {
    "name": "find",
    "description": "Looks something up.",
    "input_schema": {"type": "object", "properties": {"x": {"type": "string"}}},
}


class Turn:
    """What one turn cost: tokens of the prompt, those that were read, those of the answer."""

    def __init__(self, usage: dict[str, int]) -> None:
        self.read, self.answer = usage["input_tokens"], usage["output_tokens"]
        self.prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]


class Agent:
    """Asks as Claude Code does: tools, the result of each call, and a header that changes.

    Args:
        served: what answers; each turn calls the tool, in words that are written beforehand.
        n_words: of the system prompt.
        question: with which it begins.
    """

    def __init__(self, served: Served, n_words: int, question: str = "What does zip do?") -> None:
        self._served, self._n_turns = served, 0
        self._system = "Use the tools, and say what you did. " * (n_words // 9)
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": question}]

    def take_turn(self) -> Turn:
        """Ask, and answer the call that comes."""
        number, self._n_turns = self._n_turns, self._n_turns + 1
        call = {"name": "find", "arguments": {"x": f'ü "{number}"'}}
        text = json.dumps(call, ensure_ascii=False)
        self._served.engine.write(f"<tool_call>\n{text}\n</tool_call>")
        billing = f"x-anthropic-billing-header: cc_version=2; cch={number:05x};"
        counter = f"<total_tokens>{10_000 - number} tokens left</total_tokens>"
        body = {
            "model": "m",
            "max_tokens": 200,
            "system": [{"type": "text", "text": text} for text in (billing, self._system)],
            "messages": [*self._messages, {"role": "system", "content": counter}],
            "tools": [TOOL],
        }
        answer = self._served.ask("/v1/messages", body).json()
        self._served.worker.call(int)  # rows are kept once an answer is sent
        (block,) = answer["content"]
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": f"found {number}"}
        said = {"role": "assistant", "content": [block]}
        self._messages += [said, {"role": "user", "content": [result]}]
        return Turn(answer["usage"])


@pytest.fixture(scope="module")
def recurrent() -> Iterator[Served]:
    own = Served(make_pair=make_recurrent_pair)
    yield own
    own.worker.close()


@pytest.fixture(params=["rows", broad("states")])
def agents(request: pytest.FixtureRequest, served: Served, recurrent: Served) -> Iterator[Served]:
    """An engine whose target has a row per token, or states that sum up all tokens."""
    own = served if request.param == "rows" else recurrent
    limits, preparer = own.engine.limits, own.usual._preparer
    assert own.usual.model.context == CONTEXT  # made before its limit is another for a while
    own.engine.limits = limits._replace(max_context=1 << 15)
    preparer.measure_context()
    own.engine.tree = TreeShape.chain(1)  # so that there are rows of the head, too
    yield own
    close_files(own.engine)
    own.engine.prefix_cache = None
    own.engine.limits = limits
    preparer.measure_context()


@pytest.mark.parametrize(("n_turns", "n_words"), [(3, 150), broad(20, 4096)])
def test_every_turn_reads_what_is_new_after_a_restart_too(
    n_turns: int,
    n_words: int,
    agents: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", BLOCK)
    agents.worker.call(agents.engine.keep_prefixes, 1 << 30, 1 << 30)
    agent, before = Agent(agents, n_words), None
    for number in range(n_turns):
        if number == n_turns // 2:
            close_files(agents.engine)  # as the end of a process does; the next one begins anew
            agents.worker.call(agents.engine.keep_prefixes, 1 << 30, 1 << 30)
        now = agent.take_turn()
        if before is None:
            assert now.read == now.prompt > n_words
        else:
            held = before.prompt + before.answer - 1  # the newest token has no row yet
            if number == n_turns // 2:  # whole blocks are on disk, and no states
                held = held // BLOCK * BLOCK - 1 if agents.has_rows else 0
            assert now.prompt - now.read == held
        before = now


@pytest.mark.parametrize(("n_turns", "n_words"), [(3, 90), broad(20, 2048)])
def test_two_conversations_in_turn_read_what_is_new_in_each(
    n_turns: int, n_words: int, agents: Served
) -> None:
    """They begin alike, and neither takes the other's rows."""
    agents.worker.call(agents.engine.keep_prefixes, 1 << 30)
    talks = [Agent(agents, n_words, question) for question in ("What does zip do?", "Why?")]
    before = [talk.take_turn() for talk in talks]
    if agents.has_rows:  # states are gone back to at the end of a prompt
        assert before[1].prompt - before[1].read > n_words
    for number in range(2, n_turns):
        now, last = talks[number % 2].take_turn(), before[number % 2]
        assert now.prompt - now.read == last.prompt + last.answer - 1
        before[number % 2] = now
