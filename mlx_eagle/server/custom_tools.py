"""Tools whose input is free text (`custom` of the Responses API), as functions of one text.

Chat templates know functions alone, so the model is shown one with the argument `input`, and what
it writes there is handed over as the text that it is. A format that is a regex is forced as the
pattern of that text; one in Lark's language cannot be, for the text stands within JSON or within
the marks of a call.
"""

import json
import re
from typing import Any

from mlx_eagle.answers.tool_calls import parse_arguments
from mlx_eagle.server.bodies import Body, Str, check_schema, given
from mlx_eagle.server.refusal import RefusalError

INPUT = "input"
HEAD = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"  # the first half of a character
LOW = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
NO_LOW = r"(?=[^\\]|\\[^u]|\\u(?:[^dD]|[dD][^c-fC-F]))"  # what follows, for certain
# As much of a string's inside as can be read: no escape that is cut, no half of a character that
# may yet become a whole one.
WHOLE = re.compile(rf'(?:[^"\\]|{HIGH}{LOW}|{HIGH}{NO_LOW}|(?!{HIGH})\\u[0-9a-fA-F]{{4}}|\\[^u])*')


class CustomFormat(Body):
    """What the input of a tool must be."""

    type: Str
    syntax: Str | None = None
    definition: Str | None = None


def as_function(
    name: str, description: str | None, wanted: CustomFormat | None, where: str
) -> dict[str, Any]:
    """Return a tool with a text as its input in the format of the chat API.

    Args:
        name: of the tool.
        description: of it.
        wanted: what the text must be; None: anything.
        where: it stands in the body.

    Raises:
        RefusalError: if the format is one that cannot be forced.
    """
    text: dict[str, Any] = {"type": "string"}
    is_strict = wanted is not None and wanted.type != "text"
    if wanted is not None and is_strict:
        text["pattern"] = f"^(?:{_regex(wanted, f'{where}.format')})$"
    schema: dict[str, Any] = {"type": "object", "properties": {INPUT: text}}
    schema |= {"required": [INPUT], "additionalProperties": False}
    check_schema(schema, f"{where}.format")
    own = given(name=name, description=description, strict=is_strict or None)
    return {"type": "function", "function": own | {"parameters": schema}}


def as_arguments(text: str | None) -> str:
    """Return the arguments that hand a text over."""
    return json.dumps({INPUT: text or ""}, ensure_ascii=False)


class InputStream:
    """Reads the text out of arguments while they are written."""

    def __init__(self) -> None:
        self._arguments, self._sent, self._at = "", "", 0

    def add(self, part: str) -> str:
        """Take in some of the arguments; returns what is new of the text."""
        self._arguments += part
        if not self._at:
            found = HEAD.match(self._arguments)
            self._at = found.end() if found else 0
        if not self._at:
            return ""
        whole = WHOLE.match(self._arguments, self._at)
        assert whole is not None, "it matches nothing at least"
        return self._read(whole.end())

    def _read(self, end: int) -> str:
        """Return the text of a stretch; one with escapes that JSON does not have, as it is."""
        raw = self._arguments[self._at : end]
        try:
            new = str(json.loads(f'"{raw}"', strict=False))
        except ValueError:
            new = raw
        self._at, self._sent = end, self._sent + new
        return new

    def finish(self, *, is_complete: bool) -> str:
        """Return what was not sent yet: arguments that were written otherwise.

        Args:
            is_complete: whether they are.
        """
        if self._at or not is_complete:
            return ""
        found = (parse_arguments(self._arguments) or {}).get(INPUT)
        self._sent = found if isinstance(found, str) else self._arguments
        return self._sent

    @property
    def text(self) -> str:
        """What was sent."""
        return self._sent


def _regex(wanted: CustomFormat, where: str) -> str:
    """Return the pattern of a text."""
    if wanted.type != "grammar" or wanted.definition is None:
        known = f"{where} is none of text, grammar with its definition"
        raise RefusalError("invalid", known, where)
    if wanted.syntax != "regex":
        raise RefusalError(
            "invalid",
            f"{where}.syntax is {wanted.syntax!r}; inputs of tools are forced by regex alone: give "
            "one, or the type text, or a function with a schema",
            f"{where}.syntax",
        )
    return wanted.definition
