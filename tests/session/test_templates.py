"""Ten turns (one or two by default) with thoughts and calls of tools, on four families' templates.

What the model writes is forced by a pattern, but for the end of every answer, so that a target that
never saw a tool writes thoughts and calls as such models do. The oracle is a new conversation that
is given the same messages and has nothing cached.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cases import narrowed
from doubles import make_engine
from mlx_eagle.answers.history import with_ids
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.session.prompt import Template, encode
from mlx_eagle.session.session import Session
from mlx_eagle.target.tokenizer import read_tokenizer
from mlx_eagle.tree_shape import TreeShape

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {}}}}]


class Writing(NamedTuple):
    """How a family writes: a thought, a call, an answer; what the thought may be is up to it."""

    thought: str
    call: str
    said: str = ""

    def call_of(self, turn: int) -> str:
        """Return the text of an answer that thinks and calls."""
        arguments = f'{{"a": {turn}, "b": 2}}'
        return self.thought.format("hm") + self.call.replace("ARGUMENTS", arguments)


FAMILIES = {
    "harmony": Writing(
        "<|channel|>analysis<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
        "ARGUMENTS",
        "<|start|>assistant<|channel|>final<|message|>",
    ),
    "qwen3": Writing(
        "<think>\n{}\n</think>\n\n",
        '<tool_call>\n{"name": "add", "arguments": ARGUMENTS}\n</tool_call>',
    ),
    "mistral": Writing(
        "[THINK]{}[/THINK]", '[TOOL_CALLS][{"name": "add", "arguments": ARGUMENTS}]'
    ),
    "llama3": Writing("<think>\n{}\n</think>\n\n", '{"name": "add", "parameters": ARGUMENTS}'),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def templated(
    family: str,
    demo: Engine,
    tiny_target: Callable[..., Any],
    head_config: HeadConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    """A tiny random pair with the demo pair's tokenizer and the template of a family."""
    folder = tmp_path_factory.mktemp(family)
    for file in (Path(__file__).parents[2] / "mlx_eagle" / "demo" / "target").glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(TEMPLATES / f"{family}.jinja", folder / "chat_template.jinja")
    tokenizer = read_tokenizer(folder, demo.tokenizer.eos_token_ids)
    sizes = {"vocab_size": 4096, "max_position_embeddings": 8192, "num_hidden_layers": 3}
    model = tiny_target("llama", **sizes)
    return make_engine(model, head_config, tokenizer)


def few_families(*few: str) -> Any:
    """Try a test with these families by default, and with all of them where more is asked for."""
    return pytest.mark.parametrize("family", narrowed(FAMILIES, few), indirect=True)


def literally(text: str) -> str:
    """Return a pattern that matches this text alone, in Rust's syntax."""
    return re.sub(r"([][.*+?(){}^$|\\])", r"\\\1", text)


def shared(left: list[int], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)))


def send(session: Session, asked: list[dict[str, Any]], **options: Any) -> Any:
    """Send messages and return the answer; what is cached of the prompt must be used."""
    held, tokenizer = list(session.prefix.tokens), session._engine.tokenizer
    told = [*session.messages, *with_ids(session.messages, asked)]
    ids = encode(tokenizer, told, Template({}, session.template.tools))
    *_, last = session.send(asked, max_tokens=200, tree=TreeShape.chain(1), **options)
    assert last.finish_reason == "stop"
    # The newest token that both begin with is read again, for what follows it.
    assert last.stats.cached_tokens == max(shared(held, ids) - 1, 0)
    return session.messages[-1]


@few_families("llama3")
def test_b1_ten_turns_with_thoughts_and_tools_equal_fresh_conversations(
    family: str, templated: Engine, is_quick: bool
) -> None:
    writing, n_reused, n_read = FAMILIES[family], 0, 0
    n_turns = 2 if is_quick else 10
    session = templated.session(tools=TOOLS)
    free = literally(writing.thought.format("so") + writing.said) + "[a-z ]{4,12}"
    for turn in range(n_turns):
        question, pattern = {"role": "user", "content": f"{turn} and 2?"}, writing.call_of(turn)
        call = send(session, [question], regex=literally(pattern))
        assert (call["content"], call["reasoning_content"]) == ("", "hm")
        (function,) = [each["function"] for each in call["tool_calls"]]
        assert function == {"name": "add", "arguments": {"a": turn, "b": 2}}
        before, fresh = list(session.prefix.tokens), templated.session(tools=TOOLS)
        fresh.messages = list(session.messages)
        result = {"role": "tool", "content": str(turn + 2)}
        answer = send(session, [result], regex=free)
        assert send(fresh, [result], regex=free) == answer
        assert session.prefix.tokens == fresh.prefix.tokens
        assert answer["reasoning_content"] == "so"
        assert re.fullmatch("[a-z ]{4,12}", answer["content"])
        n_reused += shared(before, session.prefix.tokens)
        n_read += len(session.prefix.tokens)
    assert len(session.messages) == 4 * n_turns
    assert n_reused > n_read / 3, "what earlier turns have in common with the next is reused"


