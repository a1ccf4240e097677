"""Calls that are written key after key: generated under their grammar, read, and rendered alike."""

import json
import random
from typing import Any

import jsonschema
import pytest

from cases import broad, narrowed
from chat_templates import KEYED_CALLS, call_marks, demo_tokenizer, keyed_template
from mlx_eagle.answers.answer_format import read_format
from mlx_eagle.answers.tool_calls import parse_calls
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.call_grammar import keyed_grammar
from mlx_eagle.sampling.grammar import Vocabulary
from mlx_eagle.server.events import CallEnd, CallPart, CallStart
from mlx_eagle.server.keyed_stream import KeyedStream
from mlx_eagle.server.split import Split
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.selector import make_constraint
from mlx_eagle.tree import TreeShape
from served import ScriptedEngine, make_engine

FAMILIES = tuple(KEYED_CALLS)
ASKED = [{"role": "user", "content": "What does zip do?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "minimum": 0},
        "unit": {"enum": ["C", "F"]},
        "is_brief": {"type": "boolean"},
        "places": {"type": "array", "items": {"type": "string"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "ping"}},
]
WHOLE: dict[str, Any] = {
    "city": 'a <b>\n"c" é',
    "days": 3,
    "unit": "F",
    "is_brief": True,
    "places": ["x, y", "z"],
    "note": "n",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> Any:
    return demo_tokenizer(keyed_template(family), family)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, len(tokenizer.get_vocab()))


def rendered(tokenizer: Any, name: str, arguments: dict[str, Any]) -> str:
    """Return a call between its marks, as the template writes it in the next prompt."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    return str(text).rpartition(start)[2].partition(end)[0]


@pytest.mark.parametrize(
    ("name", "arguments", "is_allowed"),
    [
        ("weather", WHOLE, True),
        ("weather", {"city": "", "unit": "C"}, True),
        ("weather", {"city": "x", "unit": "C", "is_brief": False, "note": "y"}, True),
        ("ping", {}, True),
        ("weather", {"unit": "C"}, False),
        ("weather", {"city": "x"}, False),
        ("weather", {"city": "x", "unit": "K"}, False),
        ("weather", {"city": "x", "days": "many", "unit": "C"}, False),
        ("weather", {"city": "x", "days": -1, "unit": "C"}, False),
        ("weather", {"city": "x", "unit": "C", "other": 1}, False),
        ("ping", {"city": "x"}, False),
        ("pong", {}, False),
    ],
    ids=str,
)
def test_what_a_schema_allows_may_be_written_and_nothing_else(
    name: str,
    arguments: dict[str, Any],
    is_allowed: bool,
    family: str,
    tokenizer: Any,
    vocabulary: Vocabulary,
) -> None:
    form = read_format(tokenizer)
    assert form.call_layout is not None
    end = tokenizer.get_vocab()[call_marks(family)[1]]
    matcher = vocabulary.compile(keyed_grammar(TOOLS, end, form.call_layout), "call", "none")
    ids = tokenizer.encode(rendered(tokenizer, name, arguments), add_special_tokens=False)
    n = matcher.try_consume_tokens([*ids, end])
    assert (n == len(ids) + 1) == is_allowed


@pytest.mark.parametrize("text", ["5", "true", "[1]", "x"])
def test_texts_are_read_as_texts_also_where_they_may_be_null(text: str, tokenizer: Any) -> None:
    arguments = {"city": text, "unit": "C", "note": text}
    (call,) = parse_calls(rendered(tokenizer, "weather", arguments), tokenizer.tool_parser, TOOLS)
    assert call.arguments == arguments


@pytest.mark.parametrize("step", [1, 4, 1000])
@pytest.mark.parametrize(
    "arguments",
    [
        WHOLE,
        WHOLE | {"note": None, "city": "null", "places": []},
        WHOLE
        | {"note": "nullify", "city": " x\n</para", "places": ["</parameter>\n<", "</arg_value>"]},
        {"city": "", "unit": "C"},
    ],
    ids=["whole", "null", "like marks", "few"],
)
def test_arguments_are_sent_while_they_are_written(
    step: int, arguments: dict[str, Any], tokenizer: Any
) -> None:
    """Every part is a beginning of the JSON that the call is read as."""
    layout = read_format(tokenizer).call_layout
    assert layout is not None
    stream = KeyedStream(TOOLS, layout, 3, lambda: "id")
    text, events = rendered(tokenizer, "weather", arguments), list[Any]()
    text = text.replace("None", "null")  # as a template of Python writes it
    for at in range(0, len(text), step):
        events += stream.add(text[at : at + step])
        if step == 1 and arguments is WHOLE and text[:at].endswith(WHOLE["city"][:8]):
            assert stream.arguments.startswith('{"city": "a <b>')
    events += stream.finish()
    assert events[0] == CallStart(3, "id", "weather")
    assert "".join(event.text for event in events[1:]) == stream.arguments
    assert json.loads(stream.arguments) == arguments


@pytest.mark.parametrize("number", ["1e999", "1.50", "9" * 5000], ids=len)
def test_numbers_are_sent_as_they_were_written(number: str, tokenizer: Any) -> None:
    layout = read_format(tokenizer).call_layout
    assert layout is not None
    stream = KeyedStream(TOOLS, layout, 0, lambda: "id")
    text = rendered(tokenizer, "weather", {"city": "x", "days": 73, "unit": "C"})
    events = [*stream.add(text.replace("73", number)), *stream.finish()]
    assert isinstance(events[0], CallStart)
    assert stream.arguments == f'{{"city": "x", "days": {number}, "unit": "C"}}'


def test_calls_of_tools_that_share_a_name_are_read_as_a_whole(tokenizer: Any) -> None:
    """As in two namespaces: until its end nothing tells which of them is called."""
    fewer = {**TOOLS[0]["function"], "parameters": {"properties": {"city": {"type": "string"}}}}
    tools = [*TOOLS, {"type": "function", "function": fewer}]
    split = Split(read_format(tokenizer), tools, lambda: "id", loose=frozenset())
    text = rendered(tokenizer, "weather", WHOLE)
    sections = read_format(tokenizer).sections()
    spans = sections.add(
        f"{tokenizer.tool_call_start}{text}{tokenizer.tool_call_end}", is_draft=False
    )
    events = [*split.add([*spans, *sections.finish()]), *split.finish(is_cut=False)]
    start, part, end = events
    assert (start, end) == (CallStart(0, "id", "weather"), CallEnd(0))
    assert isinstance(part, CallPart) and json.loads(part.text).keys() == WHOLE.keys()


@pytest.mark.parametrize("loose", [None, frozenset(), frozenset({"weather"})], ids=str)
def test_a_call_is_the_same_in_parts_and_as_a_whole(
    loose: frozenset[str] | None, tokenizer: Any
) -> None:
    form = read_format(tokenizer)
    split = Split(form, TOOLS, lambda: "id", takes_text=False, loose=loose)
    text = rendered(tokenizer, "weather", WHOLE)
    whole = f"{tokenizer.tool_call_start}{text}{tokenizer.tool_call_end}"
    sections = form.sections()
    events: list[Any] = []
    for char in whole:
        events += split.add(sections.add(char, is_draft=False))
    events += [*split.add(sections.finish()), *split.finish(is_cut=False)]
    start, *parts, end = events
    assert (start, end) == (CallStart(0, "id", "weather"), CallEnd(0))
    assert (len(parts) > 9) == (loose == frozenset())
    assert "".join(part.text for part in parts) == json.dumps(WHOLE, ensure_ascii=False)


def test_what_is_written_otherwise_begins_no_call(tokenizer: Any) -> None:
    layout = read_format(tokenizer).call_layout
    assert layout is not None
    text = rendered(tokenizer, "weather", WHOLE)
    for broken in (text.replace("weather", "other"), text.replace("city", "town"), "{}"):
        stream = KeyedStream(TOOLS, layout, 0, lambda: "id")
        assert [*stream.add(broken), *stream.finish()] == [] and not stream.n_begun


@pytest.fixture(scope="module")
def engine(family: str) -> ScriptedEngine:
    return make_engine(keyed_template(family), family=family)


@pytest.mark.parametrize("family", narrowed(FAMILIES, FAMILIES[:1]), indirect=True)
@pytest.mark.parametrize("seed", [0, *map(broad, range(1, 30))])
def test_a_forced_call_is_valid_drafted_and_the_same_in_the_next_prompt(
    seed: int, engine: ScriptedEngine, family: str, is_quick: bool
) -> None:
    """By default an argument that is text in each family, and two of the others."""
    rng = random.Random(seed)
    properties: dict[str, Any] = {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "b": {"type": "boolean"},
        "c": {"enum": ["red", 'with "quotes"', "ünï\nx"]},
        "d": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "e": {"$ref": "#/$defs/e"},
        "f": {"enum": [1, 20]},
        "g": {"anyOf": [{"type": "boolean"}]},
    }
    required = [name for name in properties if rng.random() < 0.7]
    if is_quick:
        others = [name for name in properties if name != "c"]
        few = ("c", *others[FAMILIES.index(family) :: len(FAMILIES)])
        properties = {name: properties[name] for name in few}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [name for name in required if name in properties],
        "$defs": {
            "e": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
        },
    }
    schema["$defs"]["e"]["additionalProperties"] = False
    tools = [{"type": "function", "function": {"name": "first", "parameters": schema}}]
    options: dict[str, Any] = {"tools": tools, "tool_choice": "required", "temperature": 1}
    options |= {"parallel_tool_calls": False, "seed": seed, "max_tokens": 300}
    engine.tree = TreeShape(2, 2, 3)
    answer = engine.generate(ASKED, **options)
    (call,) = answer.message["tool_calls"]
    arguments = call["function"]["arguments"]
    jsonschema.validate(arguments, schema)
    assert answer.stats.drafted > 0
    tokenizer = engine.tokenizer
    start, end = (tokenizer.get_vocab()[mark] for mark in call_marks_of(tokenizer))
    written = tokenizer.decode(answer.tokens[1:-1])
    assert answer.tokens[0] == start and answer.tokens.index(end) == len(answer.tokens) - 2
    assert written.removesuffix(tokenizer.tool_call_end) == rendered(tokenizer, "first", arguments)
    engine.tree = None
    if not is_quick or family == FAMILIES[0]:  # by default plain decoding writes one of them
        assert engine.generate(ASKED, speculate=False, **options).tokens == answer.tokens


def call_marks_of(tokenizer: Any) -> tuple[str, str]:
    return tokenizer.tool_call_start, tokenizer.tool_call_end


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "a+"},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"enum": [1, "1"]},
        {"type": ["integer", "string"]},
        {},
    ],
    ids=str,
)
def test_an_argument_whose_type_bare_text_does_not_tell_is_refused_if_it_is_to_be_forced(
    value: dict[str, Any], engine: ScriptedEngine
) -> None:
    """Where it need not be, the name of its tool is forced, and the other tools are."""
    schema = {"type": "object", "properties": {"x": value}}
    odd = {"type": "function", "function": {"name": "f", "parameters": schema}}
    tools: Any = [*TOOLS, odd]
    with pytest.raises(EagleError, match="the tool f cannot be forced: the argument 'x' cannot"):
        make_constraint(GenerationOptions(tools=tools, tool_choice="required"), engine)
    forced = engine.call_grammars.find(GenerationOptions(tools=tools, tool_choice="auto"))
    assert forced is not None and forced.loose == {"f"}
    tokenizer = engine.tokenizer
    end = tokenizer.get_vocab()[tokenizer.tool_call_end]
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("f", {"x": "any <b>\n"}, True),
        ("f", {"y": 7}, True),
        ("f", {}, True),
        ("fg", {"x": 1}, False),
        ("weather", {"city": "x", "unit": "K"}, False),
        ("ping", {}, True),
    ]
    for name, arguments, is_allowed in cases:
        ids = tokenizer.encode(rendered(tokenizer, name, arguments), add_special_tokens=False)
        n = forced.matcher.deep_copy().try_consume_tokens([*ids, end])
        assert (n == len(ids) + 1) == is_allowed, name


def test_a_template_that_does_not_show_its_calls_forces_none() -> None:
    template = keyed_template("qwen3_coder").replace("c.function.arguments", "{}")
    assert read_format(demo_tokenizer(template, "qwen3_coder")).call_layout is None


@pytest.mark.parametrize("schema", [{"properties": ["a"]}, {"required": "a"}], ids=str)
def test_a_schema_that_is_none_is_refused_by_the_name_of_its_tool(schema: dict[str, Any]) -> None:
    layout = read_format(demo_tokenizer(keyed_template("glm47"), "glm47")).call_layout
    assert layout is not None
    tool = {"name": "f", "parameters": {"type": "object"} | schema}
    with pytest.raises(EagleError, match="f: properties must be an object, required an array"):
        keyed_grammar([tool], 1, layout)
