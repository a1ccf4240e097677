"""`mlx-eagle selftest`: is everything right on this machine, and what does it cost here."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.options import ModelSource, model_options

if TYPE_CHECKING:
    from mlx_eagle.selftest.run import SelfTest

EXAMPLES = """\b
Examples:
  mlx-eagle selftest
  mlx-eagle selftest --model my-model --head my-head --out report
"""
PROMPTS = 1  # of every category


@click.command("selftest", epilog=EXAMPLES)
@model_options
@click.option(
    *("--out", "-o"),
    type=click.Path(path_type=Path),
    default=Path("mlx-eagle-selftest"),
    show_default=True,
    metavar="DIR",
    help="Folder for selftest.json and selftest.md; it must not exist.",
)
@click.option("--tokens", "-n", type=click.IntRange(4), default=48, help="Tokens of every text.")
def command(source: ModelSource, out: Path, tokens: int) -> int:
    """Test a pair on this machine: texts, caches, memory, costs, speed; for reports of problems.

    Every difference from plain decoding is classified: a near-tie, which rounding explains, or a
    bug. With the toy pair (`--model demo`) it took a minute on a Linux CPU; nothing is sent
    anywhere. The exit status is 1 if something is wrong.
    """
    from mlx_eagle.files.atomic import new_folder
    from mlx_eagle.selftest.report import to_json, to_markdown, verdict

    with new_folder(out) as folder:
        found = run_shown(source, tokens)
        (folder / "selftest.json").write_text(to_json(found) + "\n", encoding="utf-8")
        (folder / "selftest.md").write_text(to_markdown(found), encoding="utf-8")
    click.echo(f"{verdict(found)}\nattach {out / 'selftest.md'} and selftest.json to a report")
    return 1 if found.faults else 0


def run_shown(source: ModelSource, tokens: int) -> "SelfTest":
    """Load the pair and test it; how far it is shows on stderr."""
    from mlx_eagle.bench.prompts import builtin_prompts, spread
    from mlx_eagle.cli.generate import load_engine
    from mlx_eagle.cli.terminal.display import terminal
    from mlx_eagle.hub.packaged import is_toy
    from mlx_eagle.selftest.run import Sizes, run_selftest

    if source.loading.hosts is not None:
        raise click.UsageError("selftest tests one machine; mlx-eagle doctor --hosts looks at more")
    engine = load_engine(source.with_loading(calibrate=False), terminal(stderr=True))
    prompts = spread(builtin_prompts(demo=is_toy(source.model)), PROMPTS)
    return run_selftest(engine, prompts, show, Sizes(tokens))


def show(phase: str, done: int, total: int) -> None:
    """Say on a terminal how far it is; other bars are drawn by a thread, which would be timed."""
    if sys.stderr.isatty():
        click.echo(f"\r{phase}: {done} of {total}   ", err=True, nl=done == total)
