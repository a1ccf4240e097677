"""Tools in `chat/completions`, driven by the openai package, and answers under a schema.

The package is imported in the test, for it takes long, and every process of a run reads this file.
"""

import inspect
import json
from typing import Any

import httpx2
import jsonschema
import pytest
from transformers import PreTrainedTokenizerBase

from served import Served, chunks

CHAT = "/v1/chat/completions"
PARAMETERS = {"type": "object", "properties": {"w": {"type": "string"}}}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("find", "count")
]
ANTHROPIC_TOOLS: Any = [{"name": "find", "input_schema": PARAMETERS}]
TWO_CALLS = (
    'I look.\n<tool_call>\n{"name": "find", "arguments": {"w": "a \\"}\\" b"}}\n'
    "</tool_call>\n"
    '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>'
)
ASKED: Any = [{"role": "user", "content": "What does zip do?"}]


def ask(served: Served, **fields: Any) -> Any:
    return served.ask(CHAT, {"messages": ASKED, "tools": TOOLS, "max_tokens": 200} | fields)


def test_the_package_puts_two_streamed_calls_together(served: Served) -> None:
    from openai import AsyncOpenAI

    served.engine.write(TWO_CALLS)

    async def use(client: httpx2.AsyncClient) -> Any:
        api = AsyncOpenAI(
            api_key="x", base_url="http://localhost:8080/v1", http_client=client, max_retries=0
        )
        asked: Any = {"model": "m", "messages": ASKED, "tools": TOOLS}
        async with api.chat.completions.stream(**asked) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    choice = served.run(use).choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "I look.")
    assert choice.finish_reason == "tool_calls"
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]
    assert calls == [("find", {"w": 'a "}" b'}), ("count", {})]
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_arguments_are_streamed_while_they_are_written(served: Served) -> None:
    served.engine.write(TWO_CALLS)
    whole = ask(served).json()["choices"][0]["message"]["tool_calls"]
    parts = list[list[str]]()
    for chunk in chunks(ask(served, stream=True))[:-1]:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
            if "id" in delta:
                parts.append([])
            else:
                parts[delta["index"]].append(delta["function"]["arguments"])
    assert len(parts[0]) > 3
    assert ["".join(texts) for texts in parts] == [c["function"]["arguments"] for c in whole]


@pytest.mark.parametrize("n", [*(5, 23)])
def test_an_answer_that_is_cut_never_has_a_complete_call(n: int, served: Served) -> None:
    served.engine.write(TWO_CALLS.partition('\n<tool_call>\n{"name": "count"')[0])
    most = min(n, len(served.engine.script or []) - 2)  # before the mark that ends the call
    choice = ask(served, max_tokens=most).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    body = {"model": "m", "messages": ASKED, "tools": ANTHROPIC_TOOLS, "max_tokens": most}
    answer = served.ask("/v1/messages", body).json()
    assert answer["stop_reason"] == "max_tokens"
    assert all(block["type"] == "text" for block in answer["content"])


def test_calls_and_results_of_earlier_turns_reach_the_template(served: Served) -> None:
    served.engine.write("done")
    call = {"id": "call_" + "0" * 24, "type": "function"}
    call["function"] = {"name": "count", "arguments": '{"w": "zip"}'}
    history = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "3"},
    ]
    assert ask(served, messages=history).json()["choices"][0]["message"]["content"] == "done"
    orphan = ask(served, messages=[ASKED[0], history[2]])
    assert orphan.status_code == 400


def test_calls_that_no_template_could_write_are_refused(served: Served) -> None:
    """Nested so deeply that writing them fails; half a character; and names that are choices."""
    for text in ('{"w": ' * 980 + "1" + "}" * 980, '{"w": "\\ud800"}'):
        call = {"id": "c", "type": "function", "function": {"name": "count", "arguments": text}}
        history = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
        refused = ask(served, messages=history)
        assert refused.status_code == 400, refused.text
    for name in ("auto", "none", "required"):
        tools = [{"type": "function", "function": {"name": name}}]
        choice = {"type": "function", "function": {"name": name}}
        refused = ask(served, tools=tools, tool_choice=choice)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


def test_an_answer_under_a_schema_fits_it_with_and_without_drafts(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "ok": {"type": "boolean"},
        },
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    fields: Any = {"tools": None, "response_format": wanted, "seed": 1, "temperature": 1}
    fields["chat_template_kwargs"] = {"enable_thinking": False}  # the pair would never end it
    texts = set()
    for speculate in (True, False):
        choice = ask(served, speculate=speculate, **fields).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        texts.add(choice["message"]["content"])
    assert len(texts) == 1
    remote = {"$ref": "http://localhost:9/schema.json"}
    wanted["json_schema"] = {"schema": remote}
    assert ask(served, tools=None, response_format=wanted).status_code == 400


def test_log_probabilities_are_those_of_the_text(served: Served) -> None:
    fields: Any = {"tools": None, "max_tokens": 12, "logprobs": True, "top_logprobs": 5}
    choice = ask(served, temperature=0.8, seed=3, **fields).json()["choices"][0]
    content = choice["logprobs"]["content"]
    joined = b"".join(bytes(entry["bytes"]) for entry in content)
    assert joined.decode() == choice["message"]["content"]
    for entry in content:
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert entry["logprob"] <= values[0] + 1e-6
    parts = chunks(ask(served, temperature=0.8, seed=3, stream=True, **fields))[:-1]
    logprobs = [p["choices"][0]["logprobs"] for p in parts if p["choices"][0]["logprobs"]]
    assert [e["token"] for part in logprobs for e in part["content"]] == [
        entry["token"] for entry in content
    ]


def test_completions_go_on_with_the_text_as_it_is(served: Served) -> None:
    body: Any = {"prompt": "zip takes", "max_tokens": 8, "echo": True, "logprobs": 2}
    choice = served.ask("/v1/completions", body).json()["choices"][0]
    want = served.worker.call(lambda: served.engine.generate("zip takes", max_tokens=8))
    assert choice["text"] == "zip takes" + want.text
    places = choice["logprobs"]["text_offset"]
    assert places[0] == len("zip takes")
    ids = served.engine.tokenizer.encode("zip takes")
    again = served.ask("/v1/completions", {"prompt": [ids], "max_tokens": 8}).json()
    assert again["choices"][0]["text"] == want.text
    parts = chunks(served.ask("/v1/completions", body | {"stream": True}))[:-1]
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]
    two = served.ask("/v1/completions", {"prompt": ["a", "b"]})
    assert two.status_code == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"-3": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, None),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    fields: dict[str, Any], param: str | None, served: Served
) -> None:
    before = served.engine.n_requests
    answer = ask(served, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.headers["x-should-retry"] == "false"
    assert served.engine.n_requests == before


def test_a_request_cannot_bring_its_own_template(served: Served) -> None:
    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    for name in {*own, "messages"} - {"documents", "kwargs"}:  # these are the template's
        answer = ask(served, chat_template_kwargs={name: "x"}, max_tokens=1)
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"] == f"chat_template_kwargs.{name}"
    for value in (None, "x", [1], [{"title": "x"}]):
        answer = ask(served, chat_template_kwargs={"documents": value}, max_tokens=1)
        assert answer.status_code in (200, 400)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"messages": NaN}', b"\xff\xfe", b"[" * 9999])
def test_broken_bodies_are_refused(data: bytes, served: Served) -> None:
    headers = {"content-type": "application/json"}

    async def use(client: httpx2.AsyncClient) -> Any:
        return await client.post(CHAT, content=data, headers=headers)

    assert served.run(use).status_code == 400
