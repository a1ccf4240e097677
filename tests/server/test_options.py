"""Options of a request mean what they mean in Python, token by token."""

import random
from typing import Any

import pytest

from cases import broad
from mlx_eagle.tree import TreeShape
from served import Served

MESSAGES: Any = [{"role": "user", "content": "What does zip do?"}]
WORDS: dict[str, list[Any]] = {
    "temperature": [0, 0.7, 1.3],
    "top_p": [0.5, 0.95],
    "top_k": [1, 5, 40],
    "min_p": [0.02, 0.3],
    "repetition_penalty": [0.9, 1.2],
    "presence_penalty": [-0.5, 1.5],
    "frequency_penalty": [-0.5, 1.5],
    "logit_bias": [{500: 4.0, 700: -100.0}, {900: 2.5}],
    "stop": [[" a"], ["e", "zz"]],
    "speculate": [True, False],
    "tree": ["2", "3x2x4"],
}
OF_ALL = ("top_p",)  # of the APIs; those without a seed must not draw


def draw_options(rng: random.Random, api: str) -> dict[str, Any]:
    """Return some options by the library's names."""
    names = OF_ALL if api == "responses" else (*OF_ALL, "top_k", "stop")
    names = tuple(WORDS) if api in ("chat", "completions") else names
    chosen = {name: rng.choice(WORDS[name]) for name in names if rng.random() < 0.4}
    seed = {"seed": rng.randrange(99)} if api in ("chat", "completions") else {"temperature": 0}
    return {"max_tokens": rng.randrange(1, 16)} | chosen | seed


def body_of(api: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a request that says the same by an API's names."""
    other = {
        "responses": {"max_tokens": "max_output_tokens"},
        "messages": {"stop": "stop_sequences"},
    }
    named = {other.get(api, {}).get(name, name): value for name, value in options.items()}
    if api == "completions":
        return named | {"prompt": "What does zip", "logprobs": 0}
    if api == "responses":
        return named | {"input": MESSAGES[0]["content"]}
    return named | {"model": "m", "messages": MESSAGES, "logprobs": True}


def said(api: str, answer: Any) -> tuple[str, int, list[bytes] | None]:
    """Return text, tokens, and the bytes of each where an API gives them."""
    if api == "messages":
        text = "".join(block["text"] for block in answer["content"])
        return text, answer["usage"]["output_tokens"], None
    if api == "responses":
        return answer["output"][0]["content"][0]["text"], answer["usage"]["output_tokens"], None
    choice, n_tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
    if api == "completions":
        return choice["text"], n_tokens, None
    spelled = [bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]]
    return choice["message"]["content"], n_tokens, spelled


@pytest.mark.parametrize("n", [8, broad(200)])
def test_options_mean_what_they_mean_in_python(n: int, served: Served) -> None:
    rng, engine = random.Random(4), served.engine
    paths = {"chat": "chat/completions", "completions": "completions"}
    for number in range(n):
        api = ("chat", "completions", "messages", "responses")[number % 4]
        options = draw_options(rng, api)
        own = dict(options)
        if "tree" in own:
            own["tree"] = TreeShape.parse(own["tree"])
        prompt = "What does zip" if api == "completions" else MESSAGES
        want = served.worker.call(engine.generate, prompt, **own)
        answer = served.ask(f"/v1/{paths.get(api, api)}", body_of(api, options))
        assert answer.status_code == 200, answer.text
        text, n_tokens, spelled = said(api, answer.json())
        assert (text, n_tokens) == (want.text, len(want.tokens)), (api, options)
        if spelled is not None:
            ends = engine.tokenizer.eos_token_ids
            assert spelled == [engine.vocabulary.spell(t) for t in want.tokens if t not in ends]


@pytest.mark.parametrize("tree", ["", "4x2", "0", "9x9x9000", "4x2x8x1", "x" * 65])
def test_a_tree_is_a_tree_or_refused(tree: str, served: Served) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "tree": tree}
    answer = served.ask("/v1/chat/completions", body)
    assert answer.status_code == (200 if tree == "4x2" else 400)
    assert tree == "4x2" or answer.json()["error"]["param"] == "tree"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_tree_that_cannot_be_drafted_is_refused_before_a_stream_begins(
    api: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = {"chat": "chat/completions"}.get(api, api)
    body = body_of(api, {"max_tokens": 2, "tree": "3x2x4"}) | {"stream": True}
    monkeypatch.setattr(served.engine.target, "chains_only", True)
    n_before = served.engine.n_requests
    refused = served.ask(f"/v1/{path}", body)
    assert refused.status_code == 400
    assert "this target verifies chains only" in refused.json()["error"]["message"]
    assert served.engine.n_requests == n_before
    answered = served.ask(f"/v1/{path}", body | {"tree": "2"})
    assert answered.status_code == 200 and "error" not in answered.text
