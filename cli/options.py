"""Options that several commands share, as decorators, and the `Settings` that they fill.

`/set` in the chat changes the same settings through the same parsers, so that a value that one
place accepts is accepted by the other. Nothing heavy is imported here.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

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
    "seed": click.IntRange(min=0, max=2**32 - 1),
    "speculate": click.BOOL,
}
SIZE: click.ParamType[Any] = click.IntRange(min=1, max=1024)


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
    calibrate: bool = True

    def for_settings(self, settings: Settings) -> "ModelSource":
        """Return the same, without what is needless for these settings.

        That is a known head to download where nothing will be drafted, and measuring the machine
        where no planner will be asked.
        """
        is_planned = settings.speculate and settings.tree is None
        source = self._replace(calibrate=self.calibrate and is_planned)
        is_needless = self.model is not None and not settings.speculate
        return source._replace(head=self.head or "none") if is_needless else source


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


def model_options(function: F) -> F:
    """Add --model, --head, --dtype and --calibrate, which become the command's `source`."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        source = ModelSource(*(options.pop(name) for name in ModelSource._fields))
        return function(*args, source=source, **options)

    return _with_options(cast(F, command), MODEL_OPTIONS)


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

        length = _number(
            "-n", "--max-tokens", default=max_tokens, help="Longest answer, in tokens."
        )
        return _with_options(cast(F, command), [length, *SAMPLING_OPTIONS, *TREE_OPTIONS])

    return decorate


def _with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
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
    click.option(
        "--head",
        metavar="HEAD",
        help="Draft head: a folder, or owner/name on the hub; `none` for no head. Default: the one "
        "that `mlx-eagle heads MODEL` lists first.",
    ),
    click.option(
        "--dtype",
        metavar="TYPE",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Cast what is not quantized: float32, float16 or bfloat16.",
    ),
    click.option(
        "--calibrate/--no-calibrate",
        default=True,
        help="Measure this machine before the first chat with a pair, for a few seconds, so that "
        "drafting never costs more than it gives.",
    ),
]


def _number(*names: str, help: str, default: Any = None) -> Callable[[F], F]:
    """Return an option whose type is that of its setting, or a size."""
    parser = PARSERS.get(names[-1].lstrip("-").replace("-", "_"), SIZE)
    return click.option(
        *names, metavar="N", type=parser, default=default, show_default=True, help=help
    )


SAMPLING_OPTIONS = [
    _number(
        *("--temp", "temperature"), default=0.0, help="Temperature; 0 takes the likeliest token."
    ),
    _number("--top-p", default=1.0, help="Sample from the likeliest tokens of this share."),
    _number("--top-k", default=0, help="Sample from the N likeliest tokens; 0: from all."),
    _number("--min-p", default=0.0, help="Drop tokens below this share of the likeliest."),
    _number("--seed", default=0, help="The same seed gives the same text."),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; repeatable."
    ),
]

TREE_OPTIONS = [
    click.option(
        "--speculate/--no-speculate", default=True, help="Draft with the head, or decode plainly."
    ),
    _number("--depth", help="Levels of the draft tree; alone: a chain."),
    _number("--width", help="Children per node of the draft tree."),
    _number("--nodes", help="Drafted tokens to verify per round."),
]
