"""`mlx-eagle convert`: ports a PyTorch head, or a Hugging Face target, to an MLX folder."""

from pathlib import Path
from typing import Any

import click

EXAMPLES = """\b
Examples:
  mlx-eagle convert path/to/llama --out llama-4bit
  mlx-eagle convert path/to/eagle3-head --target llama-4bit --out my-head
"""
PRECISION = click.Choice(["4", "8", "none"])


@click.command("convert", epilog=EXAMPLES)
@click.argument("source")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; it must not exist.",
)
@click.option("--target", help="The target of a head: SOURCE is a head if this is given.")
@click.option("--bits", type=PRECISION, help="Bits per weight of a target; default 4.")
@click.option("--head-bits", type=PRECISION, help="Bits per weight of a head; default 4.")
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="Weights that share a scale.",
)
def command(
    source: str,
    out: Path,
    target: str | None,
    bits: str | None,
    head_bits: str | None,
    group_size: str,
) -> None:
    """Convert SOURCE, a draft head or a target: a folder, or owner/name on the hub."""
    if target is not None and bits is not None:
        raise click.UsageError("--bits is for targets; the precision of a head is --head-bits")
    if target is None and head_bits is not None:
        raise click.UsageError("--head-bits is for heads, which need --target as well")
    options = {"bits": _bits(head_bits if target else bits), "group_size": int(group_size)}
    if target is None:
        click.echo(_convert_target(source, out, options))
    else:
        click.echo(_convert_head(source, target, out, options))


def _bits(precision: str | None) -> int | None:
    """Return the bits that an option asks for; None for no quantization."""
    return None if precision == "none" else int(precision or "4")


def _convert_head(source: str, target: str, out: Path, options: dict[str, Any]) -> str:
    """Convert a head and return the summary."""
    from mlx_eagle.convert.heads import convert_head

    config = convert_head(_fetch(source), _fetch(target), out, **options)
    taps = ", ".join(str(tap) for tap in config["taps"])
    return (
        f"{out}: EAGLE-3 head for {config['target']['name']}, {_precision(options)}, taps {taps}, "
        f"drafts from {config['draft_vocab_size']} of {config['target_vocab_size']} tokens"
    )


def _convert_target(source: str, out: Path, options: dict[str, Any]) -> str:
    """Convert a target and return the summary."""
    from mlx_eagle.convert.inspect import describe
    from mlx_eagle.convert.targets import convert_target

    convert_target(_fetch(source), out, **options)
    facts = describe(out)
    return (
        f"{out}: {facts['model_type']} target, {_precision(options)}, "
        f"{facts['num_hidden_layers']} layers, {facts['parameters']:,} parameters"
    )


def _fetch(name: str) -> Path:
    """Return the folder of a model; a download from the hub shows its progress on stderr."""
    from mlx_eagle.cli.display import Loading, terminal
    from mlx_eagle.hub import fetch

    with Loading(terminal(stderr=True)) as loading:
        return fetch(name, progress=loading.update)


def _precision(options: dict[str, Any]) -> str:
    """Return how weights were written, in words."""
    return "not quantized" if options["bits"] is None else f"{options['bits']}-bit"
