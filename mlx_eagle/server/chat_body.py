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
from mlx_eagle.session.prompt import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
# What transformers takes for itself and templates do not see: another template, tensors, cut texts.
TEMPLATE_OWN = (
    *("self", "conversation", "messages", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation"),
    *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    "tokenizer_kwargs",
)
CHOICES = ("auto", "none", "required")  # words that say whether a tool is called, not which
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
    function: Function


class ChosenFunction(Body):
    """The name within `ToolChoice`."""

    name: Str


class ToolChoice(Body):
    """The tool that must be called."""

    function: ChosenFunction


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
    tools = [_tool(tool) for tool in body.tools or ()]
    return Asked(
        api="chat",
        prompt=canonical([_message(m, i) for i, m in enumerate(body.messages)]),
        options=_options(body),
        tools=tools,
        choice=_choice(body.tool_choice, tools),
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


def check_tool_choice(name: str, tools: list[dict[str, Any]], where: str = "tool_choice") -> str:
    """Return the name of the tool that must be called, once it is one of them.

    Raises:
        RefusalError: if it is not.
    """
    if name not in (tool["function"]["name"] for tool in tools):
        raise RefusalError(
            "invalid", f"{where} names a function that is not among the tools", where
        )
    if name in CHOICES:
        message = f"{where}: a tool called {name} cannot be chosen by its name; rename it"
        raise RefusalError("invalid", message, where)
    return name


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


def _tool(tool: Tool) -> dict[str, Any]:
    """Return a tool as the chat template gets it: with the fields that the client gave."""
    if tool.type != "function":
        raise RefusalError("invalid", "a tool is of another type than function", "tools")
    function = tool.function.model_dump(exclude_unset=True)
    if tool.function.parameters is not None:
        check_schema(tool.function.parameters, "tools")
    return {"type": "function", "function": function}


def _choice(choice: str | ToolChoice | None, tools: list[dict[str, Any]]) -> str:
    """Return "auto", "none", "required" or the name of a tool."""
    if isinstance(choice, ToolChoice):
        return check_tool_choice(choice.function.name, tools)
    return choice_word(choice, tools)


def choice_word(choice: str | None, tools: list[dict[str, Any]]) -> str:
    """Return whether a tool may or must be called, once that can be.

    Raises:
        RefusalError: if it is no such word, or there is no tool to be called.
    """
    where = "tool_choice"
    if choice not in (None, *CHOICES):
        raise RefusalError("invalid", f"{where} is none of auto, none, required", where)
    if choice == "required" and not tools:
        raise RefusalError("invalid", f"{where} is required, but there are no tools", where)
    return choice or "auto"


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
