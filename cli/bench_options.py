"""The options of `mlx-eagle bench`, and what they come to; nothing heavy is imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from mlx_eagle.cli.option_types import Number, reading
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.option import options_of
from mlx_eagle.sampling.options import SamplingOptions

COUNT = click.IntRange(min=1)
DATASET_LIMIT = 20  # questions per category of a data set: all of MT-bench, not all of Alpaca
REPLAY_LIMIT = 1  # questions per category of a page: it is looked at, not computed with
DATASETS = ["mt-bench", "humaneval", "gsm8k", "alpaca", "cnn-dm", "nq"]


class Wanted(NamedTuple):
    """The command line, without the models; the names are those of the options."""

    compare: tuple[str, ...]
    prompts: Path | None
    datasets: tuple[str, ...]
    data: Path | None
    limit: int | None
    max_tokens: int
    ignore_eos: bool | None
    temperatures: tuple[float, ...]
    seed: int
    repeats: int
    warmup: int
    cooldown: float
    as_json: bool
    out: Path | None
    plots: bool
    replay: Path | None

    @property
    def has_sets(self) -> bool:
        """Whether the questions are those of public data sets."""
        return bool(self.datasets or self.data)

    def settled(self) -> "Wanted":
        """Return the same with what was left open, which depends on what is asked.

        Data sets are measured as papers do: answers end where the model ends them, greedy and at
        temperature 1, beside mlx-lm.
        """
        is_papers = self.has_sets and not self.replay
        limit = REPLAY_LIMIT if self.replay else DATASET_LIMIT if self.has_sets else None
        ignore_eos = not (self.has_sets or self.replay)
        return self._replace(
            compare=self.compare or (("auto", "mlx-lm") if is_papers else ("auto",)),
            temperatures=self.temperatures or ((0.0, 1.0) if is_papers else (0.0,)),
            ignore_eos=ignore_eos if self.ignore_eos is None else self.ignore_eos,
            limit=self.limit or limit,
        )

    def check(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            click.UsageError: naming them.
        """
        if self.prompts and self.has_sets:
            raise click.UsageError(
                "--prompts and --dataset (--data) both name the prompts: give one of them"
            )
        if self.data and not self.datasets and not self.data.is_dir():
            raise click.UsageError(
                f"--data {self.data} is no folder of data sets: name the one it is with --dataset"
            )
        if self.replay and (self.out or len(self.compare) > 1 or len(self.temperatures) > 1):
            raise click.UsageError(
                "--replay makes one page of plain decoding and one other contestant at one "
                "temperature: leave out --out and further --compare and --temp"
            )


def _path(*names: str, metavar: str, help: str) -> Callable[..., Any]:
    return click.option(*names, type=click.Path(path_type=Path), metavar=metavar, help=help)


OPTIONS = [
    click.option("--compare", metavar="SPEC", multiple=True, help="A contestant; repeatable."),
    _path(
        "--prompts",
        metavar="FILE",
        help="Prompts: JSON Lines (prompt, messages or turns; category), or one per line.",
    ),
    click.option(
        *("--dataset", "datasets"),
        type=click.Choice(DATASETS),
        multiple=True,
        help="Questions of a public data set, as the EAGLE papers use them; repeatable.",
    ),
    _path(
        "--data",
        metavar="PATH",
        help="The folder of the data sets (mt_bench.jsonl or mt_bench/question.jsonl, ...), or the "
        "file of one, instead of fetching them; without --dataset all that are found there.",
    ),
    click.option(
        "--limit",
        metavar="N",
        type=COUNT,
        help="Most questions per category, spread evenly over it. Default: 20 of a data set, 1 "
        "with --replay, else all.",
    ),
    click.option(
        *("--max-tokens", "-n"),
        metavar="N",
        type=click.IntRange(min=2),
        default=128,
        show_default=True,
        help="Tokens to generate per answer.",
    ),
    click.option(
        "--ignore-eos/--stop-at-eos",
        default=None,
        help="Generate --max-tokens whatever the model says, so that all contestants generate as "
        "many (default); or end where it ends (default for data sets).",
    ),
    click.option(
        *("--temp", "temperatures"),
        metavar="T",
        type=reading(options_of(SamplingOptions)["temperature"].kind).type,
        multiple=True,
        help="Temperature; 0 is greedy; repeatable. Default: 0; for data sets 0 and 1.",
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
    _path(
        "--out",
        metavar="DIR",
        help="Write report.md, report.json and plots into a new folder. Of data sets every answer "
        "is kept there too: the same command goes on with a run that was stopped.",
    ),
    click.option("--plots/--no-plots", default=True, help="With --out: draw plots, or do not."),
    _path(
        "--replay",
        metavar="FILE",
        help="Write an HTML page instead, which plays the same answers, plain and drafted, side by "
        "side as fast as they came.",
    ),
]


def bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a benchmark, which the command receives as `wanted`."""

    def command(source: ModelSource, **options: Any) -> Any:
        return function(source, Wanted(**options))

    command.__doc__ = function.__doc__
    for option in reversed(OPTIONS):
        command = option(command)
    return command
