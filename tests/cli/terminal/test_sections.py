"""The parts of an answer, however its text is cut into tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.cli.terminal.sections import COMMON, Kind, Mark, Marks, Sections, read_marks

MARKS = Marks(COMMON)
SAID, THOUGHT, TOOL = Kind.SAID, Kind.THOUGHT, Kind.TOOL

ANSWERS = [
    ("just text", [(SAID, "just text")]),
    ("a < b <th> c", [(SAID, "a < b <th> c")]),
    ("<think>hm</think>yes", [(THOUGHT, "<think>hm</think>"), (SAID, "yes")]),
    (
        "a<think>b</think>c<tool_call>{}</tool_call>d",
        [
            (SAID, "a"),
            (THOUGHT, "<think>b</think>"),
            (SAID, "c"),
            (TOOL, "<tool_call>{}</tool_call>"),
            (SAID, "d"),
        ],
    ),
    ("<think>never ended", [(THOUGHT, "<think>never ended")]),
    ("a[TOOL_CALLS][{}] <think>", [(SAID, "a"), (TOOL, "[TOOL_CALLS][{}] <think>")]),
    ("</think> alone", [(SAID, "</think> alone")]),
    (
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y",
        [
            (THOUGHT, "<|channel|>analysis<|message|>x<|end|>"),
            (SAID, "<|start|>assistant<|channel|>final<|message|>y"),
        ],
    ),
]


def parts(tokens: list[str], marks: Marks = MARKS) -> list[tuple[Kind, str]]:
    """Return the parts of an answer, neighbours of one kind joined."""
    sections = Sections(marks)
    spans = [span for token in tokens for span in sections.add(token, False)] + sections.finish()
    joined: list[tuple[Kind, str]] = []
    for span in spans:
        if joined and joined[-1][0] is span.kind:
            joined[-1] = (span.kind, joined[-1][1] + span.text)
        else:
            joined.append((span.kind, span.text))
    return joined


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_parts_are_told_apart_however_the_text_is_cut(
    answer: str, expected: list[tuple[Kind, str]]
) -> None:
    for step in (1, 2, 3, 5, 1000):
        tokens = [answer[at : at + step] for at in range(0, len(answer), step)]
        assert parts(tokens) == expected


@given(st.lists(st.text("<>/think |a[]TOOL_CS", max_size=6), max_size=30))
def test_no_text_is_lost_or_reordered(tokens: list[str]) -> None:
    sections = Sections(MARKS)
    spans = [span for token in tokens for span in sections.add(token, False)]
    assert "".join(span.text for span in spans + sections.finish()) == "".join(tokens)


def test_text_that_cannot_become_a_mark_is_not_held_back() -> None:
    sections = Sections(MARKS)
    assert [span.text for span in sections.add("a <", False)] == ["a "]
    assert [span.text for span in sections.add(" b", False)] == ["<", " b"]


def test_every_character_keeps_whether_it_was_drafted() -> None:
    sections = Sections(MARKS)
    spans = sections.add("a<th", True) + sections.add("ink>b", False) + sections.finish()
    assert [(s.text, s.kind, s.is_draft) for s in spans] == [
        ("a", SAID, True),
        ("<th", THOUGHT, True),
        ("ink>", THOUGHT, False),
        ("b", THOUGHT, False),
    ]


class Tokenizer:
    """What mlx-lm's wrapper says of a model."""

    def __init__(self, prompt: str | Exception, thinking: bool = True, tools: bool = True) -> None:
        self.prompt = prompt
        self.has_thinking, self.has_tool_calling = thinking, tools
        self.think_start, self.think_end = "<reason>", "</reason>"
        self.tool_call_start, self.tool_call_end = "<call>", ""
        self.has_chat_template = True

    def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
        if isinstance(self.prompt, Exception):
            raise self.prompt
        return self.prompt


def test_a_model_may_have_marks_of_its_own() -> None:
    marks = read_marks(Tokenizer("<user>hello<assistant>"))
    assert marks.opening is None
    tokens = ["<reason>hm</reason>", "a", "<call>b"]
    expected = [(THOUGHT, "<reason>hm</reason>"), (SAID, "a"), (TOOL, "<call>b")]
    assert parts(tokens, marks) == expected


def test_a_prompt_may_open_the_thoughts_so_that_the_answer_only_ends_them() -> None:
    marks = read_marks(Tokenizer("<user>hello<assistant>\n<think>\n", thinking=False))
    assert marks.opening == Mark(THOUGHT, "<think>", "</think>")
    expected = [(THOUGHT, "hm</think>"), (SAID, "yes")]
    assert parts(["hm", "</think>yes"], marks) == expected


def test_a_template_that_refuses_to_be_tried_opens_nothing() -> None:
    assert read_marks(Tokenizer(ValueError("no such role"))).opening is None


def test_the_marks_of_the_demo_pair_are_the_common_ones(demo: Any) -> None:
    assert read_marks(demo.tokenizer) == Marks(COMMON)
