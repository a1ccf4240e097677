"""`mlx-eagle heads`: which published heads are known, for all targets or for one."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from mlx_eagle.errors import EagleError

if TYPE_CHECKING:
    from mlx_eagle.hub.known_heads import KnownHead

EXAMPLES = """\b
Examples:
  mlx-eagle heads
  mlx-eagle heads mlx-community/Qwen3-8B-4bit
  mlx-eagle heads --json
"""


@click.command("heads", epilog=EXAMPLES)
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(target: str | None, as_json: bool) -> None:
    """List the published draft heads, or those for TARGET: owner/name on the hub, or a folder.

    The first one that is recommended or usable is what `chat` and `generate` take by themselves.
    With TARGET the last line says whether both fit into this machine's memory; the sizes come from
    the hub, and nothing large is downloaded.
    """
    from mlx_eagle.hub.known_heads import all_heads, default_head, known_heads, when_collected

    groups = all_heads() if target is None else [known_heads(target)]
    if not groups[0]:
        raise EagleError(
            f"no published head is known for {target}: give one that you find or train yourself "
            "with --head owner/name or --head FOLDER; EAGLE-3 trainers are SpecForge and "
            "speculators, and `mlx-eagle convert HEAD --target TARGET --out DIR` converts by hand"
        )
    if as_json:
        facts: dict[str, Any] = {"collected": when_collected()}
        facts["heads"] = [head._asdict() for group in groups for head in group]
        if target is not None:
            default = default_head(target)
            facts["default"] = default.repo if default else None
            facts["memory"] = _fit(target)
        click.echo(json.dumps(facts, indent=2))
        return
    note = (
        f"length: published acceptance length; collected in {when_collected()}, not checked since"
    )
    if sys.stdout.isatty():
        _draw(groups, note)
    else:
        click.echo(f"{_as_text(groups)}\n\n{note}")
    if target is not None:
        click.echo(_fit(target))


def _fit(target: str) -> str:
    """Return whether a target fits here with the head that it gets; a line that quotes names."""
    from mlx_eagle.cli.terminal.display import printable
    from mlx_eagle.hub.fit import foresee

    try:
        return f"{printable(target)} {foresee(target)}"
    except EagleError as error:
        return printable(f"whether it fits into memory is not known: {error}")


def _row(head: "KnownHead") -> tuple[str, ...]:
    """Return what a line of the table says about a head."""
    length = "" if head.acceptance_length is None else f"{head.acceptance_length:.2f}"
    return (head.repo, head.format, head.status, length, "; ".join((head.reason, *head.defects)))


def _as_text(groups: list[list["KnownHead"]]) -> str:
    """Return a paragraph for each target: its names, then a line of columns for each head."""
    rows = [_row(head) for group in groups for head in group]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    paragraphs = []
    for group in groups:
        lines = [", ".join(group[0].targets)]
        for *cells, note in map(_row, group):
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append("  " + "  ".join([*padded, note]))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _draw(groups: list[list["KnownHead"]], note: str) -> None:
    """Write each target on the terminal, and below it each head with what is known, wrapped.

    Names have lines of their own: beside columns they would be broken, and could not be copied.
    """
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False, markup=False, emoji=False)
    for group in groups:
        console.print(", ".join(group[0].targets), style="bold")
        for head in group:
            name, layout, status, length, remark = _row(head)
            length = f"acceptance length {length}" if length else ""
            facts = " · ".join(filter(None, (status, layout, length, remark)))
            console.print(f"  {name}")
            console.print(Padding(facts, (0, 0, 0, 6)), style="dim")
        console.print()
    console.print(note, style="dim")
