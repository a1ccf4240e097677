"""How answers are generated: the `Settings` that the command line fills and `/set` changes.

Both go through the same parsers, so that a value that one place accepts is accepted by the other.
Nothing heavy is imported here.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import click

NOTHING = ("none", "off")  # what takes a setting back that need not be there


class Number(click.FloatRange):
    """A finite number in a range: infinity and not-a-number are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number, or fail with the range in the message."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Temperature(Number):
    """A temperature: 0, or as cold as the library can draw."""

    COLDEST = 1e-6  # as in sampling.py, which is not loaded for a command line

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a temperature, or fail with what it may be."""
        number = super().convert(value, param, ctx)
        if 0 < number < self.COLDEST:
            self.fail(f"{value} is neither 0 nor {self.COLDEST:g} or more.", param, ctx)
        return number


class Schema(NamedTuple):
    """A JSON schema, and the file it was read from."""

    file: str
    text: str


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


class Tree(NamedTuple):
    """The shape of the draft tree: levels, children per node, drafted nodes."""

    depth: int
    width: int
    nodes: int


# The order is that in which /set lists them.
PARSERS: dict[str, click.ParamType[Any]] = {
    "max_tokens": click.IntRange(min=1),
    "temperature": Temperature(min=0),
    "top_p": Number(min=0, max=1, min_open=True),
    "top_k": click.IntRange(min=0),
    "min_p": Number(min=0, max=1),
    "seed": click.IntRange(min=0, max=2**32 - 1),
    "repetition_penalty": Number(min=0, min_open=True),
    "presence_penalty": Number(min=-2, max=2),
    "frequency_penalty": Number(min=-2, max=2),
    "json_schema": SchemaFile(),
    "regex": click.STRING,
    "overflow": click.Choice(["refuse", "truncate"]),
    "speculate": click.BOOL,
}
SIZE: click.ParamType[Any] = click.IntRange(min=1, max=1024)
# An answer follows one of these: either takes the other one back.
EXCLUSIVE = {"json_schema": "regex", "regex": "json_schema"}


@dataclass(frozen=True)
class Settings:
    """How answers are generated; the defaults are those of the library."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    json_schema: Schema | None = None
    regex: str | None = None
    overflow: str = "refuse"
    speculate: bool = True
    tree: Tree | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def engine_options(self) -> dict[str, Any]:
        """Return the keyword arguments for the engine."""
        from mlx_eagle.tree import TreeShape

        return vars(self) | {
            "tree": TreeShape(*self.tree) if self.tree else None,
            "json_schema": self.json_schema.text if self.json_schema else None,
        }

    def with_text(self, name: str, text: str) -> "Settings":
        """Return a copy in which one setting has the value that a user typed.

        Args:
            name: a key of PARSERS, or "tree".
            text: the value; a tree has up to three sizes, or is "auto". "none" and "off" take
                back what need not be there.

        Raises:
            click.UsageError: if the value is not valid; its message says why.
        """
        if name == "tree":
            words = [] if text == "auto" else text.split()
            if len(words) > 3:
                raise click.UsageError("a tree is: depth [width [nodes]], or auto")
            return replace(self, tree=complete_tree(*(SIZE.convert(w, None, None) for w in words)))
        changes: dict[str, Any] = {name: None}
        if text not in NOTHING or vars(Settings())[name] is not None:
            changes[name] = PARSERS[name].convert(text, None, None)
        if name in EXCLUSIVE and changes[name] is not None:
            changes[EXCLUSIVE[name]] = None
        return replace(self, **changes)

    def text(self, name: str) -> str:
        """Return the value of a setting as a user would type it."""
        value = vars(self)[name]
        if name == "tree":
            return " ".join(map(str, value)) if value else "auto"
        if isinstance(value, Schema):
            return value.file
        if value is None:
            return "none"
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def complete_tree(
    depth: int | None = None, width: int | None = None, nodes: int | None = None
) -> Tree | None:
    """Complete a tree of which some sizes are given; None leaves the choice to the engine.

    Depth alone is a chain. Depth and width keep width nodes per level. Depth and nodes take the
    smallest width that has room: (4, None, 8) becomes (4, 2, 8).

    Raises:
        click.UsageError: if the sizes contradict each other or depth is missing.
    """
    if depth is None:
        if width is None and nodes is None:
            return None
        raise click.UsageError("a tree needs its depth: --depth 4 --width 2 --nodes 8")
    if width is None:
        width = -(-(nodes or depth) // depth)
    if nodes is None:
        nodes = depth * width
    room = width + (depth - 1) * width**2
    if not depth <= nodes <= room:
        raise click.UsageError(
            f"a tree of depth {depth} and width {width} has {depth} to {room} nodes, not {nodes}"
        )
    from mlx_eagle.tree import TreeShape

    try:
        TreeShape(depth, width, nodes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Tree(depth, width, nodes)
