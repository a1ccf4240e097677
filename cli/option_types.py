"""How the command line and `/set` read the values of options: a click type for every kind.

Nothing heavy is imported here.
"""

import json
import math
from typing import Any, NamedTuple

import click

from mlx_eagle import option
from mlx_eagle.static_tree import parse_tree

GIGABYTE = 1_000_000_000  # bytes


class Number(click.FloatRange):
    """A finite number in a range: infinity and not-a-number are refused.

    Args:
        smallest: the smallest number above 0 that is right; None for any that the range has.
        **limits: of `click.FloatRange`.
    """

    def __init__(self, *, smallest: float | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self._smallest = smallest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number, or fail with what it may be."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if self._smallest is not None and 0 < number < self._smallest:
            self.fail(f"{value} is neither 0 nor {self._smallest:g} or more.", param, ctx)
        return number


class Gigabytes(Number):
    """A size that is typed in GB and kept in bytes."""

    def __init__(self) -> None:
        super().__init__(min=1 / GIGABYTE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a size, and return its bytes."""
        return int(GIGABYTE * super().convert(value, param, ctx))


class WholeChoice(click.Choice[str]):
    """One of a few whole numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number."""
        return int(super().convert(str(value), param, ctx))


class WholesText(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas: `2,16,29`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the numbers, or fail with what they must be."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not N,N,N.", param, ctx)
        return tuple(map(int, parts))


class OrWord(click.ParamType):  # type: ignore[type-arg]
    """What another type reads, or a word that stands for None.

    Args:
        other: the other type.
        word: for None.
    """

    def __init__(self, other: "click.ParamType[Any]", word: str) -> None:
        self.name = other.name
        self._other, self._word = other, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a value."""
        return None if value == self._word else self._other.convert(value, param, ctx)


class PairsText(click.ParamType):  # type: ignore[type-arg]
    """Names and values: `name=value,name=value`, where values are JSON or else text; or JSON."""

    name = "pairs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the pairs, or fail with what they must be."""
        if isinstance(value, dict):
            return value
        if value.lstrip().startswith("{"):
            return self._object(value, param, ctx)
        pairs = [part.partition("=") for part in value.split(",")]
        if not all(name.strip() and sign for name, sign, _ in pairs):
            self.fail(f"{value!r} is not NAME=VALUE,NAME=VALUE.", param, ctx)
        return {name.strip(): _json_or_text(text.strip()) for name, _, text in pairs}

    def _object(
        self, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Parse a JSON object, or fail with the reason."""
        try:
            found = json.loads(text)
        except ValueError as error:
            self.fail(f"{text!r} is not JSON: {error}.", param, ctx)
        return dict(found)


def _json_or_text(text: str) -> Any:
    """Return what JSON says, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Schema(str):
    """A JSON schema as text, and the file it was read from."""

    file: str

    def __new__(cls, file: str, text: str) -> "Schema":
        """Return the text, which knows its file."""
        schema = super().__new__(cls, text)
        schema.file = file
        return schema


class SchemaFile(click.Path):
    """A file with a JSON schema, read when it is named."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the schema, or fail with the reason."""
        file = str(super().convert(value, param, ctx))
        try:
            with open(file, encoding="utf-8") as stream:
                text = stream.read()
            schema = json.loads(text)
        except OSError as error:
            self.fail(f"{file}: {error.strerror}.", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{file} is not UTF-8 text.", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"{file} is not JSON: {error}.", param, ctx)
        if not isinstance(schema, dict):
            self.fail(f"{file} is not a JSON schema: it holds no object.", param, ctx)
        return Schema(file, text)


class TreeSizes(click.types.StringParamType):
    """A draft tree: 4x2x8, eagle1, static:16 or mc_sim_7b_63."""

    name = "tree"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the sizes, or fail with the reason."""
        try:
            return parse_tree(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Reading(NamedTuple):
    """How an option is read.

    Attributes:
        type: parses its values, on the command line and in `/set`.
        metavar: what help writes for a value.
        words: what Tab offers, where the values are few.
    """

    type: "click.ParamType[Any]"  # quoted: older clicks have no [Any] here
    metavar: str
    words: tuple[str, ...] = ()


def reading(kind: option.Kind) -> Reading:
    """Return how the values of a kind are read."""
    match kind:
        case option.Whole(least, most):
            return Reading(click.IntRange(least, most), "N")
        case option.Number(least, most, is_open, or_zero):
            low, smallest = (0, least) if or_zero else (least, None)
            number = Number(min=low, max=most, min_open=is_open, smallest=smallest)
            return Reading(number, "N")
        case option.Choice(values):
            words = tuple(map(str, values))
            type_ = click.Choice(words) if isinstance(values[0], str) else WholeChoice(words)
            return Reading(type_, "|".join(words), words)
        case option.Switch():
            return Reading(click.BOOL, "on|off", ("on", "off"))
        case option.JsonSchema():
            return Reading(SchemaFile(), "FILE")
        case option.Bytes():
            return Reading(Gigabytes(), "GB")
        case option.Wholes():
            return Reading(WholesText(), "N,N,N")
        case option.Pairs():
            return Reading(PairsText(), "NAME=VALUE")
        case option.TreeSizes():
            return Reading(TreeSizes(), "DxWxN")
        case option.Text(metavar):
            return Reading(click.STRING, metavar)
        case _:
            return Reading(click.STRING, "TEXT")


def usage(described: option.Option) -> str:
    """Return what may be written for an option: N, on|off, FILE|none."""
    metavar = reading(described.kind).metavar
    return f"{metavar}|{described.unset}" if described.unset else metavar
