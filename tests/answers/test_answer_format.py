"""An answer becomes a chat message: thoughts and calls apart, nothing lost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.answers.answer_format import COMMON, AnswerFormat, read_format
from mlx_eagle.answers.sections import Kind, Mark

CALL = '{"name": "time", "arguments": {"zone": "UTC"}}'
TOOLS = [{"type": "function", "function": {"name": "time", "parameters": {}}}]
TIME = {"name": "time", "arguments": {"zone": "UTC"}}


class Tokenizer:
    """What mlx-lm's wrapper says of a model."""

    tool_parser = None

    def __init__(self, template: Any = "", words: tuple[str, ...] = (), own: bool = False) -> None:
        self.chat_template = template
        self.has_thinking = self.has_tool_calling = own
        self.think_start, self.think_end = "<reason>", "</reason>"
        self.tool_call_start, self.tool_call_end = "<call>", ""
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: n for n, word in enumerate(self.words)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


MARKED = AnswerFormat(Tokenizer())
CHANNELS = AnswerFormat(Tokenizer(), has_channels=True)


def calls(message: dict[str, Any]) -> list[Any]:
    return [call["function"] for call in message.get("tool_calls", [])]


def test_b1_thoughts_and_calls_stand_apart_from_what_is_said() -> None:
    text = f"<think>\nhm\n</think>\n\nLet me look.\n<tool_call>\n{CALL}\n</tool_call>"
    message = MARKED.message(text, tools=TOOLS)
    assert message["reasoning_content"] == "hm"
    assert message["content"] == "Let me look."
    assert calls(message) == [TIME]
    assert message["role"] == "assistant"


def test_b1_the_channels_of_harmony_become_thoughts_text_and_a_call() -> None:
    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>"
    assert CHANNELS.message(f"{said}final<|message|>Noon.") == {
        "role": "assistant",
        "content": "Noon.",
        "reasoning_content": "hm",
    }
    call = f'{said}commentary to=functions.time <|constrain|>json<|message|>{{"zone": "UTC"}}'
    assert CHANNELS.message(call)["content"] == '{"zone": "UTC"}', "it was not offered"
    message = CHANNELS.message(call, tools=TOOLS)
    assert (message["reasoning_content"], message["content"], calls(message)) == ("hm", "", [TIME])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("  plain \n", "  plain \n"),
        ("<think>\nno end", ""),
        ("</think>\n\nonly an end", "</think>\n\nonly an end"),
        (f"<tool_call>{CALL[:-3]}", f"<tool_call>{CALL[:-3]}"),
        (f"<tool_call>{CALL}", f"<tool_call>{CALL}"),
        ("<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>"),
    ],
)
def test_a_call_that_is_cut_short_or_unreadable_is_text(text: str, content: str) -> None:
    message = MARKED.message(text, tools=TOOLS)
    assert message["content"] == content
    assert "tool_calls" not in message


def test_what_was_not_offered_is_not_called() -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert MARKED.message(text) == {"role": "assistant", "content": text}


def test_parts_of_channels_that_are_said_are_paragraphs() -> None:
    text = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final"
    assert CHANNELS.message(f"{text}<|message|>Done.")["content"] == "I look.\n\nDone."


def test_a_mark_that_is_quoted_is_text() -> None:
    text = "Put it into `<think>` tags, then parse."
    assert MARKED.message(text) == {"role": "assistant", "content": text}
    message = MARKED.message(f"<think>hm</think>{text}")
    assert (message["reasoning_content"], message["content"]) == ("hm", text)


def test_a_mark_ends_as_the_vocabulary_of_the_model_says() -> None:
    phi = read_format(Tokenizer(words=("<|tool_call|>", "<|/tool_call|>")))
    granite = read_format(Tokenizer("<|tool_call|>"))
    assert calls(phi.message(f"<|tool_call|>[{CALL}]<|/tool_call|>", tools=TOOLS)) == [TIME]
    assert calls(granite.message(f"<|tool_call|>[{CALL}]", tools=TOOLS)) == [TIME]


def test_a_call_may_be_the_whole_answer_without_a_mark() -> None:
    llama = CALL.replace("arguments", "parameters")
    assert calls(MARKED.message(llama, tools=TOOLS)) == [TIME]
    assert MARKED.message(llama)["content"] == llama
    assert calls(MARKED.message(f"<|python_tag|>{llama}", tools=TOOLS)) == [TIME]
    for text in ('{"a": 1}', '{"name": "Bob", "parameters": {"age": 3}}'):
        assert MARKED.message(text, tools=TOOLS)["content"] == text


def test_the_thought_that_a_prompt_opens_ends_in_the_answer() -> None:
    words = ("<think>", "\n", "a")
    form = read_format(Tokenizer(words=words))
    assert form.begun([2, 0, 1]) == "<think>"
    assert form.begun([0, 1, 2]) == ""
    assert form.message("hm</think>yes", "<think>") == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
    }


def test_an_answer_that_messages_begin_goes_on_in_its_part() -> None:
    begun = MARKED.begun([], [{"role": "assistant", "content": "<think>It"}])
    assert begun == "<think>It"
    assert MARKED.message(" is</think>noon", begun)["reasoning_content"] == " is"
    assert CHANNELS.message("is noon", "It ")["content"] == "is noon"


def test_the_marks_are_those_that_the_tokenizer_or_the_template_knows() -> None:
    assert read_format(Tokenizer()).marks == ()
    think, seed = Mark(Kind.THOUGHT, "<think>", "</think>"), COMMON[2]
    assert read_format(Tokenizer("{{ '<think>' }}")).marks == (think,)
    assert read_format(Tokenizer(words=("<seed:think>",))).marks == (seed,)
    assert read_format(Tokenizer({"default": "", "tool_use": "<think>"})).marks == (think,)
    own = (Mark(Kind.THOUGHT, "<reason>", "</reason>"), Mark(Kind.TOOL, "<call>", ""))
    assert read_format(Tokenizer(own=True)).marks == own
    assert read_format(Tokenizer("<|channel|>final<|message|>")).has_channels


PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "é", "\n", "a"]


@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_what_is_no_call_and_no_mark_stays_in_the_message(words: list[str]) -> None:
    message = MARKED.message("".join(words), tools=TOOLS)
    kept = message["content"] + message.get("reasoning_content", "")
    assert kept.count("é") == words.count("é")
    assert kept.count("UTC") + len(calls(message)) == words.count(CALL)
