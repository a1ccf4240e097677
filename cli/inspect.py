"""`mlx-eagle inspect`: says what a folder with a head or target holds, without loading it."""

import json
from pathlib import Path
from typing import Any

import click

EXAMPLES = """\b
Examples:
  mlx-eagle inspect my-head
  mlx-eagle inspect path/to/target --json
"""


@click.command("inspect", epilog=EXAMPLES)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path, as_json: bool) -> None:
    """Say what FOLDER holds: a head or a target, converted or as published."""
    from mlx_eagle.convert.inspect import describe

    facts = describe(folder)
    click.echo(json.dumps(facts, indent=2) if as_json else _as_text(facts))


def _as_text(facts: dict[str, Any]) -> str:
    """Return a headline and one indented line for each fact; unknown ones are left out."""
    lines = [f"{facts['name']}: {facts['kind']}"]
    for key, value in facts.items():
        nested = key in ("source", "target") and isinstance(value, dict)
        rows = {f"{key}.{part}": item for part, item in value.items()} if nested else {key: value}
        lines += [f"  {k:<28}{_plain(v)}" for k, v in rows.items() if v is not None]
    return "\n".join(_printable(line) for line in [lines[0], *lines[3:]])


def _plain(value: Any) -> str:
    """Return a JSON value as words: lists and objects in a row, large numbers with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _printable(line: str) -> str:
    """Return a line without control characters: it may quote an untrusted file."""
    return "".join(char if char.isprintable() else "?" for char in line)
