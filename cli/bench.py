"""`mlx-eagle bench`: decoding with and without speculation on one target, side by side."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mlx_eagle.cli.option_types import Number, reading
from mlx_eagle.cli.options import ModelSource, model_options
from mlx_eagle.errors import EagleError
from mlx_eagle.option import options_of
from mlx_eagle.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from mlx_eagle.bench.contestants import Contestant
    from mlx_eagle.bench.prompts import BenchPrompt
    from mlx_eagle.bench.report import Report
    from mlx_eagle.bench.specs import Spec
    from mlx_eagle.engine import Engine

EXAMPLES = """\b
Examples:
  mlx-eagle bench
  mlx-eagle bench --model mlx-community/Qwen3-8B-4bit --out qwen3-8b
  mlx-eagle bench -m MODEL --compare auto --compare chain:3 --compare mlx-lm --cooldown 5
  mlx-eagle bench -m MODEL --dataset gsm8k --limit 10 --temp 0 --temp 0.8 --json

\b
Contestants for --compare; plain decoding always takes part:
  auto                  every round's tree as the engine chooses
  chain:3               a chain of three tokens every round
  tree:4x2x8            a tree 4 deep and 2 wide with 8 nodes every round
  head:HEAD             another head for the same target: a folder, or owner/name on the hub
  draft-model:MODEL:2   mlx-lm's speculative decoding: a small model drafts 2 tokens a round
  mlx-lm                mlx-lm's own plain decoding
"""

COUNT = click.IntRange(min=1)
DATASET_LIMIT = 20  # prompts per category of a data set: all of MT-bench, not all of Alpaca
DATASETS = ["mt-bench", "humaneval", "gsm8k", "alpaca", "cnn-dm"]


class Wanted(NamedTuple):
    """The command line, without the models; the names are those of the options."""

    compare: tuple[str, ...]
    prompts: Path | None
    dataset: str | None
    data: Path | None
    limit: int | None
    max_tokens: int
    ignore_eos: bool
    temperatures: tuple[float, ...]
    seed: int
    repeats: int
    warmup: int
    cooldown: float
    as_json: bool
    out: Path | None
    plots: bool


class Remembering(click.Command):
    """A command that notes the arguments it was given: a report has to tell them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the arguments, then parse them."""
        ctx.meta["mlx_eagle.command"] = shlex.join(["mlx-eagle", "bench", *args])
        return super().parse_args(ctx, args)


def _path(*names: str, metavar: str, help: str) -> Callable[..., Any]:
    return click.option(*names, type=click.Path(path_type=Path), metavar=metavar, help=help)


OPTIONS = [
    click.option("--compare", metavar="SPEC", multiple=True, help="A contestant; repeatable."),
    _path(
        "--prompts",
        metavar="FILE",
        help="Prompts: JSON Lines (prompt, messages or turns; category), or one per line.",
    ),
    click.option("--dataset", type=click.Choice(DATASETS), help="Prompts of a public data set."),
    _path("--data", metavar="PATH", help="The data set's file or folder, instead of the hub."),
    click.option(
        "--limit",
        metavar="N",
        type=COUNT,
        help="Most prompts per category, spread evenly over it. Default: 20 of a data set, else "
        "all.",
    ),
    click.option(
        *("--max-tokens", "-n"),
        metavar="N",
        type=click.IntRange(min=2),
        default=128,
        show_default=True,
        help="Tokens to generate per prompt.",
    ),
    click.option(
        "--ignore-eos/--stop-at-eos",
        default=True,
        help="Generate --max-tokens whatever the model says (default), so that all contestants "
        "generate as many; or end where it ends.",
    ),
    click.option(
        *("--temp", "temperatures"),
        metavar="T",
        type=reading(options_of(SamplingOptions)["temperature"].kind).type,
        multiple=True,
        default=(0.0,),
        show_default="0",
        help="Temperature; 0 is greedy; repeatable.",
    ),
    click.option(
        "--seed",
        metavar="N",
        type=reading(options_of(SamplingOptions)["seed"].kind).type,
        default=0,
        show_default=True,
        help="Prompt i is sampled with seed N + i.",
    ),
    click.option(
        "--repeats", metavar="N", type=COUNT, default=1, show_default=True, help="Timed runs."
    ),
    click.option(
        "--warmup",
        metavar="N",
        type=click.IntRange(min=0),
        default=32,
        show_default=True,
        help="Untimed tokens of every contestant before anything is timed.",
    ),
    click.option(
        "--cooldown",
        metavar="SECONDS",
        type=Number(min=0),
        default=0.0,
        show_default=True,
        help="Rest before every generation: wide passes heat a Mac.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    _path("--out", metavar="DIR", help="Write report.md, report.json and plots into a new folder."),
    click.option("--plots/--no-plots", default=True, help="With --out: draw plots, or do not."),
]


def bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a benchmark, which the command receives as `wanted`."""

    def command(source: ModelSource, **options: Any) -> Any:
        return function(source, Wanted(**options))

    command.__doc__ = function.__doc__
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command("bench", cls=Remembering, epilog=EXAMPLES)
@model_options
@bench_options
def command(source: ModelSource, wanted: Wanted) -> None:
    """Time decoding with and without speculation, prompt by prompt, and compare the texts.

    A text that differs from plain decoding's by more than a near-tie is a bug: exit status 1.
    """
    from mlx_eagle.bench.specs import parse_specs

    if wanted.prompts and wanted.dataset:
        raise click.UsageError("--prompts and --dataset both name the prompts: give one of them")
    if wanted.data and not wanted.dataset:
        raise click.UsageError("--data is the place of a data set: name it with --dataset")
    try:
        specs = parse_specs(wanted.compare)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    report = run_and_write(source, wanted, specs)
    if wanted.as_json:
        from mlx_eagle.bench.report import to_json

        click.echo(to_json(report))
    elif wanted.out is None:
        from mlx_eagle.bench.report_markdown import to_markdown

        click.echo(to_markdown(report), nl=False)
    if bugs := report["equality"]["n_bugs"]:
        raise EagleError(
            f"{bugs} of {report['equality']['n_compared']} texts differ from plain decoding's by "
            "more than a near-tie: see Equality in the report; please report it as a bug"
        )


