"""Options as a person types them in `/set`, and as they are shown: text to values and back.

It works on every dataclass whose fields are described (`mlx_eagle.option`): `GenerationOptions` and
`LoadOptions`. Values go through the types of the command line, so that a value that one place
accepts is accepted by the other. Nothing heavy is imported here.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_eagle.cli.option_types import GIGABYTE, Schema, reading
from mlx_eagle.option import Bytes, Option, TreeSizes, options_of
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.recommended import NAMES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

NOTHING = ("none", "off")  # what takes an option back that need not be there
# An answer follows one of these: either takes the other one back.
EXCLUSIVE = {"json_schema": "regex", "regex": "json_schema"}


def fields_by_name(owner: Any) -> dict[str, str]:
    """Return the fields of a described dataclass that `/set` changes, by what users call them."""
    described = options_of(owner).items()
    return {option.name or field: field for field, option in described if option.in_chat}


def with_text(options: T, field: str, text: str) -> T:
    """Return options of which one has the value that a user typed.

    Args:
        options: a described dataclass.
        field: the name of the field.
        text: the value; the option's own word for None takes it back, and where that is "none",
            so does "off".

    Raises:
        click.UsageError: if the value is not valid; its message says why.
    """
    option = options_of(options)[field]
    changes: dict[str, Any] = {field: None}
    if not takes_back(option, text):
        changes[field] = reading(option.kind).type.convert(text, None, None)
        if field in EXCLUSIVE:
            changes[EXCLUSIVE[field]] = None
    return replace(options, **changes)


def with_recommended(
    options: GenerationOptions, recommended: Mapping[str, Any], given: Collection[str]
) -> GenerationOptions:
    """Return options with the sampling that a target's publisher recommends.

    Args:
        options: as they are.
        recommended: options by name; those that it lacks have their defaults.
        given: names that a person has decided, which stay.
    """
    defaults = GenerationOptions()
    chosen = {name: recommended.get(name, getattr(defaults, name)) for name in NAMES}
    return replace(options, **{n: v for n, v in chosen.items() if n not in given})


def takes_back(option: Option, text: str) -> bool:
    """Say whether a text means that an option shall have no value."""
    if not option.unset:
        return False
    return text == option.unset or (option.unset == "none" and text in NOTHING)


def text_of(options: Any, field: str) -> str:
    """Return the value of an option as a user would type it."""
    option, value = options_of(options)[field], getattr(options, field)
    if value is None:
        return option.unset
    if isinstance(value, Schema):
        return value.file
    if isinstance(option.kind, Bytes):
        return f"{value / GIGABYTE:g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={json.dumps(part)}" for name, part in value.items())
    if isinstance(option.kind, TreeSizes):
        return str(value.text)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
