"""`mlx-eagle bench --replay`: the same answers, plain and drafted, as a page that plays them."""

import json
from typing import TYPE_CHECKING, Any

import click

from mlx_eagle.cli.bench_inputs import choose_prompts, counter, load_contestants
from mlx_eagle.cli.bench_options import Wanted
from mlx_eagle.cli.options import ModelSource
from mlx_eagle.errors import EagleError

if TYPE_CHECKING:
    from mlx_eagle.bench.contestants import Contestant
    from mlx_eagle.bench.recording import Played, Way
    from mlx_eagle.bench.specs import Spec
    from mlx_eagle.engine import Engine


def replay(source: ModelSource, wanted: Wanted, specs: list["Spec"]) -> None:
    """Answer the questions both ways and write the page; with --json print the times too.

    Args:
        source: which models.
        wanted: the command line.
        specs: plain decoding and the other contestant.

    Raises:
        EagleError: if the other contestant has no head of ours, or the page cannot be written.
    """
    from mlx_eagle.bench.replay_page import to_page
    from mlx_eagle.files.atomic import new_file

    assert wanted.replay is not None, "asked for"
    file = wanted.replay
    if not file.absolute().parent.is_dir():
        raise click.UsageError(f"--replay {file}: there is no folder {file.parent}")
    _, questions = choose_prompts(source, wanted)
    engine, contestants = load_contestants(source, specs)
    played = _play(engine, _ways(engine, contestants, specs), questions, wanted)
    facts = _facts(engine)
    with new_file(file) as partial:
        partial.write_text(to_page(played, facts, wanted.repeats), encoding="utf-8")
    click.echo(json.dumps(_record(played, facts)) if wanted.as_json else file)


def _ways(
    engine: "Engine", contestants: list["Contestant"], specs: list["Spec"]
) -> "tuple[Way, Way]":
    """Return plain decoding and the way that is compared with it."""
    from mlx_eagle.bench.recording import Way

    other, spec = contestants[-1], specs[-1]
    if other.engine is None:
        raise EagleError(
            f"a page compares plain decoding with a head's, and {other.name} has none that drafts "
            "here: give --compare auto, chain:N, tree:DxWxN or head:HEAD"
        )
    plain = Way(contestants[0].name, engine, {"speculate": False})
    return plain, Way.drafting(other.name, other.engine, spec.shape, spec.rule)


def _play(
    engine: "Engine", ways: "tuple[Way, Way]", questions: list[Any], wanted: Wanted
) -> "list[Played]":
    """Return the questions with both answers; of several turns the first is asked."""
    from mlx_eagle.bench.asked import Asked
    from mlx_eagle.bench.measure import Trial
    from mlx_eagle.bench.recording import Played, record

    trial = Trial(**{name: getattr(wanted, name) for name in Trial._fields})
    temperature = wanted.temperatures[0]
    asked = Asked.of(engine, questions)
    show, played = counter("question"), []
    if wanted.warmup:  # nothing is compiled while it is timed
        short = trial.setting(temperature, 0)._replace(max_tokens=wanted.warmup)
        record(ways, asked.ids(temperature, 0), short, repeats=1)
    for number, question in enumerate(questions):
        show(number, len(questions))
        ids, setting = asked.ids(temperature, number), trial.setting(temperature, number)
        played.append(Played(question.text, record(ways, ids, setting, wanted.repeats)))
    show(len(questions), len(questions))
    return played


def _facts(engine: "Engine") -> dict[str, str]:
    """Return what was measured with what, for the reader of the page."""
    from mlx_eagle.bench.machine import PACKAGES, describe_machine

    info, machine = engine.info, describe_machine()
    return {
        "target": f"{info.target} · {info.target_precision}",
        "head": f"{info.head} · {info.head_precision}",
        "machine": f"{machine['chip']}, {machine['device']}, {machine['system']}",
        "versions": ", ".join(f"{name} {machine[name]}" for name in PACKAGES),
        "command": click.get_current_context().meta["mlx_eagle.command"],
    }


def _record(played: "list[Played]", facts: dict[str, str]) -> dict[str, Any]:
    """Return the times of all tokens, ready for JSON."""
    questions = [
        {
            "question": one.question,
            "is_same_text": one.is_same_text,
            "answers": [
                answer._asdict() | {"arrivals": [a._asdict() for a in answer.arrivals]}
                for answer in one.answers
            ],
        }
        for one in played
    ]
    return facts | {"questions": questions}
