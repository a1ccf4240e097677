"""The body of OpenAI's `chat/completions`, and what it asks for."""

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
    Str,
    check_schema,
    given,
    words,
)
from mlx_eagle.server.conversation import TEXT_PARTS, canonical, text_parts
from mlx_eagle.server.openai_body import OpenAIBody
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.server.tool_choice import (
    CHOICES,
    MODES,
    Tools,
    allowed_tools,
    check_tool_choice,
    choice_word,
    unknown_choice,
)
from mlx_eagle.session.prompt import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
# What transformers takes for itself and templates do not see: another template, tensors, cut texts.
TEMPLATE_OWN = (
    *("self", "conversation", "messages", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation"),
    *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    "tokenizer_kwargs",
)
ANY_OBJECT = '{"type": "object"}'


class Part(Body):
    """A part of a message's content."""

    type: Annotated[Str, words(*TEXT_PARTS)]
    text: Str | None = None


class CalledFunction(Body):
    """The function that a call of an earlier answer names."""

    name: Annotated[Str, Field(min_length=1)]
    arguments: Str | dict[str, Any] | None = None


class ToolCall(Body):
    """A call of an earlier answer."""

    id: Str | None = None
    function: CalledFunction


class ChatMessage(Body):
    """A message."""

    role: Annotated[Str, words(*ROLES)]
    content: Str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None
    reasoning_content: Str | None = None
    reasoning: Str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Str | None = None


class Function(Body):
    """A function that may be called."""

    name: Annotated[Str, Field(min_length=1, max_length=256)]
    description: Str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that may be called."""

    type: Annotated[Str, words("function")] = "function"
    function: Function | None = None


class ChosenFunction(Body):
    """The name within `ToolChoice`."""

    name: Str


class ChosenTool(Body):
    """A tool that is named."""

    function: ChosenFunction | None = None


class Allowed(Body):
    """The tools of which one may or must be called."""

    mode: Annotated[Str, words(*MODES)]
    tools: Annotated[list[ChosenTool], Field(max_length=MOST_TOOLS)]


class ToolChoice(Body):
    """The tool that must be called, or those that may be."""

    type: Annotated[Str, words("function", "allowed_tools")] = "function"
    function: ChosenFunction | None = None
    allowed_tools: Allowed | None = None


class NamedSchema(Body):
    """A JSON schema with its name."""

    name: Str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]


class ResponseFormat(Body):
    """What the answer must be."""

    type: Annotated[Str, words("text", "json_object", "json_schema")]
    json_schema: NamedSchema | None = None


class ChatBody(OpenAIBody):
    """The body of `chat/completions`; fields that are not here are passed over."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Annotated[Str, words(*CHOICES)] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Str] | None = None
    web_search_options: dict[str, Any] | None = None
    prompt_cache_key: Str | None = None
    x_eagle: bool | None = None


def read_chat(body: ChatBody) -> Asked:
    """Return what a body asks for.

    Raises:
        RefusalError: if it asks for what there is not.
    """
    _refuse_missing(body)
    choice, tools = _chosen(
        body.tool_choice, [_tool(tool, place) for place, tool in enumerate(body.tools or ())]
    )
    return Asked(
        api="chat",
        prompt=canonical([_message(m, i) for i, m in enumerate(body.messages)]),
        options=_options(body),
        tools=tools,
        choice=choice,
        parallel=body.parallel_tool_calls is not False,
        template_args=template_args(body.chat_template_kwargs, body.reasoning_effort),
        streams=bool(body.stream),
        with_usage=body.with_usage,
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        shows_drafts=bool(body.x_eagle),
        who=body.prompt_cache_key or body.user or "",
        schema=_schema(body.response_format),
    )


def template_args(kwargs: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """Return what the chat template is given besides.

    Args:
        kwargs: what a client gives by name.
        effort: how much the model is to think; "none": not at all.

    Raises:
        RefusalError: if a name is one that the server sets itself.
    """
    args = dict(kwargs or {})
    for name in TEMPLATE_OWN:
        if name in args:
            where = f"chat_template_kwargs.{name}"
            raise RefusalError("invalid", f"{where} is set by the server; leave it out", where)
    if effort is not None:
        args.setdefault("reasoning_effort", effort)
        if effort == "none":
            args.setdefault("enable_thinking", False)
    return args


def _refuse_missing(body: ChatBody) -> None:
    """Refuse what an answer of this server cannot be."""
    audio, search = "modalities", "web_search_options"
    if body.n not in (None, 1):
        raise RefusalError("invalid", f"n is {body.n}; one answer is made per request", "n")
    if body.modalities and "audio" in body.modalities:
        raise RefusalError("content", f"{audio} has audio; this model writes text", audio)
    if body.web_search_options is not None:
        raise RefusalError("invalid", "nothing is searched here; leave it out", search)


def _options(body: ChatBody) -> dict[str, Any]:
    """Return what a body says of an answer; the newer name of the limit goes first."""
    return body.options() | given(max_tokens=body.max_completion_tokens)


def _message(message: ChatMessage, place: int) -> Message:
    """Return a message in the words of the templates."""
    where = f"messages[{place}]"
    if message.role not in ROLES:
        found = f"{where}.role is none of {', '.join(ROLES)}"
        raise RefusalError("invalid", found, f"{where}.role")
    calls = [
        {"id": call.id, "function": {"name": call.function.name, "arguments": args}}
        for call in message.tool_calls or ()
        for args in [call.function.arguments]
    ]
    return {
        "role": message.role,
        "content": text_parts(message.content, f"{where}.content"),
        THOUGHTS: message.reasoning_content or message.reasoning,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
    }


def _tool(tool: Tool, place: int) -> dict[str, Any]:
    """Return a tool as the chat template gets it: with the fields that the client gave."""
    where = f"tools[{place}]"
    if tool.type != "function" or tool.function is None:
        message = f"{where} is of type {tool.type!r}; this API is offered functions with a name"
        raise RefusalError("invalid", message, where)
    function = tool.function.model_dump(exclude_unset=True)
    if tool.function.parameters is not None:
        check_schema(tool.function.parameters, "tools")
    return {"type": "function", "function": function}


def _chosen(choice: str | ToolChoice | None, tools: Tools) -> tuple[str, Tools]:
    """Return "auto", "none", "required" or the name of a tool, and the tools that are offered."""
    if not isinstance(choice, ToolChoice):
        return choice_word(choice, tools), tools
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        wanted = choice.allowed_tools
        names = [tool.function.name if tool.function else "" for tool in wanted.tools]
        return allowed_tools(wanted.mode, names, tools)
    if choice.type != "function" or choice.function is None:
        raise unknown_choice(choice.type, "function with its name, allowed_tools with its tools")
    return check_tool_choice(choice.function.name, tools), tools


def _schema(wanted: ResponseFormat | None) -> str | None:
    """Return the JSON schema of the answer, if it has one."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.type != "json_schema" or wanted.json_schema is None:
        message = "response_format is none of text, json_object, json_schema with its schema"
        raise RefusalError("invalid", message, "response_format")
    return check_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")
