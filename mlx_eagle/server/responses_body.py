"""The body of OpenAI's `responses`, which Codex speaks, and what it asks for."""

from typing import Annotated, Any, NamedTuple

from pydantic import Field

from mlx_eagle.answers.history import THOUGHTS
from mlx_eagle.files.quoting import printable
from mlx_eagle.server.asked import Asked
from mlx_eagle.server.bodies import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOOLS,
    Body,
    Count,
    Schema,
    Share,
    Str,
    Temperature,
    check_schema,
    given,
    sampling,
)
from mlx_eagle.server.chat_body import ANY_OBJECT, ROLES, Part, template_args
from mlx_eagle.server.conversation import canonical, text_parts
from mlx_eagle.server.custom_tools import CustomFormat, as_arguments, as_function
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.server.tool_choice import (
    Tools,
    allowed_tools,
    check_tool_choice,
    choice_word,
    unknown_choice,
)
from mlx_eagle.session.prompt import Message

STATEFUL = ("previous_response_id", "conversation", "background")
OF_CODEX = ("namespace", "custom")  # kinds of tools that show who asks
CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")


class Item(Body):
    """One item of the conversation: a message, a call, its result, or a thought."""

    type: Str | None = None
    role: Str | None = None
    content: Str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None
    call_id: Str | None = None
    name: Str | None = None
    arguments: Str | None = None
    input: Str | None = None
    output: Str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None


class ResponsesTool(Body):
    """A tool that may be called, or a group of them."""

    type: Str
    name: Str | None = None
    description: Str | None = None
    parameters: Schema | None = None
    strict: bool | None = None
    format: CustomFormat | None = None
    tools: Annotated[list["ResponsesTool"], Field(max_length=MOST_TOOLS)] | None = None


class Chosen(Body):
    """The tool that must be called, or those that may be."""

    type: Str
    name: Str | None = None
    mode: Str | None = None
    tools: Annotated[list["Chosen"], Field(max_length=MOST_TOOLS)] | None = None


class TextFormat(Body):
    """What the answer must be."""

    type: Str
    schema_: Annotated[Schema | None, Field(alias="schema")] = None


class TextConfig(Body):
    """How text is to be."""

    format: TextFormat | None = None


class Reasoning(Body):
    """How much the model is to think."""

    effort: Str | None = None


class ResponsesBody(Body):
    """The body of `responses`; fields that are not here are passed over."""

    input: Str | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: Str | None = None
    instructions: Str | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Str | Chosen | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    prompt_cache_key: Str | None = None
    user: Str | None = None
    previous_response_id: Str | None = None
    conversation: Any = None
    background: bool | None = None


def read_responses(body: ResponsesBody) -> Asked:
    """Return what a body asks for.

    Raises:
        RefusalError: if it asks for what there is not.
    """
    for name in STATEFUL:
        if getattr(body, name):
            message = f"{name}: nothing is kept here between requests; send the whole input"
            raise RefusalError("invalid", message, name)
    offered = _tools(body.tools or [])
    choice, tools = _chosen(body.tool_choice, offered.tools)
    return Asked(
        api="responses",
        prompt=canonical(_conversation(body)),
        options=sampling(body) | given(max_tokens=body.max_output_tokens),
        tools=tools,
        spaces=offered.spaces,
        custom=offered.custom,
        choice=choice,
        parallel=body.parallel_tool_calls is not False,
        template_args=template_args(None, body.reasoning.effort if body.reasoning else None),
        streams=bool(body.stream),
        who=body.prompt_cache_key or body.user or "",
        schema=_schema(body.text),
    )


