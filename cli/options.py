"""Options that several commands share, as decorators: which model, and how answers are generated.

Nothing heavy is imported here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import click

from mlx_eagle.cli.settings import (
    NOTHING,
    PARSERS,
    SIZE,
    Number,
    Settings,
    Tree,
    complete_tree,
)

F = TypeVar("F", bound=Callable[..., Any])


class Bits(click.Choice[str]):
    """How many bits a number of the cache takes: 4 or 8."""

    def __init__(self) -> None:
        super().__init__(["4", "8"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number."""
        return int(super().convert(str(value), param, ctx))


# What is fixed when a model is loaded; the names are those of `ModelSource`.
SOURCE_PARSERS: dict[str, click.ParamType[Any]] = {
    "kv_bits": Bits(),
    "head_window": click.IntRange(min=0),
    "max_context": click.IntRange(min=2),
    "memory": Number(min=0, min_open=True),
}


class ModelSource(NamedTuple):
    """Which model to load and how, as the command line gave it; `memory` is in GB."""

    model: str | None
    head: str | None
    dtype: str | None
    calibrate: bool = True
    kv_bits: int | None = None
    head_window: int | None = None
    max_context: int | None = None
    memory: float | None = None

    def load_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `mlx_eagle.load`, but for model and head."""
        options = self._asdict()
        memory = options.pop("memory")
        del options["model"], options["head"]
        return options | {"memory_limit": None if memory is None else int(1e9 * memory)}

    def for_settings(self, settings: Settings) -> "ModelSource":
        """Return the same, without what is needless for these settings.

        That is a known head to download where nothing will be drafted, and measuring the machine
        where no planner will be asked.
        """
        is_planned = settings.speculate and settings.tree is None
        source = self._replace(calibrate=self.calibrate and is_planned)
        is_needless = self.model is not None and not settings.speculate
        return source._replace(head=self.head or "none") if is_needless else source

    def with_text(self, name: str, text: str) -> "ModelSource":
        """Return a copy in which one of SOURCE_PARSERS has the value that a user typed.

        Raises:
            click.UsageError: if the value is not valid; its message says why.
        """
        is_default = text == "auto" or (name == "kv_bits" and text in NOTHING)
        value = None if is_default else SOURCE_PARSERS[name].convert(text, None, None)
        changes: dict[str, Any] = {name: value}
        return self._replace(**changes)

    def text(self, name: str) -> str:
        """Return one of SOURCE_PARSERS as a user would type it."""
        value = getattr(self, name)
        if value is None:
            return "none" if name == "kv_bits" else "auto"
        return f"{value:g}" if isinstance(value, float) else str(value)


def model_options(function: F) -> F:
    """Add --model and what else a `ModelSource` holds, which becomes the command's `source`."""

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
            if settings.json_schema is not None and settings.regex is not None:
                raise click.UsageError("an answer follows --json-schema or --regex: give one")
            has_grammar = settings.json_schema is not None or settings.regex is not None
            if has_grammar and settings.ignore_eos:
                raise click.UsageError("an answer under a grammar ends with it: no --ignore-eos")
            return function(*args, settings=settings, **options)

        length = _number(
            "-n", "--max-tokens", default=max_tokens, help="Longest answer, in tokens."
        )
        return _with_options(
            cast(F, command), [length, *SAMPLING_OPTIONS, *CONTENT_OPTIONS, *TREE_OPTIONS]
        )

    return decorate


def _with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """Apply option decorators so that help lists them in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def _number(*names: str, help: str, default: Any = None) -> Callable[[F], F]:
    """Return an option whose type is that of its setting, or a size."""
    name = names[-1].lstrip("-").replace("-", "_")
    parser = {**SOURCE_PARSERS, **PARSERS}.get(name, SIZE)
    return click.option(
        *names,
        metavar="4|8" if isinstance(parser, Bits) else "N",
        type=parser,
        default=default,
        show_default=default is not None,
        help=help,
    )


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
    _number("--kv-bits", help="Bits of a number in the cache. Default: the model's own precision."),
    _number(
        "--head-window",
        help="Newest tokens that the head attends to; 0: all. Default: chosen for the head.",
    ),
    _number(
        "--max-context",
        help="Tokens that a conversation may have. Default: what the model was made for.",
    ),
    click.option(
        "--memory",
        metavar="GB",
        type=SOURCE_PARSERS["memory"],
        help="Memory that MLX may use. Default: what the device recommends.",
    ),
]

SAMPLING_OPTIONS = [
    _number(
        *("--temp", "temperature"), default=0.0, help="Temperature; 0 takes the likeliest token."
    ),
    _number("--top-p", default=1.0, help="Sample from the likeliest tokens of this share."),
    _number("--top-k", default=0, help="Sample from the N likeliest tokens; 0: from all."),
    _number("--min-p", default=0.0, help="Drop tokens below this share of the likeliest."),
    _number("--seed", default=0, help="The same seed gives the same text."),
    _number("--repetition-penalty", help="Divide the logits of recent tokens by N, e.g. 1.1."),
    _number("--presence-penalty", help="Subtract N from the logits of recent tokens."),
    _number("--frequency-penalty", help="Subtract N for every recent use of a token."),
]

CONTENT_OPTIONS = [
    click.option(
        "--json-schema",
        metavar="FILE",
        type=PARSERS["json_schema"],
        help="The answer is JSON that the schema in FILE allows.",
    ),
    click.option("--regex", metavar="PATTERN", help="The answer matches PATTERN as a whole."),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; repeatable."
    ),
    click.option(
        "--overflow",
        type=PARSERS["overflow"],
        default="refuse",
        show_default=True,
        help="Refuse what does not fit into the context, or leave out the oldest turns.",
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
