"""`mlx-eagle calibrate`: what rounds cost on this machine, measured now and kept."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.options import ModelSource, model_options

if TYPE_CHECKING:
    from mlx_eagle.calibration.kernels import Found
    from mlx_eagle.calibration.planners import Calibration
    from mlx_eagle.engine import Engine
    from mlx_eagle.planner.cost_model import Costs

EXAMPLES = """\b
Examples:
  mlx-eagle calibrate
  mlx-eagle calibrate --model my-model --head my-head
  mlx-eagle calibrate --model my-model --head my-head --plot costs.png --json > costs.json
"""
HEADS = (0.5, 0.6, 0.7, 0.8, 0.9)  # acceptance of every drafted token
BAR = 40  # characters of the longest bar


@click.command("calibrate", epilog=EXAMPLES)
@model_options
@click.option(
    *("--plot", "-o"),
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the curve into a file (needs matplotlib).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the seconds as JSON.")
def command(source: ModelSource, plot: Path | None, as_json: bool) -> None:
    """Measure what verifying and drafting cost on this machine, with this target and head.

    The first chat with a pair does it by itself. Do it again after the machine has changed, or
    was busy at the time; close other programs first.
    """
    from mlx_eagle.cli.generate import load_engine
    from mlx_eagle.cli.terminal.display import Loading, terminal

    if plot is not None:
        check_plot(plot)
    console = terminal(stderr=True)
    engine = load_engine(source.with_loading(calibrate=False), console)
    with Loading(console, "calibrate") as loading:
        found = engine.calibrate(lambda done, total: loading.update("calibrate", done, total))
    if as_json:
        click.echo(json.dumps(found.costs.to_dict()))
    else:
        click.echo(report(engine, found))
    if plot is not None:
        _plot(found.costs, plot)


def check_plot(file: Path) -> None:
    """Refuse a picture that cannot be drawn, before anything is measured.

    Raises:
        click.UsageError: if it is no PNG, or its folder does not exist.
        EagleError: if matplotlib is missing.
    """
    from mlx_eagle.bench.plots import require_matplotlib

    if file.suffix != ".png":
        raise click.UsageError(f"--plot {file}: pictures are PNG files; name it {file.stem}.png")
    if not file.absolute().parent.is_dir():
        raise click.UsageError(f"--plot {file}: there is no folder {file.parent}")
    require_matplotlib()


def report(engine: "Engine", found: "Calibration") -> str:
    """Return the costs as text: a bar per number of rows, and what they mean for heads."""
    from mlx_eagle.cli.terminal.display import table

    costs, info = found.costs, engine.info
    at = dict(zip(costs.contexts, costs.plain, strict=True))
    plain = ", ".join(f"{1e3 * s:.1f} ms at {n} cached tokens" for n, s in at.items())
    about = {
        "target": f"{info.target} · {info.target_precision}",
        "head": f"{info.head} · {info.head_precision}",
        "device": info.device,
        "costs": found.source,
        "kernels": engine.kernels.status if engine.kernels else "off",
        "plain token": plain,
        "waiting": f"{1e3 * costs.sync:.2f} ms to read something back",
    }
    parts = [table(about), curve(costs), gains(costs, engine.planners.max_depth)]
    if engine.planners.ranks is not None:
        parts.append(ranks(engine.planners.ranks))
    tried = engine.kernels.found if engine.kernels else None
    return "\n\n".join([*parts, kernels(tried)] if tried is not None else parts)


def ranks(accuracies: list[list[float]]) -> str:
    """Return how often each rank of Medusa heads is right, a line per depth."""
    lines = ["  how often the 1st, 2nd, ... token of a depth is right (--tree static:N):"]
    for depth, shares in enumerate(accuracies, start=1):
        lines.append(f"  {depth:>4}  {' '.join(f'{share:.2f}' for share in shares)}")
    return "\n".join(lines)


def kernels(found: "Found") -> str:
    """Return what was found of few-row kernels, a line per shape, then of whole forward passes."""
    lines = ["  few-row kernels, their time over that of MLX's, by rows:"]
    for what, verdicts in found.table.lines:
        lines.append(f"  {what}: {', '.join(verdicts)}")
    whole = ", ".join(f"{n}: {ratio:.2f}" for n, ratio in found.forward.items())
    return "\n".join([*lines, f"  whole forward passes: {whole or found.fault or 'none faster'}"])


def curve(costs: "Costs") -> str:
    """Return a bar per number of rows, in plain tokens at the shortest context."""
    unit = costs.plain[0]
    longest = max(column[0] for column in costs.verify.values())
    lines = ["  rows verified at once, in plain tokens:"]
    for n in costs.rows:
        seconds = costs.verify[n][0]
        lines.append(f"  {n:>4}  {seconds / unit:5.2f}  {'█' * round(BAR * seconds / longest)}")
    lines.append("  levels drafted, in plain tokens:")
    lines += [f"  {d:>4}  {s / unit:5.2f}" for d, s in enumerate(costs.draft, start=1)]
    return "\n".join(lines)


def gains(costs: "Costs", max_depth: int) -> str:
    """Return what the best chain of at most `max_depth` gives for heads of several qualities."""
    from mlx_eagle.planner.cost_model import LiveCosts
    from mlx_eagle.planner.planner import DEEPEST

    live = LiveCosts(costs)
    lines = ["  if this share of drafted tokens is accepted, the best chain gives:"]
    for share in HEADS:
        gain, n_rows = live.best_chain(share, costs.contexts[0], min(max_depth, DEEPEST))
        best = f"{gain:.2f} times plain decoding, drafting {n_rows - 1}"
        lines.append(f"  {share:>4.0%}  {best if gain > 1 else 'nothing: plain decoding is best'}")
    return "\n".join(lines)


def _plot(costs: "Costs", file: Path) -> None:
    """Draw the curve into a PNG file."""
    from mlx_eagle.bench.plots import plot_costs

    plot_costs({n: column[0] for n, column in costs.verify.items()}, file)
