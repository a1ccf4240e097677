"""`chat/completions`: what is asked for becomes the engine's answer, whole and in pieces."""

from typing import Any

import pytest

from mlx_eagle.server.app import short_name
from served import Served, chunks

CHAT = "/v1/chat/completions"


def question(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What does zip do?"}]
    return {"messages": messages, "max_tokens": 24} | fields


def test_an_answer_is_the_engines(served: Served) -> None:
    want = served.worker.call(
        lambda: served.engine.generate(question()["messages"], max_tokens=24, seed=5, temperature=1)
    )
    got = served.ask(CHAT, question(seed=5, temperature=1)).json()
    assert got["choices"][0]["message"] == {"role": "assistant", "content": want.text}
    assert got["choices"][0]["finish_reason"] == "length"
    assert got["usage"]["completion_tokens"] == 24
    assert got["usage"]["prompt_tokens"] == want.stats.prompt_tokens


def test_thoughts_end_at_their_budget(served: Served) -> None:
    mark = served.engine.tokenizer.get_vocab()
    asked = question(thinking_budget=2, logprobs=True, max_tokens=6)
    asked["logit_bias"] = {str(mark["<think>"]): 100}  # which it would go on with for ever
    answer = served.ask(CHAT, asked).json()["choices"][0]
    assert answer["message"]["reasoning_content"] == "<think><think>"
    assert answer["finish_reason"] == "length"


def test_a_stream_says_the_same_in_order(served: Served) -> None:
    whole = served.ask(CHAT, question()).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last, end, done = chunks(served.ask(CHAT, question(**options)))
    assert done == "[DONE]"
    assert (last["choices"][0]["finish_reason"], end["choices"]) == ("length", [])
    assert end["usage"] == whole["usage"]
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [part["choices"][0]["delta"] for part in parts[1:]]
    assert all(list(delta) == ["content"] for delta in deltas)
    text = "".join(delta["content"] for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1


def test_the_model_is_named_whatever_a_request_calls_it(served: Served) -> None:
    got = served.ask(CHAT, question(model="somebody/else", max_tokens=1)).json()
    assert got["model"] == "turning"
    listed = served.get("/v1/models?limit=1000").json()
    assert [entry["id"] for entry in listed["data"]] == ["turning"]
    assert listed["data"][0]["context_length"] == 2048
    assert served.get("/models/turning").json()["id"] == "turning"
    assert served.get("/v1/models/other/model").status_code == 404
    assert served.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("mlx-community/Qwen3-8B-4bit", "Qwen3-8B-4bit"),
        ("pydoc-llama (demo)", "pydoc-llama-demo"),
        ("ollama:qwen3:8b", "ollama:qwen3:8b"),
        ("folder/ with the adapter x y", "with-the-adapter-x-y"),
        ("", "mlx-eagle"),
    ],
)
def test_a_model_is_called_by_a_word(target: str, name: str) -> None:
    assert short_name(target) == name