@few_families("qwen3")
def test_a_conversation_with_tools_is_saved_and_goes_on(
    family: str, templated: Engine, tmp_path: Path
) -> None:
    writing = FAMILIES[family]
    session = templated.session(tools=TOOLS)
    list(session.ask("1 and 2?", regex=literally(writing.call_of(1)), max_tokens=200))
    session.save(tmp_path / "talk")
    loaded = templated.load_session(tmp_path / "talk")
    assert loaded.messages == session.messages
    assert loaded.template.tools == TOOLS
    result = [{"role": "tool", "content": "3"}]
    answers = [list(each.send(result, max_tokens=8)) for each in (session, loaded)]
    assert [r.token for r in answers[0]] == [r.token for r in answers[1]]


@few_families("harmony", "qwen3")
def test_an_answer_cut_short_anywhere_keeps_the_conversation_usable(
    family: str, templated: Engine
) -> None:
    writing = FAMILIES[family]
    for n in range(1, 60, 20):
        session = templated.session(tools=TOOLS)
        pattern = literally(writing.call_of(1))
        stream = session.ask("1 and 2?", regex=pattern, max_tokens=200)
        for _, _response in zip(range(n), stream, strict=False):
            pass
        stream.close()
        if "tool_calls" not in session.messages[-1]:
            list(session.ask("And now?", max_tokens=2))
            assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_send_takes_messages_and_nothing_else(demo: Engine) -> None:
    session = demo.session()
    for wrong in ([], "text", ["text"], [5], [{"content": "hi"}], [{"role": 5}]):
        with pytest.raises(EagleError, match="chat messages"):
            session.send(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama3"], indirect=True)
def test_a_template_of_single_calls_is_given_them_one_by_one(templated: Engine) -> None:
    call = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
    session = templated.session(tools=TOOLS)
    list(session.ask("1 and 2, twice?", regex=literally(f"{call}; {call}"), max_tokens=200))
    assert len(session.messages[-1]["tool_calls"]) == 2
    results = [{"role": "tool", "content": "3"}, {"role": "tool", "content": "three"}]
    list(session.send(results, max_tokens=2))
    text = templated.tokenizer.decode(session.prefix.tokens)
    places = [text.index(words) for words in ('"3"', '"three"')]
    assert text.count('"name": "add"') == 2
    assert places == sorted(places)


@pytest.mark.parametrize("family", ["mistral"], indirect=True)
def test_an_answer_that_was_begun_is_one_message(templated: Engine) -> None:
    session = templated.session()
    asked = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "It"}]
    list(session.send(asked, regex=" is", max_tokens=9))
    assert session.messages == [asked[0], {"role": "assistant", "content": "It is"}]
    list(session.ask("And 2?", max_tokens=2))


OFFERED = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"


@pytest.mark.parametrize("offered", ["", OFFERED], ids=["alone", "tools-offered"])
def test_a_template_that_leaves_calls_out_is_refused(
    demo: Engine, monkeypatch: Any, offered: str
) -> None:
    words = offered + "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    monkeypatch.setattr(demo.tokenizer._tokenizer, "chat_template", words)
    call = {"type": "function", "id": "a", "function": {"name": "add", "arguments": {}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    told = [{"role": "user", "content": "1?"}, called, {"role": "tool", "content": "3"}]
    with pytest.raises(EagleError, match="leaves out the calls of tools"):
        encode(demo.tokenizer, told, template=Template(tools=TOOLS))
    encode(demo.tokenizer, [*told, {"role": "user", "content": "and?"}])  # of an earlier turn


def test_whether_a_template_names_calls_is_seen_without_reading_all_again(
    demo: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(demo.tokenizer._tokenizer, "chat_template", words)
    render, texts = demo.tokenizer._tokenizer.apply_chat_template, list[Any]()

    def note(*args: Any, **options: Any) -> Any:
        texts.append(render(*args, **options))
        return texts[-1]

    monkeypatch.setattr(demo.tokenizer._tokenizer, "apply_chat_template", note)
    call = {"type": "function", "id": "a", "function": {"name": "add", "arguments": {}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    told = [{"role": "user", "content": "1? " * 99}, called, {"role": "tool", "content": "3"}]
    assert encode(demo.tokenizer, told) == texts[0]
    assert texts[1:] == ["user -assistant addtool 3", "user -assistant -tool 3"]


@pytest.mark.parametrize("offered", ["", OFFERED], ids=["alone", "tools-offered"])
def test_a_template_may_name_a_call_by_its_id(demo: Engine, monkeypatch: Any, offered: str) -> None:
    words = (
        offered + "{% for m in messages %}{{ m.role }} {{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.id }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(demo.tokenizer._tokenizer, "chat_template", words)
    call = {"type": "function", "id": "functions.add:0", "function": {"name": "add"}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    told = [{"role": "user", "content": "1?"}, called, {"role": "tool", "content": "3"}]
    ids = encode(demo.tokenizer, told, template=Template(tools=TOOLS))
    assert "functions.add:0" in demo.tokenizer.decode(ids)
