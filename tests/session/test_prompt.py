"""Prompts that are refused before anything runs, each by name."""

from typing import Any

import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import Template, encode


@pytest.mark.parametrize(
    "prompt",
    ["ab\ud83d", [{"role": "user", "content": "ab\ud83d"}], [{"role": "ab\udcff", "content": ""}]],
)
def test_b11_half_a_character_is_no_text(prompt: Any, demo: Engine) -> None:
    with pytest.raises(EagleError, match="not Unicode text: character 3 is half of a pair"):
        encode(demo.tokenizer, prompt)
    session = demo.session()
    with pytest.raises(EagleError, match="not Unicode text"):
        list(session.ask("\ud83d"))
    assert session.messages == []


TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% for c in m.tool_calls or [] %}call {{ c.function.name }}\n{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ ' thinking' if enable_thinking }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "time", "parameters": {}}}


@pytest.fixture
def templated(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The demo pair with a template that shows what it was given."""
    monkeypatch.setattr(demo.tokenizer._tokenizer, "chat_template", TEMPLATE)
    return demo


def shown(engine: Engine, messages: Any, **template: Any) -> str:
    ids = encode(engine.tokenizer, messages, Template(**template))
    return str(engine.tokenizer.decode(ids))


def test_b4_the_template_is_given_arguments_and_tools(templated: Engine) -> None:
    question = [{"role": "user", "content": "hi"}]
    assert shown(templated, question, args={"enable_thinking": False}).endswith("assistant:")
    assert shown(templated, question, args={"enable_thinking": True}).endswith("thinking")
    assert "[time]" in shown(templated, question, tools=[TOOL])
    assert "[time]" not in shown(templated, question)


def test_b4_messages_of_tools_reach_the_template(templated: Engine) -> None:
    call = {"type": "function", "function": {"name": "time", "arguments": {}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "name": "time"},
    ]
    text = shown(templated, messages)
    assert "call time" in text
    assert "tool: noon" in text


def test_b4_an_answer_that_is_begun_goes_on(templated: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    assert shown(templated, messages).endswith("assistant: It is")


def test_b4_a_request_hands_them_on(templated: Engine) -> None:
    question = [{"role": "user", "content": "hi"}]
    plain, told = (
        templated.generate(question, max_tokens=1, **options).stats.prompt_tokens
        for options in ({}, {"template_args": {"enable_thinking": True}, "tools": [TOOL]})
    )
    assert told > plain
