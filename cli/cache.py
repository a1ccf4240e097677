"""`mlx-eagle cache`: the rows of prompts that are kept on disk, listed and removed."""

import json

import click


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(clear: bool, as_json: bool) -> None:
    """List the rows of prompts that `serve`, and `--cache-disk` elsewhere, keep on disk.

    They are computed from what was said, and are as private.
    """
    from mlx_eagle.session.rows_folder import (
        clear_folder,
        is_written,
        list_folder,
        prefix_folder,
    )

    folder = prefix_folder()
    if clear:
        removed = clear_folder(folder)
        click.echo(json.dumps({"removed": removed}) if as_json else f"removed {_shown(removed)}")
        if is_written(folder):
            click.echo(
                "A process that runs still has rows in memory and will write again: end it, or "
                "clear a server's with POST /v1/cache/clear",
                err=True,
            )
        return
    found = list_folder(folder)
    if as_json:
        each = {name: {"files": n, "bytes": size} for name, (n, size) in found.items()}
        click.echo(json.dumps({"folder": str(folder), "prefixes": each}))
        return
    for name, (n_files, n_bytes) in sorted(found.items()):
        click.echo(f"{name}  {n_files} files  {_shown(n_bytes)}")
    total = sum(size for _, size in found.values())
    click.echo(f"{_shown(total)} in {folder}")


def _shown(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
