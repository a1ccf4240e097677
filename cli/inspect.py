"""`mlx-eagle inspect`: says what a folder with a head or target holds, without loading it."""

import json
import os
from typing import Any

import click

from mlx_eagle.cli.terminal.display import fetch_shown, fetch_target_shown

EXAMPLES = """\b
Examples:
  mlx-eagle inspect my-head
  mlx-eagle inspect owner/eagle3-head --target path/to/target
  mlx-eagle inspect path/to/target --json
  mlx-eagle inspect mlx-community/Qwen3-8B-4bit
"""
HIDDEN = ("fit", "name", "kind", "role", "converted", "origins", "doubts", "format_version")


@click.command("inspect", epilog=EXAMPLES)
@click.argument("source")
@click.option("--target", help="The target that a head is for: resolves its facts, checks the fit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(source: str, target: str | None, as_json: bool) -> None:
    """Say what SOURCE holds, a folder or owner/name on the hub.

    It is a head or a target, converted or as published. Each fact about a head comes with its
    origin: a file, the shape of a tensor, a default or a guess. Of a target comes whether it fits
    into this machine's memory; one on the hub is not downloaded for that.
    """
    from mlx_eagle.convert.describe import describe_folder

    facts = _from_afar(source)
    if facts is None:
        folder = fetch_shown(source)
        made_for = fetch_target_shown(target, ["config.json"]) if target else None
        facts = describe_folder(folder, made_for)
    if facts["role"] == "target":
        facts |= _fit(source)
    click.echo(json.dumps(facts, indent=2) if as_json else _as_text(facts))


def _from_afar(source: str) -> dict[str, Any] | None:
    """Return the facts about a target on the hub that is not here; None for anything else."""
    from mlx_eagle.convert.describe import describe_config
    from mlx_eagle.files.json_files import read_json
    from mlx_eagle.hub.download import list_files
    from mlx_eagle.hub.fit import weight_bytes

    if os.path.isdir(os.path.expanduser(source)):
        return None
    files = list_files(source)
    if not files.missing or "config.json" not in files.sizes:
        return None
    config = read_json(fetch_shown(source, ["config.json"]) / "config.json")
    return describe_config(config, source, weight_bytes(files.sizes))


def _fit(source: str) -> dict[str, Any]:
    """Return whether a target, the head that is known for it and a conversation fit here."""
    from mlx_eagle.hub.fit import foresee

    fit = foresee(source)
    return {"memory": str(fit), "fit": fit._asdict() | {"fits": fit.missing <= 0}}


def _as_text(facts: dict[str, Any]) -> str:
    """Return a headline and one indented line for each fact; unknown ones are left out."""
    lines = [f"{facts['name']}: {facts['kind']}"]
    origins = facts.get("origins") or {}
    for key, value in facts.items():
        if (value is None and key not in origins) or value == [] or key in HIDDEN:
            continue
        nested = key in ("source", "target", "widths", "lifted") and isinstance(value, dict)
        rows = {f"{key}.{part}": item for part, item in value.items()} if nested else {key: value}
        for name, item in rows.items():
            origin = f"  ({origins[key]})" if key in origins else ""
            lines.append(f"  {name:<27} {_plain(item)}{origin}")
    for name, doubt in (facts.get("doubts") or {}).items():
        lines.append(f"  in doubt: {name}, or {_plain(doubt)}")
    return "\n".join(_printable(line) for line in lines)


def _plain(value: Any) -> str:
    """Return a JSON value as words: lists and objects in a row, large numbers with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(item) for item in value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _printable(line: str) -> str:
    """Return a line without control characters: it may quote an untrusted file."""
    return "".join(char if char.isprintable() else "?" for char in line)
