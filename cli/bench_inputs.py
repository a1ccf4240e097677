"""What a benchmark is made of: who takes part, and what is asked."""

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.bench_options import Wanted
from mlx_eagle.cli.options import ModelSource

if TYPE_CHECKING:
    from mlx_eagle.bench.contestants import Contestant
    from mlx_eagle.bench.prompts import BenchPrompt
    from mlx_eagle.bench.specs import Spec
    from mlx_eagle.engine import Engine


def counter(what: str) -> Callable[[int, int], None]:
    """Return what shows on a terminal how far a run is; only between generations.

    The bars that other commands show are drawn by a thread, which would be timed along.
    """

    def show(done: int, total: int) -> None:
        if total and sys.stderr.isatty():
            click.echo(f"\r{what} {done} of {total}", err=True, nl=done == total)

    return show


def choose_prompts(source: ModelSource, wanted: Wanted) -> tuple[str, list["BenchPrompt"]]:
    """Return where the prompts come from, and the prompts."""
    from mlx_eagle.bench.prompts import builtin_prompts, read_prompts, spread
    from mlx_eagle.hub.packaged import is_toy

    if wanted.prompts:
        origin, prompts = str(wanted.prompts), read_prompts(wanted.prompts)
    elif wanted.has_sets:
        from mlx_eagle.bench.datasets import read_datasets

        prompts = read_datasets(wanted.datasets, wanted.data)
        names = ", ".join(dict.fromkeys(prompt.data_set for prompt in prompts))
        origin = f"{names} ({wanted.data or 'the questions of the EAGLE papers'})"
    else:
        is_demo = is_toy(source.model)
        origin = "built in, for the demo pair" if is_demo else "built in"
        prompts = builtin_prompts(is_demo)
    return origin, spread(prompts, wanted.limit)


def load_contestants(
    source: ModelSource, specs: list["Spec"]
) -> tuple["Engine", list["Contestant"]]:
    """Return the engine, and every contestant, plain decoding first."""
    from mlx_eagle.bench.contestants import make_contestant
    from mlx_eagle.cli.generate import load_engine
    from mlx_eagle.cli.terminal.display import fetch_shown, terminal

    console = terminal(stderr=True)
    needs_head = any(spec.needs_head for spec in specs)
    main = source if needs_head else source._replace(head=source.head or "none")
    engine = load_engine(main, console)

    @cache  # several trees of one head are several contestants
    def load_other(engine: "Engine", head: str) -> "Engine":
        return load_engine(source._replace(head=head), console, beside=engine)

    return engine, [make_contestant(spec, engine, load_other, fetch_shown) for spec in specs]
