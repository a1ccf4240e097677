"""The parts of an answer, however its text is cut into tokens."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.answers.answer_format import COMMON
from mlx_eagle.answers.sections import ChannelSections, Kind, MarkedSections, Place, Sections

SAID, THOUGHT, TOOL = Kind.SAID, Kind.THOUGHT, Kind.TOOL

ANSWERS = [
    ("just text", [(SAID, "just text")]),
    ("a < b <th> c", [(SAID, "a < b <th> c")]),
    ("<think>hm</think>yes", [(THOUGHT, "<think>hm</think>"), (SAID, "yes")]),
    ("wrap it in <think> and </think>.", [(SAID, "wrap it in <think> and </think>.")]),
    ("<think>a</think>b<think>c", [(THOUGHT, "<think>a</think>"), (SAID, "b<think>c")]),
    (
        " <think>b</think>c<tool_call>{}</tool_call>d",
        [
            (SAID, " "),
            (THOUGHT, "<think>b</think>"),
            (SAID, "c"),
            (TOOL, "<tool_call>{}</tool_call>"),
            (SAID, "d"),
        ],
    ),
    ("<think>never ended", [(THOUGHT, "<think>never ended")]),
    ("a[TOOL_CALLS][{}] <think>", [(SAID, "a"), (TOOL, "[TOOL_CALLS][{}] <think>")]),
    ("</think> alone", [(SAID, "</think> alone")]),
]
CHANNELS = [
    ("just text", [(SAID, "just text")]),
    (
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y",
        [
            (THOUGHT, "<|channel|>analysis<|message|>x<|end|>"),
            (SAID, "<|start|>assistant<|channel|>final<|message|>y"),
        ],
    ),
    (
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.get <|constrain|>json<|message|>{}",
        [
            (SAID, "<|channel|>commentary<|message|>I look.<|end|>"),
            (
                TOOL,
                "<|start|>assistant<|channel|>commentary to=functions.get "
                "<|constrain|>json<|message|>{}",
            ),
        ],
    ),
    (
        " to=get<|channel|>commentary<|message|>{}",
        [(TOOL, " to=get<|channel|>commentary<|message|>{}")],
    ),
    (
        "<|channel|>analysis<|message|>no end<|channel|>final<|message|>y",
        [
            (THOUGHT, "<|channel|>analysis<|message|>no end"),
            (SAID, "<|channel|>final<|message|>y"),
        ],
    ),
    ("<|channel|>" + "a" * 400, [(SAID, "<|channel|>" + "a" * 400)]),
]
CUTS = [
    *((MarkedSections, (COMMON,), *case) for case in ANSWERS),
    *((ChannelSections, (), *case) for case in CHANNELS),
]


def parts(tokens: list[str], sections: Sections) -> list[tuple[Kind, str]]:
    """Return the parts of an answer, neighbours of one kind joined."""
    spans = [span for token in tokens for span in sections.add(token, False)] + sections.finish()
    joined: list[tuple[Kind, str]] = []
    for span in spans:
        if joined and joined[-1][0] is span.kind:
            joined[-1] = (span.kind, joined[-1][1] + span.text)
        else:
            joined.append((span.kind, span.text))
    return joined


@pytest.mark.parametrize(("kind", "marks", "answer", "expected"), CUTS)
def test_parts_are_told_apart_however_the_text_is_cut(
    kind: Callable[..., Sections], marks: Any, answer: str, expected: list[tuple[Kind, str]]
) -> None:
    for step in (1, 2, 3, 5, 1000):
        tokens = [answer[at : at + step] for at in range(0, len(answer), step)]
        assert parts(tokens, kind(*marks)) == expected


WORDS = [
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    " to=",
    "analysis",
    "<th",
    "ink>",
    "a",
]


@given(st.lists(st.sampled_from(WORDS) | st.text("<>/think |[]TOOL_CS", max_size=6), max_size=30))
def test_no_text_is_lost_or_reordered_and_a_cut_changes_no_part(tokens: list[str]) -> None:
    for make in (ChannelSections, lambda: MarkedSections(COMMON)):
        assert "".join(text for _, text in parts(tokens, make())) == "".join(tokens)
        assert parts(tokens, make()) == parts(["".join(tokens)], make())


def test_text_that_cannot_become_a_mark_is_not_held_back() -> None:
    sections = MarkedSections(COMMON)
    assert [span.text for span in sections.add("a <", False)] == ["a "]
    assert [span.text for span in sections.add(" b", False)] == ["<", " b"]


def test_every_character_keeps_whether_it_was_drafted() -> None:
    sections = MarkedSections(COMMON)
    spans = sections.add(" <th", True) + sections.add("ink>b", False) + sections.finish()
    assert [tuple(span) for span in spans] == [
        (" ", SAID, True, Place.BODY),
        ("<th", THOUGHT, True, Place.START),
        ("ink>", THOUGHT, False, Place.START),
        ("b", THOUGHT, False, Place.BODY),
    ]


def test_an_answer_goes_on_in_the_part_that_was_begun() -> None:
    sections = MarkedSections(COMMON)
    sections.begin("<think>")
    assert parts(["hm</", "think>yes"], sections) == [(THOUGHT, "hm</think>"), (SAID, "yes")]
