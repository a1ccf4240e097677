"""How a model's chat template writes calls that are no JSON: read off one that it has written.

A call of a made-up tool is rendered, and what stands between its name, keys and values is the
layout. That serves for every family that writes key after key (Qwen3-Coder, MiniMax, GLM), and it
is what the same call will look like in the next prompt.
"""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from mlx_eagle.answers.tool_calls import parse_calls, parser_of_mark

NAME, KEYS = "probe_of_calls", ("first_key", "second_key", "third_key")
TEXT = "some words"
PROBE: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "None.",
        "parameters": {
            "type": "object",
            "properties": {
                KEYS[0]: {"type": "string"},
                KEYS[1]: {"type": "boolean"},
                KEYS[2]: {"type": "integer"},
            },
        },
    },
}
ARGUMENTS = dict(zip(KEYS, (TEXT, True, 7), strict=True))


class CallLayout(NamedTuple):
    """What stands between the parts of a call, from its opening mark to its closing one.

    Attributes:
        before: before the name.
        first: between the name and the first key.
        middle: between a key and its value.
        tail: after every value.
        between: between a value's tail and the next key.
        end: between the last value's tail and the closing mark.
        bare: between the name and the closing mark where there are no arguments.
        true: how true is written; false alike.
    """

    before: str
    first: str
    middle: str
    tail: str
    between: str
    end: str
    bare: str
    true: str

    @property
    def false(self) -> str:
        """How false is written."""
        return "False" if self.true == "True" else "false"


def read_layout(tokenizer: Any, start: str, end: str) -> CallLayout | None:
    """Return the layout of a model's calls; None where it cannot be read off a call.

    What was read is tried: the model's own parser must find the call in it.

    Args:
        tokenizer: mlx-lm's wrapper.
        start: the mark before a call.
        end: the mark after it.
    """
    whole = _rendered(tokenizer, ARGUMENTS, start, end)
    bare = _rendered(tokenizer, {}, start, end)
    if whole is None or bare is None:
        return None
    before, name, without = bare.partition(NAME)
    found = re.fullmatch(_pattern(before), whole, re.DOTALL)
    if not name or found is None or found["between"] != found["between2"]:
        return None
    if not found["middle"] == found["middle2"] == found["middle3"]:
        return None
    tail = _common_beginning(found["between"], found["end"])
    known = parse_calls(whole, parser_of_mark(start, tokenizer), [PROBE])
    if not tail or [(call.name, call.arguments) for call in known] != [(NAME, ARGUMENTS)]:
        return None
    between, last = found["between"][len(tail) :], found["end"][len(tail) :]
    return CallLayout(
        before, found["first"], found["middle"], tail, between, last, without, found["true"]
    )


def _common_beginning(one: str, other: str) -> str:
    """Return with what both texts begin."""
    pairs = zip(one, other, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _pattern(before: str) -> str:
    """Return what the rendered call matches."""
    return (
        f"{re.escape(before)}{NAME}(?P<first>.*?){KEYS[0]}(?P<middle>.*?){TEXT}"
        f"(?P<between>.*?){KEYS[1]}(?P<middle2>.*?)(?P<true>true|True)"
        f"(?P<between2>.*?){KEYS[2]}(?P<middle3>.*?)7(?P<end>.*)"
    )


def _rendered(tokenizer: Any, arguments: Mapping[str, Any], start: str, end: str) -> str | None:
    """Return what the template writes between the marks of a call, if it writes any."""
    call = {"type": "function", "id": "call00000", "function": {"name": NAME}}
    call["function"]["arguments"] = arguments  # type: ignore[index]
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=[PROBE], tokenize=False, add_generation_prompt=False
        )
    except Exception:  # a template raises what it likes
        return None
    _, mark, after = str(text).rpartition(start)
    body, closing, _ = after.partition(end)
    return body if mark and closing else None
