"""The bodies of Anthropic's `messages` and `messages/count_tokens`, and what they ask for."""

import json
from typing import Annotated, Any

from pydantic import Field

from mlx_eagle.answers.history import THOUGHTS
from mlx_eagle.server.asked import Asked
from mlx_eagle.server.bodies import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_STOPS,
    MOST_TOOLS,
    Body,
    Count,
    Schema,
    Share,
    Stop,
    Str,
    Temperature,
    TopK,
    check_schema,
    given,
    sampling,
    words,
)
from mlx_eagle.server.conversation import canonical, is_noise
from mlx_eagle.server.refusal import RefusalError
from mlx_eagle.server.tool_choice import check_tool_choice
from mlx_eagle.session.prompt import Message

SIGNATURE = "bWx4LWVhZ2xl"  # of our thoughts: those of others are not this model's
SPEAKERS = ("user", "assistant", "system")
BLOCKS = (
    *("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
    *("image", "document", "tool_reference"),
)
IMAGE = "[image omitted]"


class Block(Body):
    """A part of a message: text, a thought, a call, or the result of one."""

    type: Annotated[Str, words(*BLOCKS)]
    text: Str | None = None
    thinking: Str | None = None
    signature: Str | None = None
    id: Str | None = None
    name: Str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Str | None = None
    content: Str | Annotated[list["Block"], Field(max_length=MOST_PARTS)] | None = None
    is_error: bool | None = None


class OneMessage(Body):
    """A message."""

    role: Annotated[Str, words(*SPEAKERS)]
    content: Str | Annotated[list[Block], Field(max_length=MOST_PARTS)]


class AnthropicTool(Body):
    """A tool that may be called."""

    type: Str | None = None
    name: Annotated[Str, Field(min_length=1, max_length=256)]
    description: Str | None = None
    input_schema: Schema | None = None


class Choice(Body):
    """Which tools may or must be called."""

    type: Annotated[Str, words("auto", "any", "tool", "none")]
    name: Str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model is to think first."""

    type: Str
    budget_tokens: Count | None = None


class OutputFormat(Body):
    """What the answer must be."""

    type: Str
    schema_: Annotated[Schema | None, Field(alias="schema")] = None


class OutputConfig(Body):
    """How the answer is to be."""

    effort: Str | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    """Who asks."""

    user_id: Str | None = None


class CountBody(Body):
    """The body of `messages/count_tokens`; fields that are not here are passed over."""

    model: Str
    messages: Annotated[list[OneMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: Str | list[Block] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody):
    """The body of `messages`; fields that are not here are passed over."""

    max_tokens: Count
    stop_sequences: Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


def read_messages(body: MessagesBody) -> Asked:
    """Return what a body asks for.

    Raises:
        RefusalError: if it asks for what there is not.
    """
    thoughts = body.thinking.budget_tokens if body.thinking else None
    own = given(
        max_tokens=body.max_tokens, stop=body.stop_sequences or None, thinking_budget=thoughts
    )
    who = body.metadata.user_id if body.metadata else None
    return _asked(body, sampling(body) | own, streams=bool(body.stream), who=who or "")


def read_count(body: CountBody) -> Asked:
    """Return the prompt whose tokens are to be counted.

    Raises:
        RefusalError: if it cannot be read.
    """
    return _asked(body, {})


def _asked(body: CountBody, options: dict[str, Any], **fields: Any) -> Asked:
    tools = [_tool(tool, place) for place, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    return Asked(
        api="messages",
        prompt=canonical(_conversation(body)),
        options=options,
        tools=tools,
        choice=_choice(choice, tools),
        parallel=not (choice and choice.disable_parallel_tool_use),
        template_args=_template_args(body),
        schema=_schema(body.output_config),
        **fields,
    )


def _conversation(body: CountBody) -> list[Message]:
    """Return the messages in OpenAI's format."""
    system = body.system or ""
    parts = [system] if isinstance(system, str) else [block.text or "" for block in system]
    texts = [text for text in parts if text.strip() and not is_noise(text)]
    messages: list[Message] = [{"role": "system", "content": "\n\n".join(texts)}] if texts else []
    newest = max((i for i, m in enumerate(body.messages) if m.role == "user"), default=-1)
    for place, message in enumerate(body.messages):
        content, where = message.content, f"messages.{place}.content"
        if message.role not in SPEAKERS:
            known = f"messages.{place}.role is none of user, assistant"
            raise RefusalError("invalid", known, f"messages.{place}.role")
        if isinstance(content, str):
            messages.append({"role": message.role, "content": content})
        elif message.role == "assistant":
            messages.append(_answer(content))
        else:
            messages += _results(content, where)
            if text := _text(content, where, is_new=place == newest):
                messages.append({"role": message.role, "content": text})
    return messages


def _answer(blocks: list[Block]) -> Message:
    """Return an earlier answer; thoughts of other models are left out."""
    own = [b.thinking or "" for b in blocks if b.type == "thinking" and b.signature == SIGNATURE]
    calls = [
        {"id": b.id or "", "function": {"name": b.name or "", "arguments": dict(b.input or {})}}
        for b in blocks
        if b.type == "tool_use"
    ]
    return {
        "role": "assistant",
        "content": "".join(b.text or "" for b in blocks if b.type == "text"),
        THOUGHTS: "\n".join(filter(None, own)) or None,
        "tool_calls": calls or None,
    }


def _results(blocks: list[Block], where: str) -> list[Message]:
    """Return the results of tools among the blocks of a message."""
    return [
        {"role": "tool", "tool_call_id": b.tool_use_id or "", "content": _result(b, where)}
        for b in blocks
        if b.type == "tool_result"
    ]


def _result(block: Block, where: str) -> str:
    """Return what a tool said; images are left out, which this model could not see."""
    content = block.content or ""
    text = content if isinstance(content, str) else _text(content, where, is_new=False)
    return f"Error: {text}" if block.is_error else text


def _text(blocks: list[Block], where: str, *, is_new: bool) -> str:
    """Return the text of blocks.

    Args:
        blocks: of a message or a result.
        where: they stand in the body.
        is_new: whether the user has just said it; then what is no text is refused.
    """
    texts = []
    for place, block in enumerate(blocks):
        if block.type == "text":
            texts.append(block.text or "")
        elif block.type != "tool_result" and is_new:
            here = f"{where}.{place}"
            message = f"{here} is of type {block.type!r}; this model reads text"
            raise RefusalError("content", message, here)
        elif block.type in ("image", "document"):
            texts.append(IMAGE)
        elif block.type == "tool_reference":
            texts.append(json.dumps(block.model_dump(exclude_unset=True)))
    return "\n\n".join(filter(None, texts))


def _tool(tool: AnthropicTool, place: int) -> dict[str, Any]:
    """Return a tool in OpenAI's format."""
    if tool.type not in (None, "custom"):
        # Claude Code leaves out a tool that is refused in these words, and asks again.
        raise RefusalError(
            "invalid",
            f"tools.{place}: Input tag '{tool.type}' found using 'type' does not match any of the "
            "expected tags: 'custom'",
        )
    schema = tool.input_schema or {"type": "object", "properties": {}}
    check_schema(schema, f"tools.{place}.input_schema")
    described = given(name=tool.name, description=tool.description)
    return {"type": "function", "function": described | {"parameters": schema}}


def _choice(choice: Choice | None, tools: list[dict[str, Any]]) -> str:
    """Return "auto", "none", "required" or the name of a tool."""
    where = "tool_choice"
    if choice is None:
        return "auto"
    if choice.type == "tool":
        return check_tool_choice(choice.name or "", tools)
    words = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in words:
        raise RefusalError("invalid", f"{where}.type is none of auto, any, tool, none", where)
    if choice.type == "any" and not tools:
        raise RefusalError("invalid", f"{where} is any, but there are no tools", where)
    return words[choice.type]


def _template_args(body: CountBody) -> dict[str, Any]:
    """Return what the chat template is given besides."""
    args: dict[str, Any] = {}
    if body.thinking is not None:
        args["enable_thinking"] = body.thinking.type != "disabled"
    if body.output_config is not None and body.output_config.effort is not None:
        args["reasoning_effort"] = body.output_config.effort
    return args


def _schema(config: OutputConfig | None) -> str | None:
    """Return the JSON schema of the answer, if it has one."""
    wanted = config.format if config else None
    if wanted is None or wanted.type == "text":
        return None
    where = "output_config.format"
    if wanted.type != "json_schema" or wanted.schema_ is None:
        raise RefusalError("invalid", f"{where} is no json_schema with its schema", where)
    return check_schema(wanted.schema_, f"{where}.schema")
