"""`mlx-eagle export`: writes a head in a publisher's layout, for the engines that read that."""

from pathlib import Path

import click

from mlx_eagle.cli.terminal.display import fetch_shown, fetch_target_shown
from mlx_eagle.convert.publisher_layouts import LAYOUTS
from mlx_eagle.heads.config import ALGORITHMS

EXAMPLES = """\b
Examples:
  mlx-eagle export my-head --layout specforge --out for-sglang
  mlx-eagle export my-head --layout speculators --target path/to/target --out for-vllm
"""
WITHOUT_EMBEDDING = (
    "  without embed_tokens: vLLM takes the target's; for mlx-vlm name the target with --target\n"
)


@click.command("export", epilog=EXAMPLES)
@click.argument("head")
@click.option(
    "--layout",
    required=True,
    type=click.Choice(list(LAYOUTS)),
    help="Whose files to write: " + "; ".join(f"{k} for {v}" for k, v in LAYOUTS.items()) + ".",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; it must not exist.",
)
@click.option("--target", help="The head's target, whose embedding a speculators head then has.")
@click.option(
    "--verifier",
    metavar="NAME",
    help="What a speculators head is to call its target; default: the target's own name.",
)
def command(head: str, layout: str, out: Path, target: str | None, verifier: str | None) -> None:
    """Write HEAD, a converted or trained head, in a publisher's layout.

    A head that the layout cannot say is refused, naming what would be lost.
    """
    if verifier is not None and layout != "speculators":
        raise click.UsageError(f"--verifier is for the layout speculators, not {layout}")
    from mlx_eagle.convert.export import export_head
    from mlx_eagle.heads.load import read_head_config

    needed = None if layout == "speculators" else ["config.json"]
    folder = fetch_shown(head)
    made_for = None if target is None else fetch_target_shown(target, needed)
    done = export_head(folder, out, layout, target=made_for, verifier=verifier)
    kind = ALGORITHMS[read_head_config(folder)["algorithm"]]
    click.echo(
        f"{out}: {kind} in the layout of {layout}, for {LAYOUTS[layout]}, "
        f"{done.n_tensors} tensors, {done.dtype}"
    )
    if layout == "speculators" and not done.has_embedding:
        click.echo(WITHOUT_EMBEDDING, nl=False)
