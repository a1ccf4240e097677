"""What an option is called, may be and means, as metadata of the dataclass field that holds it.

`SamplingOptions`, `GenerationOptions` and `LoadOptions` describe their fields with `option`. The
library checks values by these descriptions; the command line makes its flags, `/set`, the short
commands, completion and help from them. So a name, a default, a range or a sentence of help stands
in one place. Neither MLX nor click is imported here: `mlx-eagle --help` waits for neither.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Protocol

from mlx_eagle.static_tree import Tree

METADATA = "mlx_eagle.option"
# In the order of help.
GROUPS = (
    *("length", "sampling", "content", "drafting", "loading"),
    *("data", "head", "training"),
)


class Kind(Protocol):
    """What the values of an option are."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or "" if it is right."""


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int = 0
    most: int | None = None

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        is_number = type(value) is int and value >= self.least
        if is_number and (self.most is None or value <= self.most):
            return ""
        limit = f"from {self.least} on" if self.most is None else f"{self.least} to {self.most}"
        return f"it must be a whole number {limit}"


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`.

    Attributes:
        least: the smallest; None for any.
        most: the largest; None for any.
        is_open: `least` itself is too small.
        or_zero: 0 is right as well, although it is below `least`.
        is_bound: the library keeps to the limits; else only the command line does, and the
            library takes every finite number.
    """

    least: float | None = None
    most: float | None = None
    is_open: bool = False
    or_zero: bool = False
    is_bound: bool = True

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        if not isinstance(value, Real) or not math.isfinite(value):
            return f"it must be a finite number{self._limits()}"
        if not self.is_bound or (self.or_zero and value == 0):
            return ""
        number = float(value)
        is_low = self.least is not None and (
            number < self.least or (self.is_open and number == self.least)
        )
        is_high = self.most is not None and number > self.most
        return f"it must be a number{self._limits()}" if is_low or is_high else ""

    def _limits(self) -> str:
        """Return the limits in words, with the space before them."""
        if not self.is_bound or self.least is None:
            return ""
        low = f" above {self.least:g}" if self.is_open else f" from {self.least:g}"
        high = "" if self.is_open else " on"
        if self.most is not None:
            high = f", at most {self.most:g}" if self.is_open else f" to {self.most:g}"
        return f"{low}{high}{', or 0' if self.or_zero else ''}"


@dataclass(frozen=True)
class Choice:
    """One of a few values: words, or whole numbers."""

    values: tuple[Any, ...]

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        if any(type(value) is type(known) and value == known for known in self.values):
            return ""
        if isinstance(self.values[0], str):
            return f"it must be one of {', '.join(self.values)}"
        *most, last = map(str, self.values)
        return f"it must be {', '.join(most)} or {last}"


@dataclass(frozen=True)
class Switch:
    """Yes or no: a flag, and a flag with `--no-` where it is on by default."""

    def fault(self, value: Any) -> str:
        """Return "": whatever Python takes for true or false will do."""
        return ""


@dataclass(frozen=True)
class Text:
    """Text that is used as it is; `metavar` is what help calls it."""

    metavar: str = "TEXT"

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        return "" if isinstance(value, str) else "it must be a string"


@dataclass(frozen=True)
class Texts:
    """Several texts: the option is given once for each."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        is_list = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        return "" if is_list else "give a list of strings"


@dataclass(frozen=True)
class Wholes:
    """Whole numbers from 0 on: a tuple; on the command line `2,16,29`."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        is_tuple = isinstance(value, list | tuple) and all(not Whole().fault(n) for n in value)
        return "" if is_tuple else "give whole numbers from 0 on"


@dataclass(frozen=True)
class Pairs:
    """Names and their values: a dict; on the command line `name=value,name=value` or JSON."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        is_dict = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return "" if is_dict else "give a dict of names and values"


@dataclass(frozen=True)
class JsonSchema:
    """A JSON schema: a dict or JSON text; on the command line the file that holds it."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""; what it says is checked when it is used."""
        return "" if isinstance(value, str | dict) else "it must be a dict or JSON text"


@dataclass(frozen=True)
class Bytes:
    """A number of bytes, which the command line takes in GB."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        return Whole(1).fault(value)


@dataclass(frozen=True)
class TreeSizes:
    """A draft tree: its sizes, or one of a fixed structure, as `parse_tree` takes them."""

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        is_shape = isinstance(value, Tree)
        return "" if is_shape else "give a TreeShape, or None for the planner"


@dataclass(frozen=True)
class Option:
    """The description of one option.

    Attributes:
        help: what it means, a sentence or two, as `--help` and `/help set` show it.
        kind: what its values are.
        group: one of GROUPS, which says where help lists it.
        flags: its names on the command line; () for the field's name, `--top-p` for `top_p`.
        name: its name in `/set`; "" for the field's.
        short: the chat's command that is short for `/set NAME`, without its slash; "" for none.
        unset: the word for None, where None is a value: "none" or "auto".
        is_flag: whether the command line has it.
        in_chat: whether `/set` changes it.
    """

    help: str
    kind: Kind
    group: str
    flags: tuple[str, ...] = ()
    name: str = ""
    short: str = ""
    unset: str = ""
    is_flag: bool = True
    in_chat: bool = True

    def fault(self, value: Any) -> str:
        """Return what `value` must be instead, or ""."""
        return "" if value is None and self.unset else self.kind.fault(value)


def option(default: Any, help: str, kind: Kind, group: str, **names: Any) -> Any:
    """Return a dataclass field with its default and description.

    Args:
        default: its value where nobody says otherwise.
        help: what it means.
        kind: what its values are.
        group: one of GROUPS.
        **names: further attributes of `Option`.
    """
    return field(default=default, metadata={METADATA: Option(help, kind, group, **names)})


def options_of(owner: Any) -> dict[str, Option]:
    """Return the descriptions of a dataclass by field, in the order in which help lists them."""
    described = {f.name: f.metadata[METADATA] for f in fields(owner) if METADATA in f.metadata}
    return dict(sorted(described.items(), key=lambda item: GROUPS.index(item[1].group)))


def check_options(owner: Any, error: type[Exception] = ValueError) -> None:
    """Refuse the first value that its description does not allow, as an error of this type."""
    for name, described in options_of(owner).items():
        value = getattr(owner, name)
        if fault := described.fault(value):
            raise error(f"{name} is {value!r}; {fault}")


def fill_defaults(owner: Any) -> None:
    """Give options that are None, and cannot be, their defaults: mlx-lm's callers pass None."""
    for name, described in options_of(owner).items():
        if getattr(owner, name) is None and not described.unset:
            default = next(field.default for field in fields(owner) if field.name == name)
            object.__setattr__(owner, name, default)
