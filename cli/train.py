"""`mlx-eagle train`: a draft head for a target, made from texts on this machine."""

import functools
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from mlx_eagle.cli.option_types import Gigabytes, PairsText
from mlx_eagle.cli.options import flags_of, taken
from mlx_eagle.cli.train_hosts import training_on
from mlx_eagle.option import options_of
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions

if TYPE_CHECKING:
    from mlx_eagle.training.recipe import Recipe
    from mlx_eagle.training.run.loop import Outcome
    from mlx_eagle.training.run.processes import Processes

EXAMPLES = """\b
Examples:
  mlx-eagle train --model my-model --data conversations.jsonl --out my-head
  mlx-eagle train --model my-model --data questions.jsonl --answers target --out my-head
  mlx-eagle train --model my-fine-tune --data mine.jsonl --from my-head/head-full --out newer-head
"""

KINDS = {"data": DataOptions, "head": HeadOptions, "loop": LoopOptions}
TITLES = {"data": "Texts", "head": "Head", "loop": "Training"}
BOUNDS = re.compile(r"(;| \[|\[) ?[-\d.e<=]*x[-\d.e<>=]*\]$")  # "; x>=1]", or alone "[x>=1]"
INTERRUPTED = 130
NO_CURVES = 'curves of loss and n-alpha need matplotlib: pip install "mlx-eagle[plot]"'


ARGUMENTS = f"{__name__}.arguments"  # in the context: what the command line says


class GroupedCommand(click.Command):
    """A command whose help lists the options of training in groups."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as they were given: other hosts train by the same ones."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: first those without which nothing begins, then group by group."""
        group = {name: kind for kind, owner in KINDS.items() for name in options_of(owner)}
        rows: dict[str, list[tuple[str, str]]] = {"": [], **{kind: [] for kind in KINDS}}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                names, text = record
                rows[group.get(param.name or "", "")].append((names, _without_bounds(text)))
        for kind, records in rows.items():
            with formatter.section(TITLES.get(kind, "Options")):
                formatter.write_dl(records)


def _without_bounds(text: str) -> str:
    """Return the help of an option without its bounds, of which whoever breaks them is told."""
    return BOUNDS.sub(lambda found: "]" if found[1] == ";" else "", text)


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of training, which the command receives as `data`, `head` and `loop`."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        for name, kind in KINDS.items():
            options[name] = kind(**taken(options, kind))
        return function(*args, **options)

    for kind in reversed(KINDS.values()):
        for add in reversed(flags_of(kind)):
            command = add(command)
    return command


def file_option(*names: str, **more: Any) -> Callable[..., Any]:
    """Return an option that takes a file, once for each."""
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option(*names, multiple=True, type=kind, metavar="FILE", **more)


@click.command("train", cls=GroupedCommand, epilog=EXAMPLES)
@click.option(
    *("--model", "-m"),
    required=True,
    metavar="MODEL",
    help="Target: a folder, or owner/name on the hub.",
)
@file_option(
    *("--data", "files"),
    required=True,
    help="JSON Lines of conversations or prompts, or plain text; repeatable.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for all that is made.",
)
@file_option(
    *("--heldout-data", "heldout_files"),
    help="Texts to measure on, instead of a share of the others.",
)
@click.option("--from", "start", metavar="HEAD", help="Go on with this head instead of a new one.")
@click.option(
    "--features-in",
    "features_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for features, which several trainings may share. Default: in --out.",
)
@click.option(
    "--prepare", is_flag=True, help="Only write answers and compute features; train another time."
)
@click.option(
    "--template-args",
    type=PairsText(),
    metavar="NAME=VALUE",
    help="What the chat template is told, several with commas: enable_thinking=false.",
)
@click.option(
    "--adapter-path",
    "adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="LoRA adapter for the target, as mlx-lm makes them.",
)
@click.option(
    "--memory",
    "memory_limit",
    type=Gigabytes(),
    metavar="GB",
    help="Memory that target and training may take. Default: what the device recommends.",
)
@click.option(
    "--head-bits",
    type=click.Choice(["4", "8", "none"]),
    default="4",
    show_default=True,
    help="Bits of the head that is written for decoding.",
)
@click.option(
    "--hosts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Hosts file of mlx.launch: its machines train together, and see the same files.",
)
@recipe_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    out: Path,
    prepare: bool,
    hosts: Path | None,
    **options: Any,
) -> int:
    """Make a draft head for MODEL from texts, on this machine.

    The target's features are computed once; then the head is trained to foresee what the target
    says, and measured on texts that were kept apart. Ctrl-C saves; the same command goes on.
    """
    from mlx_eagle.cli.terminal.training import TrainingDisplay
    from mlx_eagle.training.train_head import train_head

    recipe = _recipe(model, out, options)
    joined: Processes | None = ctx.obj  # of a process that another host has started
    try:
        with (
            training_on(hosts, ctx.meta[ARGUMENTS]) if hosts else nullcontext(joined) as processes,
            TrainingDisplay(out) as display,
        ):
            outcome = train_head(recipe, display.watch, prepare=prepare, processes=processes)
    except KeyboardInterrupt:
        click.echo("stopped; what is complete is kept, and the same command goes on", err=True)
        raise
    if not outcome.is_first:
        return INTERRUPTED if outcome.is_interrupted else 0
    if outcome.is_interrupted:
        _draw(out)
        click.echo(
            f"stopped and saved after update {outcome.update}, in {out / 'checkpoint'}; the same "
            "command goes on",
            err=True,
        )
        return INTERRUPTED
    if prepare and not outcome.was_finished:
        click.echo("answers and features are there; the same command without --prepare trains")
        return 0
    _say_what_came(out, outcome, _what_next(model, options["adapter"], out))
    return 0


