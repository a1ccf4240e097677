"""`mlx-eagle train`: a draft head for a target, made from texts on this machine."""

import functools
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import click

from mlx_eagle.cli.options import flags_of, taken
from mlx_eagle.cli.terminal.display import fetch_shown
from mlx_eagle.cli.terminal.training import TrainingDisplay
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions

EXAMPLES = """\b
Examples:
  mlx-eagle train --model my-model --data conversations.jsonl --out my-head
  mlx-eagle train --model my-model --data questions.jsonl --answers target --out my-head
  mlx-eagle train --model my-fine-tune --data mine.jsonl --from my-head/head-full --out newer-head
"""

KINDS = {"data": DataOptions, "head": HeadOptions, "loop": LoopOptions}


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


@click.command("train", epilog=EXAMPLES)
@click.option("--model", "-m", required=True, help="Target: a folder, or owner/name on the hub.")
@click.option(
    *("--data", "files"),
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Texts: JSON Lines of conversations or prompts, or plain text; once for each file.",
)
@click.option(
    *("--heldout-data", "heldout_files"),
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Texts to measure on, instead of a share of the others.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for everything that is made; the same command again goes on with it.",
)
@click.option(
    "--features-in",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for the target's features, which several trainings may share. Default: in --out.",
)
@click.option(
    *("--from", "start"), metavar="HEAD", help="Go on with this head: a folder, or owner/name."
)
@click.option(
    "--head-bits",
    type=click.Choice(["4", "8", "none"]),
    default="4",
    show_default=True,
    help="Bits of the head that is written for decoding.",
)
@click.option(
    "--adapter-path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="LoRA adapter for the target, as mlx-lm makes them.",
)
@click.option(
    "--prepare",
    is_flag=True,
    help="Write answers and compute features only; the same command without it goes on.",
)
@recipe_options
def command(
    model: str,
    files: tuple[Path, ...],
    heldout_files: tuple[Path, ...],
    out: Path,
    features_in: Path | None,
    start: str | None,
    head_bits: str,
    adapter_path: Path | None,
    prepare: bool,
    **options: Any,
) -> int:
    """Make a draft head for MODEL from texts, on this machine.

    The head learns to foresee what the target, run as it is run here, says. The target's features
    are computed once; then the head is trained and measured on texts that were kept apart. Ctrl-C
    saves; the same command goes on.
    """
    from mlx_eagle.training.train_head import Recipe, train_head

    recipe = Recipe(
        fetch_shown(model),
        files,
        out,
        heldout_files,
        features_in,
        start=fetch_shown(start) if start else None,
        head_bits=None if head_bits == "none" else int(head_bits),
        adapter=adapter_path,
        **options,
    )
    with TrainingDisplay() as display:
        outcome = train_head(recipe, display.watch, prepare=prepare)
    if outcome.is_interrupted:
        click.echo(
            f"stopped and saved after update {outcome.update}; the same command goes on", err=True
        )
        return 130
    if prepare or not outcome.is_first:
        return 0
    click.echo(f"the head is in {out / 'head'}")
    click.echo(
        f"try it: mlx-eagle chat --model {quote(model)} --head {quote(str(out / 'head'))}", err=True
    )
    return 0
