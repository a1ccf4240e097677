"""Calls as events where no grammar forces them: nothing is lost, and nothing made up."""

import json
import random
from itertools import count
from typing import Any

import pytest

from cases import broad
from doubles import ByteTokenizer
from mlx_eagle.answers.answer_format import AnswerFormat
from mlx_eagle.server.events import CalledTool, CallEnd, Collector, End, Event, Thought, Usage
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.server.split import Split

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find", "count")
]
GOOD = '{"name": "find", "arguments": {"w": "a } b"}}'
OTHER = '{"name": "count", "arguments": {}}'
BROKEN = ("{'w': 1}", '{"w": NaN}', '{"w": -Infinity}', '{"w": 1e999}', '{"w" 1}', "{w}")


MARKED = AnswerFormat(ByteTokenizer())
HARMONY = AnswerFormat(ByteTokenizer(), has_channels=True)
PIECES = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "\n", "\n\n", " "),
    *("a", "I look.", "{", ";", GOOD, OTHER, f"[{GOOD}, {OTHER}]", GOOD.replace("find", "no")),
]
HEADERS = [
    *("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    "<|channel|>commentary to=functions.find <|constrain|>json<|message|>",
]
BODIES = ["a", "hm", "{}", '{"w": 1}', "{ no"]


def split(
    text: str, step: int = 3, is_cut: bool = False, form: AnswerFormat = MARKED, **options: Any
) -> list[Event]:
    """Return the events of an answer that comes in pieces."""
    ids = count()
    sections, own = form.sections(), Split(form, TOOLS, lambda: f"call_{next(ids)}", **options)
    pieces = (sections.add(text[at : at + step], False) for at in range(0, len(text), step))
    events = [event for spans in pieces for event in own.add(spans)]
    return [*events, *own.add(sections.finish()), *own.finish(is_cut=is_cut)]


def joined(events: list[Event]) -> tuple[str, list[CalledTool]]:
    """Return the words and the calls of an answer."""
    whole, collector = None, Collector()
    for event in [*events, End("stop", "", Usage(), {})]:
        whole = collector.add(event)
    assert whole is not None
    return whole.said, whole.calls


@pytest.mark.parametrize("arguments", BROKEN)
def test_arguments_that_are_no_json_are_what_was_written_or_text(arguments: str) -> None:
    text = f'<tool_call>\n{{"name": "find", "arguments": {arguments}}}\n</tool_call>'
    said, (call,) = joined(split(text))
    assert (said, call.name, call.arguments, call.is_complete) == ("", "find", arguments, True)
    assert joined(split(text, takes_text=False)) == (text, [])
    with pytest.raises(RefusalError, match="no JSON object"):
        split(text, takes_text=False, loose=frozenset())


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "count", "arguments": 7}\n</tool_call>',
        '<tool_call>[{"name": "count", "arguments": {"w": [NaN]}}]</tool_call>',
        "<tool_call>\nno JSON\n</tool_call>",
        "<tool_call>\n[1, 2]\n</tool_call>",
        '{"name": "count", "arguments": {"w": 1e999}}',
        '[{"name": "count", "arguments": ' + '{"w": ' * 300 + "1" + "}" * 300 + "}]",
    ],
)
def test_what_is_no_call_of_an_offered_tool_is_text(text: str) -> None:
    for takes_text in (True, False):
        assert joined(split(text, takes_text=takes_text)) == (text, [])


@pytest.mark.parametrize("takes_text", [True, False])
@pytest.mark.parametrize("joint", ["", "\n", ";\n", ", "])
def test_no_call_of_a_part_is_lost(joint: str, takes_text: bool) -> None:
    for step in (1, 7, 1000):
        text = f"<tool_call>\n{GOOD}{joint}{OTHER}\n</tool_call>"
        said, calls = joined(split(text, step, takes_text=takes_text))
        if joint == ", " and not takes_text:  # a comma stands within lists alone
            assert (said, calls) == (text, [])
            continue
        assert [(c.name, c.arguments, c.is_complete) for c in calls] == [
            ("find", '{"w": "a } b"}', True),
            ("count", "{}", True),
        ]
        assert said == ""


def test_what_follows_a_call_within_its_part_is_text_if_it_is_none() -> None:
    for rest in (" and more", '{"name": "unknown", "arguments": {}}', '{"name": "cou'):
        said, calls = joined(split(f"<tool_call>{GOOD}{rest}</tool_call>"))
        assert (said, len(calls)) == (rest, 1)
    named = GOOD[:-1] + ', "id": "}", "other": {"a": []}}'
    said, calls = joined(split(f"<tool_call>{named}</tool_call>"))
    assert (said, [call.arguments for call in calls]) == ("", ['{"w": "a } b"}'])


def test_a_call_that_is_cut_is_incomplete_and_those_before_it_are_not() -> None:
    text = f"<tool_call>{GOOD}{OTHER}</tool_call>"
    for length in range(len("<tool_call>"), len(text)):
        events = split(text[:length], is_cut=True)
        _, calls = joined(events)
        n_complete = sum(isinstance(event, CallEnd) for event in events)
        assert n_complete == sum(call.is_complete for call in calls) == max(len(calls) - 1, 0)


def draw_answer(rng: random.Random, form: AnswerFormat) -> str:
    """Return what a model may write, however odd."""
    n = rng.randrange(1, 8)
    if not form.has_channels:
        return "".join(rng.choice(PIECES) for _ in range(n))
    parts = ((HEADERS, BODIES, ["<|end|>", "<|call|>"]) for _ in range(n))
    return "<|start|>assistant".join("".join(map(rng.choice, part)) for part in parts)


@pytest.mark.parametrize("n", [100, broad(3_000)])
@pytest.mark.parametrize("form", [MARKED, HARMONY], ids=["marks", "channels"])
def test_a_stream_says_what_the_message_of_the_whole_text_says(form: AnswerFormat, n: int) -> None:
    """But for line breaks at its start, which were sent before a mark followed."""
    rng = random.Random(2)
    for _ in range(n):
        text = draw_answer(rng, form)
        events = split(text, rng.choice([1, 3, 1000]), form=form, takes_text=False)
        said, calls = joined(events)
        thoughts = "".join(event.text for event in events if isinstance(event, Thought))
        message = form.message(text, tools=TOOLS)
        functions = [call["function"] for call in message.get("tool_calls", ())]
        assert said.strip("\n") == message["content"].strip("\n"), text
        assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in calls] == functions
        thought = message.get("reasoning_content", "")
        assert thoughts.replace("\n", "") == thought.replace("\n", ""), text
