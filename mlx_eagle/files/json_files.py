"""JSON from files that nobody vouches for: bounded in size and depth, without repeated keys."""

import json
from pathlib import Path
from typing import Any

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import quote, quote_value

MAX_CONFIG_BYTES = 8 << 20
MAX_JSON_PARTS = 500_000  # objects and lists: a header needs three for a tensor
MAX_JSON_DEPTH = 24
MAX_INTEGER_DIGITS = 40  # such integers still become floats


def parse_json(data: bytes) -> Any:
    """Return what JSON in UTF-8 says, if it is neither ambiguous nor made to exhaust its reader.

    NaN and Infinity are let through, published configurations have them; `read_number` is not.
    """
    if data.count(b"{") + data.count(b"[") > MAX_JSON_PARTS:
        raise CheckpointError(f"it has more than {MAX_JSON_PARTS} objects and lists")
    value = json.loads(
        data.decode(), object_pairs_hook=_without_repeats, parse_int=_bounded_integer
    )
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        "".join(text for text in level if isinstance(text, str)).encode()  # no lone surrogates
        parts = [part for part in level if isinstance(part, dict | list)]
        if not parts:
            return value
        level = [item for part in parts for item in part]
        level += [item for part in parts if isinstance(part, dict) for item in part.values()]
    raise CheckpointError(f"it is nested more than {MAX_JSON_DEPTH} deep")


def _bounded_integer(digits: str) -> int:
    """Return the integer that a number in JSON stands for, unless it is absurdly long."""
    if len(digits) > MAX_INTEGER_DIGITS:
        raise CheckpointError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, unless a key comes twice."""
    items: dict[str, Any] = {}
    for key, value in pairs:
        if key in items:
            raise CheckpointError(f"its key {quote(key)} comes twice")
        items[key] = value
    return items


def read_json(file: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return a JSON object from a file of bounded size.

    Raises:
        CheckpointError: if the file is missing, too large, or not a JSON object.
    """
    where = f"{file.parent.name}/{file.name}"
    if check_file(file) > max_bytes:
        raise CheckpointError(f"{where} is larger than {max_bytes} bytes")
    try:
        with file.open("rb") as stream:
            value = parse_json(stream.read(max_bytes))
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{where} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return value


def read_count(
    config: dict[str, Any], key: str, default: int | None = None, *, most: int = (1 << 31) - 1
) -> int:
    """Return a positive integer of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is missing without a default, or is not an integer from 1 to `most`.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= most:
        raise CheckpointError(
            f"config.json: {key} is {quote_value(value)}, not a positive integer up to {most}"
        )
    return value


def read_number(config: dict[str, Any], key: str, default: float) -> float:
    """Return a positive, finite number of a configuration, or the default if it has no such key.

    Raises:
        CheckpointError: if it is there and is not a positive, finite number.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 1e-15 < value < 1e15:
        raise CheckpointError(f"config.json: {key} is {quote_value(value)}, not a positive number")
    return float(value)


def language_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a target's configuration that describes its language model."""
    nested = config.get("text_config")
    return config | nested if isinstance(nested, dict) else config