def _conversation(body: ResponsesBody) -> list[Message]:
    """Return the conversation in OpenAI's chat format."""
    head = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*head, {"role": "user", "content": body.input}]
    messages: list[Message] = []
    thought = ""
    for place, item in enumerate(body.input):
        where = f"input[{place}]"
        kind = item.type or "message"
        if kind == "reasoning":
            thought = text_parts_of_thought(item)
        elif kind == "message":
            messages.append(_message(item, where) | _thought(thought, item.role))
            thought = ""
        elif kind in CALLS:
            _add_call(messages, item, thought)
            thought = ""
        elif kind in OUTPUTS:
            output = text_parts(item.output, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": output})
        else:
            message = f"{where} is of type {kind!r}, which this server does not know"
            raise RefusalError("content", message, where)
    return [*head, *messages]


def text_parts_of_thought(item: Item) -> str:
    """Return a thought as text; what is encrypted is left out."""
    parts = item.content if isinstance(item.content, list) else []
    return "".join(part.text or "" for part in parts)


def _thought(thought: str, role: str | None) -> Message:
    return {THOUGHTS: thought} if thought and role == "assistant" else {}


def _message(item: Item, where: str) -> Message:
    if item.role not in ROLES or item.role == "tool":
        known = f"{where}.role is none of user, assistant, system, developer"
        raise RefusalError("invalid", known, f"{where}.role")
    return {"role": item.role, "content": text_parts(item.content, f"{where}.content")}


def _add_call(messages: list[Message], item: Item, thought: str) -> None:
    """Add a call to the answer that it belongs to, or to a new one."""
    is_custom = item.type == "custom_tool_call"
    arguments = as_arguments(item.input) if is_custom else item.arguments
    function = {"name": item.name or "", "arguments": arguments}
    call = {"id": item.call_id or "", "function": function}
    if messages and messages[-1]["role"] == "assistant" and not thought:
        messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", ()), call]
        return
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages.append(said | _thought(thought, "assistant"))


class Offered(NamedTuple):
    """Tools in the format of the chat API.

    Attributes:
        tools: of all groups.
        spaces: the group of a tool, by its name, where it has one and the name is its alone.
        custom: names of those whose input is a text.
    """

    tools: Tools
    spaces: dict[str, str]
    custom: frozenset[str]


def _tools(tools: list[ResponsesTool]) -> Offered:
    """Return the tools that the model can be offered.

    What a model on this machine cannot do, such as a search of the web, is left out where Codex
    offers it, which cannot be told otherwise; other clients are told.

    Raises:
        RefusalError: if a tool cannot be offered.
    """
    is_codex = any(tool.type in OF_CODEX for tool in tools)
    flat, spaces, custom = list[dict[str, Any]](), dict[str, str](), set[str]()
    for place, group in enumerate(tools):
        is_space = group.type == "namespace"
        for number, tool in enumerate((group.tools or []) if is_space else [group]):
            where = f"tools[{place}]" + (f".tools[{number}]" if is_space else "")
            if tool.type in ("function", "custom"):
                flat.append(_function(tool, where))
                spaces |= {tool.name or "": group.name or ""} if is_space else {}
                custom |= {tool.name or ""} if tool.type == "custom" else set()
            elif not is_codex:
                message = f"{where} is of type {tool.type!r}; this model can be offered functions"
                raise RefusalError("invalid", message, where)
    names = [tool["function"]["name"] for tool in flat]
    if clash := [name for name in custom if names.count(name) > 1]:
        found = f"tools: {printable(clash[0])} names a custom tool and another one"
        remedy = "whose calls could not be told apart; give each a name of its own"
        raise RefusalError("invalid", f"{found}, {remedy}", "tools")
    known = {name: space for name, space in spaces.items() if names.count(name) == 1}
    return Offered(flat, known, frozenset(custom))


def _function(tool: ResponsesTool, where: str) -> dict[str, Any]:
    """Return a tool in the format of the chat API."""
    if not tool.name:
        raise RefusalError("invalid", f"{where} has no name", where)
    if tool.type == "custom":
        return as_function(tool.name, tool.description, tool.format, where)
    if tool.parameters is not None:
        check_schema(tool.parameters, f"{where}.parameters")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": given(**{f: getattr(tool, f) for f in fields})}


def _chosen(choice: str | Chosen | None, tools: Tools) -> tuple[str, Tools]:
    """Return "auto", "none", "required" or the name of a tool, and the tools that are offered."""
    if not isinstance(choice, Chosen):
        return choice_word(choice, tools), tools
    if choice.type == "allowed_tools":
        return allowed_tools(choice.mode, [t.name or "" for t in choice.tools or ()], tools)
    if choice.type not in ("function", "custom"):
        raise unknown_choice(choice.type, "function, custom, allowed_tools")
    return check_tool_choice(choice.name or "", tools), tools


def _schema(config: TextConfig | None) -> str | None:
    """Return the JSON schema of the answer, if it has one."""
    wanted = config.format if config else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.type != "json_schema" or wanted.schema_ is None:
        message = "text.format is none of text, json_object, json_schema with its schema"
        raise RefusalError("invalid", message, "text.format")
    return check_schema(wanted.schema_, "text.format.schema")
