"""What a request of any API asks for, in the words of this package."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_eagle.session.prompt import Message

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, whatever its API.

    Attributes:
        api: "chat", "completions", "messages" or "responses".
        prompt: chat messages, or text or token ids that are used as they are.
        options: of `GenerationOptions`, those that the request names.
        tools: that the answer may call, in the format of OpenAI's chat API.
        spaces: the group of a tool, by its name, where its client groups tools.
        custom: names of tools whose input is a text, where the API has such.
        choice: "auto", "none", "required", or the name of the one tool that must be called.
        parallel: whether one answer may call several tools.
        template_args: what the chat template is given besides.
        streams: whether the answer is sent as it is made.
        with_usage: whether a stream of the chat API ends with the counts of tokens.
        n_logprobs: likeliest tokens per token; None: no log-probabilities.
        echoes: whether the answer begins with the prompt.
        shows_drafts: whether the stream says what was drafted.
        client: what the client calls itself (User-Agent).
        who: whose requests wait in one row; requests of others come in between.
        salt: rows of earlier prompts are found by requests with the same one alone.
        request_id: names the request in answers and in the log.
        schema: what the answer must be, as a JSON schema; None: text.
    """

    api: str
    prompt: list[Message] | list[int] | str
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Tools = ()
    spaces: Mapping[str, str] = field(default_factory=dict)
    custom: Collection[str] = ()
    choice: str = "auto"
    parallel: bool = True
    template_args: Mapping[str, Any] = field(default_factory=dict)
    streams: bool = False
    with_usage: bool = False
    n_logprobs: int | None = None
    echoes: bool = False
    shows_drafts: bool = False
    client: str = ""
    who: str = ""
    salt: str = ""
    request_id: str = ""
    schema: str | None = None
