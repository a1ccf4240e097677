"""`mlx-eagle bench`: decoding with and without speculation on one target, side by side."""

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_eagle.cli.bench_inputs import choose_prompts, counter, load_contestants
from mlx_eagle.cli.bench_options import Wanted, bench_options
from mlx_eagle.cli.options import ModelSource, model_options
from mlx_eagle.errors import EagleError

if TYPE_CHECKING:
    from mlx_eagle.bench.asked import Asked
    from mlx_eagle.bench.contestants import Contestant
    from mlx_eagle.bench.kept import Kept
    from mlx_eagle.bench.measure import Trial
    from mlx_eagle.bench.metrics import Alphas, Sample
    from mlx_eagle.bench.prompts import BenchPrompt
    from mlx_eagle.bench.report import Inputs, Report
    from mlx_eagle.bench.specs import Spec
    from mlx_eagle.engine import Engine

EXAMPLES = """\b
Examples:
  mlx-eagle bench
  mlx-eagle bench --model mlx-community/Qwen3-8B-4bit --out qwen3-8b
  mlx-eagle bench -m MODEL --compare auto --compare chain:3 --compare mlx-lm --cooldown 5
  mlx-eagle bench -m MODEL --dataset gsm8k --limit 10 --temp 0 --temp 0.8 --json
  mlx-eagle bench -m MODEL --data FOLDER --repeats 3 --out papers
  mlx-eagle bench --replay replay.html

\b
Contestants for --compare; plain decoding always takes part:
  auto                  every round's tree as the engine chooses
  chain:3               a chain of three tokens every round
  tree:4x2x8            a tree 4 deep and 2 wide with 8 nodes every round; or tree:eagle1
  head:HEAD             another head for the same target: a folder, or owner/name on the hub
  tree:4x2x8:head:HEAD  that tree every round, of another head; likewise chain:3:head:HEAD
  head:draft:NAME       a small model that drafts, through our own loop
  ratio:head:draft:NAME the same, its drafts drawn and accepted by ratio where --temp is not 0
  draft-model:MODEL:2   mlx-lm's speculative decoding: a small model drafts 2 tokens a round
  mlx-lm                mlx-lm's own plain decoding
"""


class Remembering(click.Command):
    """A command that notes the arguments it was given: a report has to tell them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the arguments, then parse them."""
        ctx.meta["mlx_eagle.command"] = shlex.join(["mlx-eagle", "bench", *args])
        return super().parse_args(ctx, args)


@click.command("bench", cls=Remembering, epilog=EXAMPLES)
@model_options
@bench_options
def command(source: ModelSource, wanted: Wanted) -> None:
    """Time decoding with and without speculation, prompt by prompt, and compare the texts.

    A text that differs from plain decoding's by more than a near-tie is a bug: exit status 1.
    """
    from mlx_eagle.bench.specs import parse_specs

    wanted.check()
    wanted = wanted.settled()
    try:
        specs = parse_specs(wanted.compare)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if wanted.replay:
        from mlx_eagle.cli.bench_replay import replay

        replay(source, wanted, specs)
        return
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
    """Run the benchmark; with --out, write its files, and no half report."""
    if wanted.out is None:
        return run_benchmark(source, wanted, specs)
    from mlx_eagle.bench.plots import require_matplotlib
    from mlx_eagle.files.atomic import new_folder

    if wanted.plots:
        require_matplotlib("give --no-plots")  # before the work, not after it
    if wanted.has_sets:  # it may be hours: what is done is kept, however it ends
        report = run_benchmark(source, wanted, specs)
        write_files(report, wanted.out, wanted.plots)
    else:
        with new_folder(wanted.out) as folder:
            report = run_benchmark(source, wanted, specs)
            write_files(report, folder, wanted.plots)
    if not wanted.as_json:
        click.echo(wanted.out / "report.md")
    return report


