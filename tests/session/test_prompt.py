"""Prompts that are refused before anything runs, each by name."""

from typing import Any

import pytest

import mlx_eagle
from mlx_eagle import mlx_lm_api
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


def test_b4_what_was_given_at_load_and_to_the_session_holds_in_every_turn(
    templated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = [{"role": "user", "content": "hi"}]

    def length(session: Any, **options: Any) -> int:
        return int(list(session.ask("hi", max_tokens=1, **options))[-1].prompt_tokens)

    off, on = ({"enable_thinking": value} for value in (False, True))
    plain = length(templated.session(template_args=off))
    thinking = length(templated.session(template_args=on))
    with_tools = length(templated.session(template_args=off, tools=[TOOL]))
    assert thinking > plain < with_tools
    monkeypatch.setattr(templated, "template", Template(on))
    assert length(templated.session()) == thinking
    assert length(templated.session(template_args=off)) == plain, "the session decides"
    session = templated.session(tools=[TOOL])
    assert length(session, template_args=off, tools=None) == plain, "the turn decides"
    assert session.template == Template(on, [TOOL])
    assert templated.generate(question, max_tokens=1).stats.prompt_tokens == thinking
    told = mlx_lm_api.stream_generate(templated, None, question, 1, template_args=off)
    assert next(told).prompt_tokens == plain


def test_b4_load_takes_template_args_and_refuses_what_is_none() -> None:
    engine = mlx_eagle.load(template_args={"enable_thinking": False}, calibrate=False)
    assert engine.session().template.args == {"enable_thinking": False}
    with pytest.raises(EagleError, match="template_args is 5; give a dict of names and values"):
        mlx_eagle.load(template_args=5)
    for wrong in (5, [5], "time"):
        with pytest.raises(ValueError, match="tools must be a list of JSON schemas"):
            engine.generate("hi", tools=wrong)


def test_b4_a_template_that_wants_arguments_as_json_gets_them(
    demo: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '{' + c.function.arguments }}"
    )
    monkeypatch.setattr(
        demo.tokenizer._tokenizer, "chat_template", f"{template}{{% endfor %}}{{% endfor %}}"
    )
    call = {"type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}] * 2
    assert shown(demo, [*messages, {"role": "user", "content": "a"}]).startswith('{{"zone": "UTC"}')
