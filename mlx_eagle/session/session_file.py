"""A conversation in one file: messages, tokens, and the rows that target and head computed.

The file is safetensors: the rows as tensors, the rest as JSON in its metadata. Rows are of use only
with the weights that computed them, so the file names those, and anything else is refused. Where
other settings or libraries computed them, tokens and messages alone are taken.
"""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.json_files import parse_json
from mlx_eagle.files.quoting import one_line
from mlx_eagle.files.safetensors import checksum, read_header
from mlx_eagle.session.prefix import CachedPrefix
from mlx_eagle.session.prompt import Message, Template

FORMAT, VERSION = "mlx-eagle session", 2
READABLE = ("1", "2")  # versions; the first had no template, and text messages alone
TOKENS = "tokens"
SETTINGS = "settings"  # in an identity: with other ones rows are computed again


class About(NamedTuple):
    """What a saved conversation is, but for tokens and rows.

    `identity` says what computed the rows: by what it is of, e.g. "target", what it is.
    """

    system: str | None
    messages: list[Message]
    identity: dict[str, str]
    template: Template


def write_session(path: Path, about: About, prefix: CachedPrefix) -> None:
    """Write a conversation; the file appears whole or stays as it was.

    Raises:
        EagleError: if it cannot be written.
    """
    path = Path(os.path.realpath(os.path.expanduser(path)))
    facts = about._asdict() | {
        "template": {"args": dict(about.template.args), "tools": about.template.tools},
        "rows": prefix.cache.rows,
        "head_rows": prefix.head_rows,
    }
    arrays = prefix.arrays() | {TOKENS: mx.array(prefix.tokens, dtype=mx.int32)}
    metadata = {"format": FORMAT, "version": str(VERSION), "about": _as_json(facts)}
    metadata["crc32"] = checksum(arrays)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # What was said is nobody else's business. mx.save_safetensors insists on the ending.
        with new_file(path, mode=0o600, suffix=".safetensors") as partial:
            mx.save_safetensors(str(partial), arrays, metadata)
    except (OSError, RuntimeError) as error:
        raise EagleError(f"cannot write {path}: {_reason(error)}") from error


def _as_json(facts: dict[str, Any]) -> str:
    """Return what a file says of its conversation, as it will be read.

    Raises:
        EagleError: if a message or a tool holds what JSON does not, or what is not read again.
    """
    try:
        text = json.dumps(facts, allow_nan=False)
        parse_json(text.encode())
    except (TypeError, ValueError, RecursionError, CheckpointError) as error:
        raise EagleError(f"this conversation cannot be saved as JSON: {one_line(error)}") from error
    return text


def read_session(path: Path, identity: Mapping[str, str], prefix: CachedPrefix) -> About:
    """Fill an empty prefix from a file.

    Args:
        path: what `write_session` wrote.
        identity: of what will go on with it.
        prefix: new and empty; left so where the file is refused.

    Raises:
        EagleError: if the file does not exist, is damaged, or belongs to something else.
    """
    path = Path(os.path.expanduser(path))
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise EagleError(f"{path} is not a file")
    arrays, facts = _load(path)
    about = _about(path, facts)
    for what, expected in identity.items():
        found = about.identity.get(what, "none")
        if found != expected and what != SETTINGS:
            raise EagleError(
                f"{path.name} was saved with another {what} ({_short(found)}, this one is "
                f"{_short(expected)}); load the one that it was saved with"
            )
    has_rows = about.identity.get(SETTINGS) == identity[SETTINGS]
    try:
        _fill(prefix, arrays, facts, has_rows=has_rows)
    except (ValueError, KeyError, TypeError) as error:
        prefix.reset()
        raise EagleError(f"{path.name} is damaged: {error}") from error
    return about


def _short(identity: str) -> str:
    """Return an identity as messages show it: of a digest the beginning."""
    *words, last = identity[:80].split()
    return " ".join([*words, last[:12]])


def _load(path: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return the tensors of a file, and what its metadata says."""
    try:
        read_header(path)
        loaded = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path.name} is not a saved conversation")
        if metadata.get("version") not in READABLE:
            raise EagleError(
                f"{path.name} has version {metadata.get('version', 'none')[:20]}, this is "
                f"version {VERSION}; use the mlx-eagle that saved it"
            )
        facts = parse_json(metadata.get("about", "").encode())
        if checksum(arrays) != metadata.get("crc32"):  # which reads all: the file may go then
            raise CheckpointError("its checksum is wrong")
    except (RuntimeError, ValueError, RecursionError) as error:
        raise EagleError(f"{path.name} is damaged: {_reason(error)}") from error
    return arrays, facts


def _about(path: Path, facts: Any) -> About:
    """Return what a file says of its conversation, once it has the right form."""
    if isinstance(facts, dict):
        system, messages = facts.get("system"), facts.get("messages")
        identity = facts.get("identity")
        template = _template(facts.get("template", {}))
        if (
            isinstance(system, str | None)
            and isinstance(messages, list)
            and isinstance(identity, dict)
            and all(isinstance(m, dict) and _is_message(m) for m in messages)
            and _is_text(identity)
            and template is not None
        ):
            return About(system, messages, identity, template)
    raise EagleError(f"{path.name} is damaged: it does not describe a conversation")


def _is_message(fields: dict[str, Any]) -> bool:
    """Say whether something is a chat message; what else it holds is the template's business."""
    return isinstance(fields.get("role"), str)


def _template(facts: Any) -> Template | None:
    """Return what the chat template was given, None if that has another form."""
    if not isinstance(facts, dict):
        return None
    args, tools = facts.get("args", {}), facts.get("tools")
    has_form = isinstance(args, dict) and isinstance(tools, list | None)
    return Template(args, tools) if has_form else None


def _is_text(fields: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in fields.values())


def _fill(
    prefix: CachedPrefix, arrays: dict[str, mx.array], facts: dict[str, Any], *, has_rows: bool
) -> None:
    """Restore tokens and, if they are of use, rows.

    Raises:
        ValueError: if they do not fit together.
    """
    tokens = arrays.pop(TOKENS)
    rows, head_rows = facts.get("rows"), facts.get("head_rows")
    if tokens.ndim != 1 or tokens.dtype != mx.int32:
        raise ValueError("its tokens are not a list of ids")
    if type(rows) is not int or type(head_rows) is not int:
        raise ValueError("it does not say how many rows it has")
    if not 0 <= head_rows <= rows <= tokens.size:
        raise ValueError(f"it has {rows} rows and {head_rows} of the head for {tokens.size} tokens")
    held = cast(list[int], tokens.tolist())
    if has_rows:
        prefix.restore(held, arrays, rows, head_rows)
    else:
        prefix.tokens = held


def _reason(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or error)
