"""Grammars of calls of tools, in llguidance's language: JSON, or key after key.

What is forced is spelled as templates spell it, so that a call that was generated and the same call
in the next prompt are the same tokens: in JSON one space after "," and ":", elsewhere as a call
that the template has written shows (`answers/call_layout.py`).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlx_eagle.answers.call_layout import CallLayout
from mlx_eagle.answers.tool_calls import NOTES, resolve, types_of
from mlx_eagle.errors import EagleError

SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}
NO_FORCING = '%llguidance {"no_forcing": true}'
DEFINITIONS = ("$defs", "definitions")
WRITTEN_AS_JSON = ("integer", "number", "object", "array")

Tool = Mapping[str, Any]


def json_grammar(tools: Sequence[Tool], call_end: int, loose: Collection[str] = frozenset()) -> str:
    """Return the grammar of a call in JSON, from its opening mark on.

    Args:
        tools: that may be called, in the format of OpenAI's API.
        call_end: the token that ends a call.
        loose: names of those whose arguments may be any object.
    """
    rules = [NO_FORCING, f'start: "\\n" ({_any_of(tools)}) "\\n" <[{call_end}]>']
    for place, function in enumerate(_functions(tools)):
        own = None if function["name"] in loose else function.get("parameters")
        schema = {**(own or ANY_ARGUMENTS), "x-guidance": SPELLING}
        head = json.dumps('{"name": ' + json.dumps(str(function["name"])) + ', "arguments": ')
        rules.append(f'c{place}: {head} %json {json.dumps(schema)} "}}"')
    return "\n".join(rules) + "\n"


def keyed_grammar(
    tools: Sequence[Tool],
    call_end: int,
    layout: CallLayout,
    loose: Collection[str] = frozenset(),
) -> str:
    """Return the grammar of a call that is written key after key, from its opening mark on.

    Keys come in the order of the schema, optional ones or not. Texts are anything up to what the
    layout writes after a value, other values JSON.

    Args:
        tools: that may be called, in the format of OpenAI's API.
        call_end: the token that ends a call.
        layout: of the model's calls.
        loose: names of those after which anything may stand.

    Raises:
        EagleError: if an argument cannot be told from its text.
    """
    rules = [NO_FORCING, f"start: {_quote(layout.before)} ({_any_of(tools)}) <[{call_end}]>"]
    rules.append(f"text[suffix={_quote(layout.tail)}]: /(.|\\n)*/")
    rules.append("anything: /(.|\\n)*/")
    for place, function in enumerate(_functions(tools)):
        if (name := function["name"]) in loose:
            begun = f"({_quote(layout.first)} anything | {_quote(layout.bare)})"
            rules.append(f"c{place}: {_quote(str(name))} {begun}")
        else:
            rules += _keyed_rules(f"c{place}", function, layout)
    return "\n".join(rules) + "\n"


def is_bare_text(value: Any, schema: Mapping[str, Any]) -> bool:
    """Say whether an argument that is written key after key is any text, or null.

    Args:
        value: the schema of the argument.
        schema: of all arguments.
    """
    value = resolve(value, schema)
    kinds = types_of(value)
    return bool(kinds) and kinds <= {"string", "null"} and set(value) <= NOTES | {"anyOf"}


def value_as_json(text: str, value: Any, schema: Mapping[str, Any], layout: CallLayout) -> str:
    """Return an argument that was written as `keyed_grammar` forces it, as JSON.

    What was written as JSON stays as it is, numbers beyond those of Python too.

    Args:
        text: between what the layout writes before and after a value.
        value: the schema of the argument.
        schema: of all arguments.
        layout: of the model's calls.

    Raises:
        ValueError: if it was not.
    """
    value = resolve(value, schema)
    known = [value["const"]] if "const" in value else value.get("enum")
    if types_of(value) == {"boolean"}:
        known = known or [True, False]
    if known and len(types_of(value)) == 1:
        spelled = {_spelled(each, layout): each for each in known}
        if text not in spelled:
            raise ValueError(f"{text!r} is none of the values that are listed")
        return _quote(spelled[text])
    if is_bare_text(value, schema):
        is_null = "null" in types_of(value) and text.lower() == "null"
        return _quote(None if is_null else text)
    json.loads(text, parse_int=str)  # Python reads no integer of thousands of digits
    return text


def _any_of(tools: Sequence[Tool]) -> str:
    return " | ".join(f"c{place}" for place in range(len(tools)))


def _functions(tools: Sequence[Tool]) -> list[Tool]:
    return [tool.get("function", tool) for tool in tools]


def _quote(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _keyed_rules(rule: str, function: Tool, layout: CallLayout) -> list[str]:
    """Return the rules of one tool.

    The n-th argument has two of its own: for what follows if no argument was written yet, and if
    one was.
    """
    schema = function.get("parameters") or ANY_ARGUMENTS
    required, properties = schema.get("required") or [], schema.get("properties") or {}
    if not (isinstance(properties, Mapping) and isinstance(required, list)):
        raise EagleError(f"{function['name']}: properties must be an object, required an array")
    rules = [f"{rule}: {_quote(str(function['name']))} {rule}_none0"]
    for place, (key, value) in enumerate(properties.items()):
        said = f"{_quote(key + layout.middle)} {_value(key, value, schema, layout)}"
        after = f"{rule}_some{place + 1}"
        for state, joint in (("none", layout.first), ("some", layout.between)):
            skipped = "" if key in required else f" | {rule}_{state}{place + 1}"
            rules.append(f"{rule}_{state}{place}: {_quote(joint)} {said} {after}{skipped}")
    n = len(properties)
    rules.append(f"{rule}_some{n}: {_quote(layout.end)}")
    rules.append(f"{rule}_none{n}: {_quote(layout.bare)}")
    return rules


def _value(key: str, value: Any, schema: Mapping[str, Any], layout: CallLayout) -> str:
    """Return what an argument may be, with the layout's tail.

    Raises:
        EagleError: if its type cannot be told from its text.
    """
    value = resolve(value, schema)
    kinds = types_of(value)
    known = [value["const"]] if "const" in value else value.get("enum")
    if known and len(kinds) == 1:
        words = " | ".join(_quote(_spelled(each, layout)) for each in known)
        return f"({words}) {_quote(layout.tail)}"
    if kinds == {"boolean"}:
        return f"({_quote(layout.true)} | {_quote(layout.false)}) {_quote(layout.tail)}"
    if is_bare_text(value, schema):
        return "text"
    if len(kinds) == 1 and kinds < set(WRITTEN_AS_JSON):
        given = {name: schema[name] for name in DEFINITIONS if name in schema}
        own = {**given, **value, "x-guidance": SPELLING}
        return f"%json {json.dumps(own)} {_quote(layout.tail)}"
    raise EagleError(
        f"the argument {key!r} cannot be forced: this model writes arguments as bare text, which "
        "does not tell such a type; give it one plain type"
    )


def _spelled(value: Any, layout: CallLayout) -> str:
    """Return how the template writes a value."""
    if isinstance(value, bool):
        return layout.true if value else layout.false
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
