"""The body of OpenAI's `responses`, which Codex speaks, and what it asks for."""

from typing import Annotated, Any

from pydantic import Field

from mlx_eagle.answers.history import THOUGHTS
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
from mlx_eagle.server.chat_body import (
    ANY_OBJECT,
    ROLES,
    Part,
    check_tool_choice,
    choice_word,
    template_args,
)
from mlx_eagle.server.conversation import canonical, text_parts
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.session.prompt import Message

STATEFUL = ("previous_response_id", "conversation", "background")
OF_CODEX = ("namespace", "custom")  # kinds of tools that show who asks


class Item(Body):
    """One item of the conversation: a message, a call, its result, or a thought."""

    type: Str | None = None
    role: Str | None = None
    content: Str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None
    call_id: Str | None = None
    name: Str | None = None
    arguments: Str | None = None
    output: Str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None


class ResponsesTool(Body):
    """A tool that may be called, or a group of them."""

    type: Str
    name: Str | None = None
    description: Str | None = None
    parameters: Schema | None = None
    strict: bool | None = None
    tools: Annotated[list["ResponsesTool"], Field(max_length=MOST_TOOLS)] | None = None


class Chosen(Body):
    """The tool that must be called."""

    type: Str
    name: Str | None = None


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
    tools, spaces = _tools(body.tools or [])
    return Asked(
        api="responses",
        prompt=canonical(_conversation(body)),
        options=sampling(body) | given(max_tokens=body.max_output_tokens),
        tools=tools,
        spaces=spaces,
        choice=_choice(body.tool_choice, tools),
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
        elif kind == "function_call":
            _add_call(messages, item, thought)
            thought = ""
        elif kind == "function_call_output":
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
    function = {"name": item.name or "", "arguments": item.arguments}
    call = {"id": item.call_id or "", "function": function}
    if messages and messages[-1]["role"] == "assistant" and not thought:
        messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", ()), call]
        return
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages.append(said | _thought(thought, "assistant"))


def _tools(tools: list[ResponsesTool]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return tools in the format of the chat API, and the group of each that has one.

    What a model on this machine cannot do, such as a search of the web, is left out where Codex
    offers it, which cannot be told otherwise; other clients are told.

    Raises:
        RefusalError: if a tool cannot be offered.
    """
    is_codex = any(tool.type in OF_CODEX for tool in tools)
    flat, spaces = list[dict[str, Any]](), dict[str, str]()
    for place, tool in enumerate(tools):
        where = f"tools[{place}]"
        if tool.type == "function":
            flat.append(_function(tool, where))
        elif tool.type == "namespace":
            for inner in tool.tools or []:
                flat.append(_function(inner, where))
                spaces[inner.name or ""] = tool.name or ""
        elif not is_codex:
            message = f"{where} is of type {tool.type!r}; this model can be offered functions"
            raise RefusalError("invalid", message, where)
    names = [tool["function"]["name"] for tool in flat]
    return flat, {name: space for name, space in spaces.items() if names.count(name) == 1}


def _function(tool: ResponsesTool, where: str) -> dict[str, Any]:
    """Return a function in the format of the chat API."""
    if not tool.name:
        raise RefusalError("invalid", f"{where} has no name", where)
    if tool.parameters is not None:
        check_schema(tool.parameters, f"{where}.parameters")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": given(**{f: getattr(tool, f) for f in fields})}


def _choice(choice: str | Chosen | None, tools: list[dict[str, Any]]) -> str:
    """Return "auto", "none", "required" or the name of a tool."""
    if isinstance(choice, Chosen):
        is_named = choice.type == "function"
        return check_tool_choice(choice.name or "", tools) if is_named else "auto"
    return choice_word(choice, tools)


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
