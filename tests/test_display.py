"""What the terminal shows, as text."""

import io
import time

import pytest
from rich.console import Console

from mlx_eagle.cli import display
from mlx_eagle.cli.display import Answer, Loading, Prefill, banner, details, printable, terminal
from mlx_eagle.engine import EngineInfo
from mlx_eagle.responses import GenerationResponse
from mlx_eagle.stats import GenerationStats

INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", "on", "CPU", True)


def piece(
    text: str, n: int = 1, from_draft: bool = False, stats: GenerationStats | None = None
) -> GenerationResponse:
    """Return a response that carries `text` as the n-th token."""
    return GenerationResponse(
        text=text,
        token=n,
        from_draft=from_draft,
        prompt_tokens=3,
        prompt_tps=30.0,
        generation_tokens=n,
        generation_tps=8.0,
        peak_memory=0.1,
        n_accepted=0,
        finish_reason="stop" if stats else None,
        stats=stats,
    )


def test_a_model_cannot_send_escape_sequences_to_the_terminal() -> None:
    hostile = "a\x1b[2J\x9b31m\x07\r\x7f\tb\nc é 中 🦅"
    assert printable(hostile) == "a␛[2J\ufffd31m␇␍␡\tb\nc é 中 🦅"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_answer_is_exact_in_a_pipe_and_clean_on_a_terminal() -> None:
    for out, text in ((io.StringIO(), "a\x1b[31mb\n"), (Screen(), "a␛[31mb\n")):
        with Answer(out) as answer:
            answer.add(piece("a\x1b[31mb"))
        assert out.getvalue() == text


def test_an_answer_that_ends_its_line_gets_no_second_line_end() -> None:
    out = io.StringIO()
    with Answer(out) as answer:
        answer.add(piece("a\n", 1))
        answer.add(piece("", 2))
    assert out.getvalue() == "a\n"


def test_a_stopped_answer_is_summed_up_from_its_tokens() -> None:
    answer = Answer(io.StringIO())
    assert answer.summary() == "no tokens"
    for n, from_draft in enumerate([False, True, True, False, True, False], start=1):
        answer.add(piece("x", n, from_draft))
    assert answer.summary() == "6 tokens · 8.0 tokens/s · acceptance length 2.50 · 2 rounds"


def test_the_summary_says_when_the_limit_or_missing_speculation_shaped_the_answer() -> None:
    answer = Answer(io.StringIO())
    stats = GenerationStats(generation_tokens=1, speculation="off: no head was given")
    answer.add(piece("x", stats=stats)._replace(finish_reason="length"))
    assert answer.summary() == (
        "1 token · 8.0 tokens/s · speculation off: no head was given · ended by max_tokens"
    )


def test_the_banner_of_the_demo_says_that_it_is_a_toy_and_what_to_run_instead() -> None:
    assert "toy: it knows Python's standard library" in banner(INFO)
    assert "mlx-eagle chat --model " in banner(INFO)
    assert "toy: it knows" not in banner(INFO._replace(is_demo=False))
    assert "head         none" in banner(INFO._replace(head="", head_precision=""))


def test_details_survive_a_gpu_that_cannot_tell_draft_from_verify() -> None:
    stats = GenerationStats(draft_seconds=None, verify_seconds=None)
    assert "draft not told apart" in details(stats)


def test_a_long_reason_is_not_told_after_every_answer() -> None:
    long = (
        "off: verifying 5 tokens takes 3.70 times as long as decoding one here, drafting them 0.95"
    )
    for reason, shown in (
        (long, "off (/stats or --explain: why)"),
        ("off: no head", "off: no head"),
    ):
        answer = Answer(io.StringIO())
        answer.add(piece("a", stats=GenerationStats(speculation=reason)))
        assert f"speculation {shown}" in answer.summary()


def test_without_a_terminal_downloads_and_measurements_are_announced_once() -> None:
    out = io.StringIO()
    with Loading(terminal(out)) as loading:
        loading.update("download owner/model", 0, 4_310_000_000)
        loading.update("download owner/model", 1_000_000, 4_310_000_000)
        loading.update("load", 1, 2)
        loading.update("calibrate", 0, 4)
        loading.update("calibrate", 1, 4)
    with Prefill(terminal(out)) as prefill:
        prefill.update(0, 10)
    announced = out.getvalue().splitlines()
    assert announced == ["download owner/model (4.31 GB)", "measuring this machine, once"]


def test_reading_a_prompt_shows_a_bar_only_if_it_takes_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for patience, expected in ((60.0, False), (0.0, True)):
        monkeypatch.setattr(display, "PREFILL_PATIENCE", patience)
        out = Screen()
        with Prefill(Console(file=out, force_terminal=True, width=80)) as prefill:
            time.sleep(0.3)
            prefill.update(5, 10)
        assert ("reading the prompt" in out.getvalue()) == expected