def write_files(report: "Report", folder: Path, plots: bool) -> None:
    """Write a report and its pictures into a folder."""
    from mlx_eagle.bench.plots import plot_report
    from mlx_eagle.bench.report import to_json
    from mlx_eagle.bench.report_markdown import to_markdown
    from mlx_eagle.files.atomic import new_file

    pictures = plot_report(report, folder) if plots else []
    texts = {"report.json": to_json(report) + "\n", "report.md": to_markdown(report, pictures)}
    for name, text in texts.items():
        with new_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def run_benchmark(source: ModelSource, wanted: Wanted, specs: list["Spec"]) -> "Report":
    """Load, warm up, measure and compare; how far it is shows on stderr."""
    from mlx_eagle.bench.asked import Asked
    from mlx_eagle.bench.measure import Trial, measure, warm_up
    from mlx_eagle.bench.prompts import with_later_turns
    from mlx_eagle.bench.report import Found, Inputs, build_report
    from mlx_eagle.bench.text_comparison import compare, judge_by, judge_on_hosts
    from mlx_eagle.cluster.leader import exchanged_per_round

    origin, questions = choose_prompts(source, wanted)
    engine, contestants = load_contestants(source, specs)
    questions, left_out = those_that_fit(engine, questions, wanted)
    prompts = with_later_turns(questions)
    trial = Trial(**{name: getattr(wanted, name) for name in Trial._fields})
    asked = Asked.of(engine, prompts)
    line = click.get_current_context().meta["mlx_eagle.command"]
    names = [contestant.name for contestant in contestants]
    heads = {each.name: each.engine.info.head for each in contestants if each.engine}
    inputs = Inputs(line, engine.info, origin, prompts, names, trial, left_out, heads=heads)
    kept = keep(inputs, wanted, engine, contestants) if wanted.has_sets and wanted.out else None
    warm_up(contestants, asked.ids(0.0, 0), trial)
    samples = measure(contestants, asked, trial, counter("generation"), kept=kept)
    alphas = measure_alphas(contestants, asked, trial, samples, kept)
    exact = {contestant.name for contestant in contestants if contestant.same_draws}
    if engine.info.hosts:
        judge = judge_on_hosts(engine.target, asked.ids, trial.seed)
    else:
        judge = judge_by(engine.target.model, asked.ids, trial.seed)
    comparison = compare(samples, contestants[0].name, exact, judge)
    found = Found(
        samples, alphas, comparison, measured_costs(engine), exchanged_per_round(engine.target)
    )
    return build_report(inputs._replace(starts=kept.starts if kept else ()), found)


def those_that_fit(
    engine: "Engine", questions: list["BenchPrompt"], wanted: Wanted
) -> tuple[list["BenchPrompt"], dict[str, int]]:
    """Return the questions that fit into the target's context, and how many of a set do not.

    Only of data sets, whose longest articles small targets cannot read; a user's own prompt is
    refused by its length.
    """
    from mlx_eagle.bench.asked import fits

    if not wanted.has_sets:
        return questions, {}
    kept, left_out = [], Counter[str]()
    for question in questions:
        if fits(engine, question, wanted.max_tokens):
            kept.append(question)
        else:
            left_out[question.data_set] += 1
    if not kept:
        raise EagleError(
            f"none of the {len(questions)} questions fits into the target's context with "
            f"{wanted.max_tokens} tokens of answer; give a smaller --max-tokens"
        )
    return kept, left_out


def keep(
    inputs: "Inputs", wanted: Wanted, engine: "Engine", contestants: list["Contestant"]
) -> "Kept":
    """Return where the answers of a run on data sets are kept, and those that are there."""
    from mlx_eagle.bench.kept import Kept
    from mlx_eagle.bench.measure import engines_of
    from mlx_eagle.bench.report import settings_of

    assert wanted.out is not None, "asked for"
    # A head that was trained anew has the name that it had before.
    weights = [each.identity for each in (engine, *engines_of(contestants))]
    return Kept(wanted.out, settings_of(inputs) | {"weights": weights})


def measure_alphas(
    contestants: list["Contestant"],
    asked: "Asked",
    trial: "Trial",
    samples: list["Sample"],
    kept: "Kept | None",
) -> list["Alphas"]:
    """Return n-alpha: of data sets on plain decoding's answers, else of a run with chains."""
    from mlx_eagle.bench.draft_scores import alphas_of, score_answers
    from mlx_eagle.bench.measure import probe
    from mlx_eagle.bench.metrics import alphas

    if asked.prompts[0].data_set:
        show = counter("answer, for n-alpha")
        scores = score_answers(contestants, asked, samples, show, kept)
        return alphas_of(scores, asked.prompts)
    return alphas(probe(contestants, asked, trial, counter("chain, for n-alpha")))


def measured_costs(engine: "Engine") -> dict[int, float] | None:
    """Return the seconds to verify rows at the shortest context, if they were measured here."""
    calibration = engine.planners.calibration
    if engine.head is None or not calibration.is_measured:
        return None
    return {n: column[0] for n, column in calibration.costs.verify.items()}
