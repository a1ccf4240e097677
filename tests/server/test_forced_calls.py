"""Calls that keep to their schemas, drafted: valid, the same without drafts, and rendered alike."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.session.forced_calls import CallGrammars
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.tree import TreeShape
from served import Served

CHAT = "/v1/chat/completions"
ASKED: Any = [{"role": "user", "content": "What does zip do?"}]
KINDS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 99},
    {"type": "boolean"},
    {"enum": ["red", "green", 'with "quotes"', "ünï"]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    {"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": False},
]


def draw_tool(rng: random.Random, name: str) -> dict[str, Any]:
    """Return a tool whose calls are short."""
    names = [f"p{place}" for place in range(rng.randrange(4))]
    schema = {
        "type": "object",
        "properties": {name: rng.choice(KINDS) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def ask(served: Served, **fields: Any) -> Any:
    body = {"messages": ASKED, "max_tokens": 200, "temperature": 1} | fields
    answer = served.ask(CHAT, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_call_that_must_be_made_is_valid_and_the_same_without_drafts(
    served: Served, is_quick: bool
) -> None:
    rng = random.Random(3)
    n_drafted, served.engine.tree = 0, TreeShape(2, 2, 3)
    for seed in range(1 if is_quick else 100):
        tools = [draw_tool(rng, name) for name in ("first", "second")]
        choice: Any = rng.choice(["required", {"type": "function", "function": {"name": "second"}}])
        fields = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        fields["chat_template_kwargs"] = {"enable_thinking": False}  # the pair would never end it
        answer = ask(served, seed=seed, **fields)
        n_drafted += answer["timings"]["draft_n"]
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        arguments = json.loads(call["function"]["arguments"])
        (tool,) = [t for t in tools if t["function"]["name"] == call["function"]["name"]]
        jsonschema.validate(arguments, tool["function"]["parameters"])
        assert choice == "required" or call["function"]["name"] == "second"
        # As templates write it: the call in the next prompt is the same text, and the same tokens.
        assert call["function"]["arguments"] == json.dumps(arguments, ensure_ascii=False)
        plain = ask(served, seed=seed, speculate=False, **fields)
        (same,) = plain["choices"][0]["message"]["tool_calls"]
        assert same["function"] == call["function"]
    assert n_drafted > 0


def test_a_schema_may_follow_a_thought_and_calls_may_come_instead(served: Served) -> None:
    schema = {"enum": ["yes", "no"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    served.engine.write('<think>\nhm\n</think>"yes"')
    message = ask(served, response_format=wanted)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", '"yes"')
    tools = [draw_tool(random.Random(1), "first")]
    tools[0]["function"]["parameters"]["required"] = []
    served.engine.write('<tool_call>\n{"name": "first", "arguments": {}}\n</tool_call>')
    message = ask(served, response_format=wanted, tools=tools)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "first", "arguments": "{}"}
    served.engine.write(None)


def test_a_call_that_no_schema_allows_cannot_be_written(served: Served) -> None:
    """The model would write a number that is too large: penalties leave nothing else."""
    tools = [draw_tool(random.Random(1), "first")]
    served.engine.write('<tool_call>\n{"name": "third", "arguments": {}}\n</tool_call>')
    body = {"messages": ASKED, "max_tokens": 60, "tools": tools}
    answer = served.ask(CHAT, body)
    served.engine.write(None)
    assert answer.status_code == 400
    assert "grammar" in answer.json()["error"]["message"]


def test_a_tool_whose_schema_cannot_be_followed_lets_go_of_no_other(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Of its own calls the name is forced, and that the arguments are an object."""
    odd: Any = {"type": "function", "function": {"name": "odd"}}
    odd["function"]["parameters"] = {"$ref": "http://localhost:9/schema.json"}
    tools = [draw_tool(random.Random(1), "first"), odd]
    body: Any = {"messages": ASKED, "max_tokens": 60, "tools": tools}
    for text, status in [
        ('{"name": "odd", "arguments": {"any": [1, "x"]}}', 200),
        ('{"name": "odd", "arguments": [1]}', 400),
        ('{"name": "first", "arguments": {"p9": 1}}', 400),
    ]:
        served.engine.write(f"<tool_call>\n{text}\n</tool_call>")
        with caplog.at_level("INFO", "mlx_eagle.server"):
            assert served.ask(CHAT, body).status_code == status, text
        assert "of 1 tools names are forced and arguments are not" in caplog.text
    served.engine.write(None)
    named = {"type": "function", "function": {"name": "odd"}}
    for choice in ("required", named, "auto"):
        odd["function"]["strict"] = choice == "auto"
        refused = served.ask(CHAT, body | {"tool_choice": choice})
        assert refused.status_code == 400
        assert "calls of the tool odd cannot be forced" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("names", "loose"), [("abc", "abc"), ("abco", "abco"), ("abo", "o"), ("ab", "")], ids=str
)
def test_tools_that_are_too_large_together_are_served_whatever_stands_beside_them(
    names: str, loose: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that follows two of the tools at a time, and one of them never."""
    follow = CallGrammars._compile

    def compile_few(
        self: CallGrammars, tools: Sequence[Any], loose: frozenset[str] = frozenset()
    ) -> Any:
        followed = {tool["function"]["name"] for tool in tools} - loose
        if len(followed) > 2 or "o" in followed:
            raise EagleError("the grammar is too large")
        return follow(self, tools, loose)

    monkeypatch.setattr(CallGrammars, "_compile", compile_few)
    tools = tuple(draw_tool(random.Random(1), name) for name in names)
    forced = served.engine.call_grammars.find(GenerationOptions(tools=tools, tool_choice="auto"))
    assert forced is not None and forced.loose == frozenset(loose)


@pytest.mark.broad
def test_every_turn_of_an_agent_reads_only_what_is_new(served: Served) -> None:
    """A call is rendered from the history as it was generated, token by token."""
    served.worker.call(lambda: served.engine.keep_prefixes(1 << 30))
    tools = [draw_tool(random.Random(5), name) for name in ("first", "second")]
    tools[0]["function"]["parameters"] = {"type": "object", "properties": {"x": {"type": "string"}}}
    system = {"role": "system", "content": "Use the tools. " * 20}
    messages, held = [system, *ASKED], 0
    for turn in range(3):
        call = json.dumps({"name": "first", "arguments": {"x": f'ü "{turn}"'}}, ensure_ascii=False)
        served.engine.write(f"<tool_call>\n{call}\n</tool_call>")
        answer = ask(served, messages=messages, tools=tools)
        usage, message = answer["usage"], answer["choices"][0]["message"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= held - 8
        held = usage["total_tokens"]
        (made,) = message["tool_calls"]
        result = {"role": "tool", "tool_call_id": made["id"], "content": f"result {turn}"}
        messages = [*messages, message, result]
    assert held > 300
