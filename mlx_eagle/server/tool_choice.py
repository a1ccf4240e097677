"""Which tool an answer may or must call, in the words of OpenAI's APIs."""

from collections.abc import Sequence
from typing import Any

from mlx_eagle.server.refusal import RefusalError

CHOICES = ("auto", "none", "required")  # words that say whether a tool is called, not which
MODES = ("auto", "required")
WHERE = "tool_choice"

Tools = list[dict[str, Any]]


def check_tool_choice(name: str, tools: Tools, where: str = WHERE) -> str:
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


def choice_word(choice: str | None, tools: Tools) -> str:
    """Return whether a tool may or must be called, once that can be.

    Raises:
        RefusalError: if it is no such word, or there is no tool to be called.
    """
    if choice not in (None, *CHOICES):
        raise RefusalError("invalid", f"{WHERE} is none of auto, none, required", WHERE)
    if choice == "required" and not tools:
        raise RefusalError("invalid", f"{WHERE} is required, but there are no tools", WHERE)
    return choice or "auto"


def allowed_tools(mode: str | None, names: Sequence[str], tools: Tools) -> tuple[str, Tools]:
    """Return whether one of some tools may or must be called, and those tools.

    The answer is offered those alone.

    Args:
        mode: "auto" or "required".
        names: of tools that may be called.
        tools: of the request.

    Raises:
        RefusalError: if the mode is another, or one is not among the tools.
    """
    if mode not in MODES:
        raise RefusalError("invalid", f"{WHERE}.mode is none of auto, required", f"{WHERE}.mode")
    if not names:
        raise RefusalError("invalid", f"{WHERE}.tools names no tool", f"{WHERE}.tools")
    for place, name in enumerate(names):
        check_tool_choice(name, tools, f"{WHERE}.tools[{place}]")
    return mode, [tool for tool in tools if tool["function"]["name"] in names]


def unknown_choice(kind: str, known: str) -> RefusalError:
    """Return the refusal of a kind of choice that there is not.

    Args:
        kind: that a request names.
        known: kinds that there are.
    """
    return RefusalError("invalid", f"{WHERE} is of type {kind!r}, which is none of {known}", WHERE)