def _recipe(model: str, out: Path, options: dict[str, Any]) -> "Recipe":
    """Return what the command line asks for; models on the hub are downloaded."""
    from mlx_eagle.cache.estimate import device_memory
    from mlx_eagle.cli.terminal.display import fetch_shown, fetch_target_shown
    from mlx_eagle.training.recipe import Recipe

    bits, start = options.pop("head_bits"), options.pop("start")
    return Recipe(
        fetch_target_shown(model),
        out=out,
        start=fetch_shown(start) if start else None,
        head_bits=None if bits == "none" else int(bits),
        heldout=options.pop("heldout_files"),
        features=options.pop("features_folder"),
        template_args=options.pop("template_args") or {},
        memory_limit=options.pop("memory_limit") or device_memory(),
        **options,
    )


def _say_what_came(out: Path, outcome: "Outcome", commands: dict[str, str]) -> None:
    """Say how good the head is, where it is, and the commands that use it."""
    from mlx_eagle.cli.terminal.display import table
    from mlx_eagle.cli.terminal.training_figures import shares
    from mlx_eagle.training.write_head import FOR_DECODING, FULL, read_measured

    measured = read_measured(out)
    if outcome.was_finished:
        click.echo("this training had come to its end before: nothing was done", err=True)
    else:
        _draw(out)
    rows = {"weights": f"those of update {measured.get('update')}, nothing was held out"}
    if "n_alpha" in measured:
        rows["weights"] = f"the best ones, of update {measured['update']}"
        rows["n-alpha"] = (
            f"{shares(measured['n_alpha'])} on held-out texts, "
            f"length {measured['acceptance_length']:.2f}"
        )
        rows["counted are"] = (
            "all positions whose token is trained, whether or not the draft vocabulary has the "
            "target's"
        )
    click.echo(f"the head is in {out / FOR_DECODING}, not quantized in {out / FULL}")
    click.echo(table(rows | commands), err=True)


def _what_next(model: str, adapter: Path | None, out: Path) -> dict[str, str]:
    """Return the commands that use a trained head: one of export only where a layout can say it."""
    from mlx_eagle.convert.export import possible_layouts
    from mlx_eagle.training.write_head import FOR_DECODING, FULL

    head, full = out / FOR_DECODING, out / FULL
    put_on = f" --adapter-path {quote(str(adapter))}" if adapter else ""
    rows = {"try it": f"mlx-eagle chat --model {quote(model)}{put_on} --head {quote(str(head))}"}
    layouts = possible_layouts(full) if full.exists() else []
    if layouts:
        first = min(
            layouts, key=lambda name: name == "safeailab"
        )  # engines before the paper's code
        rows["export"] = f"mlx-eagle export {quote(str(full))} --layout {first} --out DIR"
    return rows


def _draw(out: Path) -> None:
    """Draw the curves of a training, or say what they need."""
    from mlx_eagle.training.run.curves import draw_curves
    from mlx_eagle.training.run.folder import RunFolder

    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        click.echo(NO_CURVES, err=True)
        return
    if drawn := draw_curves(RunFolder.open(out)):
        click.echo(f"curves: {', '.join(map(str, drawn))}", err=True)
