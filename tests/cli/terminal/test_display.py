"""What the terminal shows, as text."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from mlx_eagle.cli.terminal import display
from mlx_eagle.cli.terminal.display import (
    Loading,
    Prefill,
    about,
    details,
    fetch_target_shown,
    note_on,
    printable,
    terminal,
)
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.engine import EngineInfo
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.speculation import ON

INFO = EngineInfo("toy", "8-bit, group 64", "head", "4-bit, group 64", ON, "CPU", True)


def test_a_model_cannot_send_escape_sequences_to_the_terminal() -> None:
    hostile = "a\x1b[2J\x9b31m\x07\r\x7f\tb\nc é 中 🦅"
    assert printable(hostile) == "a␛[2J\ufffd31m␇␍␡\tb\nc é 中 🦅"


def test_a_target_may_be_that_of_a_pair_which_needs_no_download(tmp_path: Path) -> None:
    assert fetch_target_shown("demo") == DEMO / "target"
    assert fetch_target_shown(str(tmp_path)) == tmp_path


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_loaded_is_told_a_line_per_part() -> None:
    assert about(INFO, 2048).splitlines() == [
        "  target       toy · 8-bit, group 64",
        "  head         head · 4-bit, group 64",
        "  speculation  on",
        "  device       CPU",
        "  context      2048 tokens",
    ]
    assert "head         none" in about(INFO._replace(head="", head_precision=""), None)
    assert "context" not in about(INFO, None)


def test_details_survive_a_gpu_that_cannot_tell_draft_from_verify() -> None:
    stats = GenerationStats(draft_seconds=None, verify_seconds=None)
    assert "draft not told apart" in details(stats)


def test_note_is_for_those_who_named_no_model() -> None:
    assert "This pair is a toy" in note_on(INFO, None)
    assert "This pair is a toy" in note_on(INFO, "demo")
    assert "This model is small" in note_on(INFO._replace(is_demo=False), None)
    assert note_on(INFO._replace(is_demo=False), "owner/model") == ""


def test_details_count_what_of_the_prompt_was_read() -> None:
    stats = GenerationStats(prompt_tokens=36, cached_tokens=30, prompt_seconds=2.0)
    shown = details(stats)
    assert "prompt       6 tokens in 2.00 s (3.0 tokens/s), 30 known from before" in shown
    assert "drafted" not in shown and "by depth" not in shown
    stats.add_round(depth=2, n_drafted=2, n_accepted=1)
    assert "drafted      2, accepted 1" in details(stats)


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


def test_the_banner_tells_what_limits_texts_and_how_the_publisher_samples() -> None:
    info = INFO._replace(remarks=("context limited", "rope set"), recommended={"temperature": 0.6})
    lines = about(info, 16).splitlines()
    assert lines[-2].startswith("  sampling     temperature 0.6 (recommended by the publisher")
    assert lines[-1] == "  notice       context limited; rope set"
