"""What the terminal shows of a training: rows that are rewritten, or lines now and then."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from mlx_eagle.cli.terminal.training import BETWEEN_LINES, TrainingDisplay
from mlx_eagle.cli.terminal.training_figures import Pace, Stage, Updates, duration
from mlx_eagle.training.run.reports import Measurement, UpdateReport


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def update(number: int, seconds: float = 2.0) -> UpdateReport:
    return UpdateReport(
        number, 100, 1.5, (1.0, 0.5), (0.4, 0.3), 0.25, (0.001, 0.02), 1000, seconds
    )


def measurement(number: int, *, is_best: bool) -> Measurement:
    return Measurement(number, 100, (1.0, 0.5), (0.5, 0.25), 1.625, is_best, 1.0)


def shown(is_terminal: bool) -> tuple[TrainingDisplay, Clock, io.StringIO]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=is_terminal, width=100, soft_wrap=True)
    return TrainingDisplay(Path("my-head"), console, clock), clock, stream


def test_speed_and_time_left_forget_a_slow_beginning() -> None:
    updates = Updates()
    updates.add(0, update(1, seconds=500))
    assert updates.position == "update 1 of 100", "one update tells no speed"
    for n in range(2, 62):
        updates.add(500 + 4 * n, update(n))
    assert updates.tokens_per_second == 500
    assert updates.seconds_left == pytest.approx(4 * 39), "pauses between updates are counted"
    assert updates.position == "update 61 of 100, 3 min left"


def test_features_are_counted_in_tokens_and_answers_bring_their_speed() -> None:
    features, answers = Stage("features"), Stage("answers")
    for now in (0, 10):
        features.update(now, 100 + 50 * now, 1100, 0)
        answers.update(now, 1 + now, 21, 33.3)
    assert features.line == "features: 600 of 1100 tokens, 50 tokens/s, 10 s left"
    assert answers.line == "answers: 11 of 21, 33 tokens/s, 10 s left"


def test_nothing_is_known_of_the_speed_at_first() -> None:
    pace = Pace()
    assert pace.per_second == 0
    pace.add(1, 1)
    pace.add(1, 2)
    assert pace.per_second == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (12000, "3 h 20 min")]
)
def test_times_are_told_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_there_are_lines_now_and_then() -> None:
    display, clock, stream = shown(is_terminal=False)
    with display:
        for n in range(1, 21):
            clock.now += BETWEEN_LINES / 5
            display.watch.report(update(n))
        display.watch.report(measurement(20, is_best=True))
    lines = stream.getvalue().splitlines()
    starts = [line.partition(":")[0] for line in lines if line.startswith("update")]
    left = ["", *(f", {duration(3 * (100 - n))} left" for n in (6, 11, 16))]
    assert starts == [
        f"update {n} of 100{more}" for n, more in zip((1, 6, 11, 16), left, strict=True)
    ]
    assert "loss 1.500, gradient norm 0.25, rate 0.001 and 0.02, 500 tokens/s" in lines[0]
    assert lines[1] == "n-alpha   0.400 0.300"
    assert lines[-1] == "held out: 0.500 0.250, length 1.62, at update 20, the best so far"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_shows_the_last_update_and_the_last_and_the_best_measurement() -> None:
    display, _, stream = shown(is_terminal=True)
    with display:
        display.watch.remark("12 conversations are \x1b[31mcut")
        for report in (update(1), measurement(1, is_best=True), measurement(2, is_best=False)):
            display.watch.report(report)
        stream.truncate(0)
        display._live.refresh()
        rows = stream.getvalue()
    for row in (
        "update 1 of 100",
        "loss 1.500, gradient norm 0.25",
        "n-alpha   0.400 0.300",
        "held out  0.500 0.250, length 1.62, at update 2",
        "best      0.500 0.250, length 1.62, at update 1",
        "saved in my-head/checkpoint",
    ):
        assert row in rows


def test_remarks_cannot_control_the_terminal() -> None:
    display, _, stream = shown(is_terminal=False)
    display.say("a conversation is \x1b[31mcut")
    assert stream.getvalue() == "a conversation is \u241b[31mcut\n"
