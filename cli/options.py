"""Options that several commands share, as decorators, and the `Settings` that they fill.

`/set` in the chat changes the same settings through the same parsers, so that a value that one
place accepts is accepted by the other. Nothing heavy is imported here.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number in a range: infinity and not-a-number are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number, or fail with the range in the message."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Tree(NamedTuple):
    """The shape of the draft tree: levels, children per node, drafted nodes."""

    depth: int
    width: int
    nodes: int


# The order is that in which /set lists them.
PARSERS: dict[str, click.ParamType[Any]] = {
    "max_tokens": click.IntRange(min=1),
    "temperature": Number(min=0),
    "top_p": Number(min=0, max=1, min_open=True),
    "top_k": click.IntRange(min=0),
    "min_p": Number(min=0, max=1),
    "seed": click.IntRange(min=0, max=2**63 - 1),
    "speculate": click.BOOL,
}
SIZE = click.IntRange(min=1, max=1024)


@dataclass(frozen=True)
class Settings:
    """How answers are generated; the defaults are those of the library."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    speculate: bool = True
    tree: Tree | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def engine_options(self) -> dict[str, Any]:
        """Return the keyword arguments for the engine."""
        from mlx_eagle.tree import TreeShape

        return vars(self) | {"tree": TreeShape(*self.tree) if self.tree else None}

    def with_text(self, name: str, words: list[str]) -> "Settings":
        """Return a copy in which one setting has the value that a user typed.

        Args:
            name: a key of PARSERS, or "tree".
            words: the value; a tree has up to three, or is "auto".

        Raises:
            click.UsageError: if the value is not valid; its message says why.
        """
        if name == "tree":
            sizes = [] if words == ["auto"] else [SIZE.convert(w, None, None) for w in words]
            if len(sizes) > 3:
                raise click.UsageError("a tree is: depth [width [nodes]], or auto")
            return replace(self, tree=complete_tree(*sizes))
        if len(words) != 1:
            raise click.UsageError(f"{name} takes one value")
        return replace(self, **{name: PARSERS[name].convert(words[0], None, None)})


class ModelSource(NamedTuple):
    """Which model to load, as the command line gave it."""

    model: str | None
    head: str | None
    dtype: str | None


def complete_tree(
    depth: int | None = None, width: int | None = None, nodes: int | None = None
) -> Tree | None:
    """Complete a tree of which some sizes are given; None leaves the choice to the planner.

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
    return Tree(depth, width, nodes)


def model_options(function: F) -> F:
    """Add --model, --head and --dtype, which the command receives as `source`."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        source = ModelSource(*(options.pop(name) for name in ModelSource._fields))
        if source.head and not source.model:
            raise click.UsageError("--head needs --model: the demo pair has its own head")
        return function(*args, source=source, **options)

    return _with_options(command, MODEL_OPTIONS)


def settings_options(max_tokens: int) -> Callable[[F], F]:
    """Add the sampling and tree options, which the command receives as `settings`.

    Args:
        max_tokens: the default length limit, in tokens.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **options: Any) -> Any:
            sizes = [options.pop(name) for name in Tree._fields]
            settings = Settings(
                tree=complete_tree(*sizes),
                **{name: options.pop(name) for name in vars(Settings()) if name in options},
            )
            if settings.tree and not settings.speculate:
                raise click.UsageError("--no-speculate drafts nothing: leave out the tree")
            return function(*args, settings=settings, **options)

        length = click.option(
            *("--max-tokens", "-n"),
            type=PARSERS["max_tokens"],
            default=max_tokens,
            show_default=True,
            help="Longest answer, in tokens.",
        )
        return _with_options(command, [length, *SAMPLING_OPTIONS, *TREE_OPTIONS])

    return decorate


def _with_options(command: Any, options: list[Callable[[Any], Any]]) -> Any:
    """Apply option decorators so that help lists them in their order."""
    for option in reversed(options):
        command = option(command)
    return command


MODEL_OPTIONS = [
    click.option(
        *("--model", "-m"),
        metavar="MODEL",
        help="Target: a folder, or owner/name on the hub. Default: the demo pair.",
    ),
    click.option("--head", metavar="HEAD", help="Converted draft head: a folder or a hub name."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Cast the parts that are not quantized.",
    ),
]

SAMPLING_OPTIONS = [
    click.option(
        *("--temp", "temperature"),
        type=PARSERS["temperature"],
        default=0.0,
        show_default=True,
        help="Temperature; 0 always takes the likeliest token.",
    ),
    click.option(
        "--top-p", type=PARSERS["top_p"], default=1.0, help="Sample from this share; 1: off."
    ),
    click.option("--top-k", type=PARSERS["top_k"], default=0, help="Sample from K tokens; 0: off."),
    click.option(
        "--min-p",
        type=PARSERS["min_p"],
        default=0.0,
        help="Drop tokens below this share of the likeliest; 0: off.",
    ),
    click.option(
        "--seed",
        type=PARSERS["seed"],
        default=0,
        show_default=True,
        help="The same seed gives the same text.",
    ),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the answer before this text; may be repeated.",
    ),
]

TREE_OPTIONS = [
    click.option(
        "--speculate/--no-speculate", default=True, help="Draft with the head, or decode plainly."
    ),
    click.option("--depth", type=SIZE, help="Levels of the draft tree; alone: a chain."),
    click.option("--width", type=SIZE, help="Children per node of the draft tree."),
    click.option("--nodes", type=SIZE, help="Drafted tokens to verify per round."),
]
