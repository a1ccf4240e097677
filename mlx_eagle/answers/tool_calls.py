"""Calls of tools, as models write them and as chat messages hold them.

mlx-lm's parsers read what stands between a model's marks. They raise whatever they like and return
one call or several; here a text is either calls of one form, or none.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_lm.tool_parsers import mistral

# What a schema says besides of a plain type.
NOTES = {"type", "title", "description", "default", "examples"}
TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
DEEPEST = 200  # levels of arguments
ID_LENGTH = 9  # letters and digits of a call's id: what the templates of Mistral insist on

Parse = Callable[[str, Sequence[Any] | None], Any]  # text, tools: one call, or a list of them


class Several(NamedTuple):
    """Where a text of calls is cut, for a parser that reads the first one alone.

    Attributes:
        between: a pattern of what stands between two calls.
        opening, closing: of a value; a cut that would tear one is none.
    """

    between: str
    opening: str
    closing: str


SEVERAL = {  # by the module of mlx-lm
    "qwen3_coder": Several(r"(?<=</function>)\s*(?=<function=)", "<parameter=", "</parameter>"),
    "function_gemma": Several(r"(?<=\})\s*(?=call:\w+\{)", "{", "}"),
    "glm47": Several(r"(?<=</arg_value>)\s*(?=[\w.-]+\s*<arg_key>)", "<arg_value>", "</arg_value>"),
    "longcat": Several(
        r"(?<=</longcat_arg_value>)\s*(?=[\w.-]+\s*<longcat_arg_key>)",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
    ),
}


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


def parse_calls(text: str, parse: Parse, tools: Sequence[Any] | None = None) -> list[Call]:
    """Return the calls in a text.

    Args:
        text: what stands between a model's marks.
        parse: reads it; whatever it raises means that there are none.
        tools: that may be called, as JSON schemas; what names another one is no call.
    """
    if not tools:
        return []
    typed = [_with_types(tool) for tool in tools]
    try:
        found = [parse(each, typed) for each in _single_calls(text, parse)]
    except Exception:  # a parser of mlx-lm raises what it likes, at a text that a model wrote
        return []
    names = {tool_name(tool) for tool in tools}
    opened = [each for one in found for each in (one if isinstance(one, list) else [one])]
    calls = [_call(each) for each in opened]
    known = [call for call in calls if call is not None and call.name in names]
    return known if len(known) == len(calls) else []


def _single_calls(text: str, parse: Parse) -> list[str]:
    """Return the texts that are to be read one by one; the whole text for most parsers."""
    cut = SEVERAL.get(getattr(parse, "__module__", "").rpartition(".")[2])
    if cut is None:
        return [text]
    texts = re.split(cut.between, text)
    is_whole = all(each.count(cut.opening) == each.count(cut.closing) for each in texts)
    return texts if is_whole else [text]


def tool_name(tool: Any) -> str | None:
    """Return the name of a tool, by its JSON schema; None if it has none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def resolve(value: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of an argument, or the definition beside it that it refers to.

    Args:
        value: of one argument.
        schema: of all of them.
    """
    reference = value.get("$ref") if isinstance(value, Mapping) else None
    if found := re.fullmatch(r"#/(\$defs|definitions)/([^/]+)", str(reference)):
        beside = schema.get(found[1])
        value = beside.get(found[2]) if isinstance(beside, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def types_of(value: Mapping[str, Any]) -> set[str]:
    """Return the types that an argument may have by its schema; none where that is not plain."""
    kinds = value.get("type")
    known = [value["const"]] if "const" in value else value.get("enum")
    if kinds is None and isinstance(known, list):
        kinds = [TYPES.get(type(each)) for each in known]
    elif kinds is None and isinstance(value.get("anyOf"), list):
        kinds = [
            one.get("type") if isinstance(one, Mapping) and set(one) <= NOTES else ""
            for one in value["anyOf"]
        ]
    found = {str(kind or "") for kind in (kinds if isinstance(kinds, list) else [kinds])}
    return set() if "" in found else found


def _with_types(tool: Any) -> Any:
    """Return a tool whose arguments say their types plainly: some parsers go by them.

    A text that may be null is a text, or they would take "5" for a number; values that are listed
    have the type that they have.
    """
    function = tool.get("function") if isinstance(tool, Mapping) else None
    schema = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(schema, Mapping):
        return tool
    known = schema.get("properties")
    if not isinstance(known, Mapping):
        return tool
    properties = {key: resolve(value, schema) for key, value in known.items()}
    for key, value in properties.items():
        kinds = types_of(value) - {"null"}
        if kinds == {"string"} or (len(kinds) == 1 and "type" not in value):
            properties[key] = {**value, "type": kinds.pop()}
    return {**tool, "function": {**function, "parameters": {**schema, "properties": properties}}}


def parse_json(text: str, tools: Any = None) -> list[Any]:
    """Return the JSON values in a text, lists opened up; a ";" may stand between them.

    Raises:
        ValueError: if it is anything else.
    """
    decoder, values, at = json.JSONDecoder(), list[Any](), 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
        at = _after(text, at)
    return values


def parse_arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments that a JSON text is; None if it is no object that JSON can hold."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_plain(value) else None


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Say whether JSON can hold a value: no NaN, nothing infinite, no type that it does not have.

    Args:
        value: that a parser has made of a text.
        depth: levels that it may have.
    """
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return False
        value = list(value.values())
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_plain(each, depth - 1) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def parse_channel(header: str) -> Parse:
    """Return what reads the body of a part of a channel, whose header names the tool."""
    found = re.search(r"\bto=(?:functions\.)?([^\s<]+)", header)
    name = found[1] if found else ""
    return lambda text, tools: {"name": name, "arguments": json.loads(text)}


def parser_of_mark(start: str, tokenizer: Any) -> Parse:
    """Return what reads calls that begin with this mark.

    Args:
        start: the mark.
        tokenizer: mlx-lm's wrapper, which has a parser for the model's own mark.
    """
    if tokenizer.has_tool_calling and start == tokenizer.tool_call_start:
        parse: Parse = tokenizer.tool_parser
        is_json = getattr(parse, "__module__", "").endswith(".json_tools")
        return parse_json if is_json else parse  # which reads several calls as well
    return mistral.parse_tool_call if start == "[TOOL_CALLS]" else parse_json


def writes_json(start: str, tokenizer: Any) -> bool:
    """Say whether what follows a mark is one JSON object with "name" and "arguments"."""
    return parser_of_mark(start, tokenizer) is parse_json


def as_messages(calls: Sequence[Call], salt: str) -> list[dict[str, Any]]:
    """Return calls as a chat message holds them; those without an id get one.

    Args:
        calls: of one answer, in order.
        salt: tells this answer from others, so that ids are unique; the same gives the same ids.
    """
    return [
        {
            "type": "function",
            "id": call.id or _make_id(f"{salt} {place} {call.name}"),
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for place, call in enumerate(calls)
    ]


def _after(text: str, at: int) -> int:
    """Return where the next value begins, after white space and one ";"."""
    rest = text[at:].lstrip()
    rest = rest.removeprefix(";").lstrip()
    return len(text) - len(rest)


def _call(found: Any) -> Call | None:
    """Return one call if this is one: a name and arguments that JSON can hold, or text of it."""
    if not isinstance(found, dict):
        return None
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    if not is_plain(arguments):
        return None
    known = found.get("id")
    return Call(name, arguments, known if isinstance(known, str) and known else None)


def _make_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