def run_and_write(source: ModelSource, wanted: Wanted, specs: list["Spec"]) -> "Report":
    """Run the benchmark; with --out, write its files, all of them or none."""
    if wanted.out is None:
        return run_benchmark(source, wanted, specs)
    from mlx_eagle.bench.plots import plot_report, require_matplotlib
    from mlx_eagle.bench.report import to_json
    from mlx_eagle.bench.report_markdown import to_markdown
    from mlx_eagle.files.atomic import new_folder

    if wanted.plots:
        require_matplotlib("give --no-plots")  # before the work, not after it
    with new_folder(wanted.out) as folder:
        report = run_benchmark(source, wanted, specs)
        pictures = plot_report(report, folder) if wanted.plots else []
        (folder / "report.json").write_text(to_json(report) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(report, pictures), encoding="utf-8")
    if not wanted.as_json:
        click.echo(wanted.out / "report.md")
    return report


def run_benchmark(source: ModelSource, wanted: Wanted, specs: list["Spec"]) -> "Report":
    """Load, warm up, measure and compare; how far it is shows on stderr."""
    from mlx_eagle.bench.measure import Trial, encode, measure, probe, warm_up
    from mlx_eagle.bench.report import Inputs, build_report
    from mlx_eagle.bench.text_comparison import compare, judge_by

    origin, prompts = choose_prompts(source, wanted)
    engine, contestants = load_contestants(source, specs)
    trial = Trial(**{name: getattr(wanted, name) for name in Trial._fields})
    ids = encode(engine.tokenizer, prompts)
    warm_up(contestants, ids[0], trial)
    samples = measure(contestants, prompts, ids, trial, counter("generation"))
    chains = probe(contestants, prompts, ids, trial, counter("chain, for n-alpha"))
    exact = {contestant.name for contestant in contestants if contestant.same_draws}
    judge = judge_by(engine.target.model, ids, trial.seed)
    comparison = compare(samples, contestants[0].name, exact, judge)
    names = [contestant.name for contestant in contestants]
    line = click.get_current_context().meta["mlx_eagle.command"]
    inputs = Inputs(line, engine.info, origin, prompts, names, trial)
    return build_report(inputs, samples, chains, comparison, measured_costs(engine))


def measured_costs(engine: "Engine") -> dict[int, float] | None:
    """Return the seconds to verify rows at the shortest context, if they were measured here."""
    calibration = engine.planners.calibration
    if engine.head is None or not calibration.is_measured:
        return None
    return {n: column[0] for n, column in calibration.costs.verify.items()}


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

    limit = wanted.limit
    if wanted.prompts:
        origin, prompts = str(wanted.prompts), read_prompts(wanted.prompts)
    elif wanted.dataset:
        from mlx_eagle.bench.datasets import read_dataset

        origin = f"{wanted.dataset} ({wanted.data or 'the questions of the EAGLE papers'})"
        prompts = read_dataset(wanted.dataset, wanted.data)
        limit = limit or DATASET_LIMIT
    else:
        is_demo = source.model is None
        origin = "built in, for the demo pair" if is_demo else "built in"
        prompts = builtin_prompts(is_demo)
    return origin, spread(prompts, limit)


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

    def load_other(engine: "Engine", head: str) -> "Engine":
        return load_engine(source._replace(head=head), console, beside=engine)

    return engine, [make_contestant(spec, engine, load_other, fetch_shown) for spec in specs]
