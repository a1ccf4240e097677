"""`mlx-eagle calibrate` and `--explain`, and that measuring happens once."""

import json
from pathlib import Path

import pytest

from command_line import run_here
from mlx_eagle.calibration.kernels import Found
from mlx_eagle.cli.calibrate import curve, gains, kernels
from mlx_eagle.cli.terminal.plan_report import explain
from mlx_eagle.decoding.stats import GenerationStats, Planned
from mlx_eagle.kernels.shapes import Shape, Variant
from mlx_eagle.kernels.trial import Verdict
from mlx_eagle.kernels.verdicts import Table
from mlx_eagle.planner.cost_model import Costs
from mlx_eagle.planner.policy import Forecast, Review
from mlx_eagle.speculation import Speculation

STEPPED = Costs((64,), {1: (1.0,), 2: (1.0,), 3: (1.0,), 4: (3.0,)}, (1.0,), (0.05, 0.1, 0.15), 0.0)


pytestmark = pytest.mark.usefixtures("small_toy_pair")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of which nothing is known yet; contexts are short, for they take time."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr("mlx_eagle.calibration.measure.CONTEXTS", (64, 128))
    monkeypatch.setattr("mlx_eagle.calibration.measure.ROWS", (1, 2, 3, 4))
    monkeypatch.setattr("mlx_eagle.calibration.measure.MOST_SAMPLES", 3)
    return tmp_path


def test_the_first_answer_measures_the_machine_and_the_second_does_not(cache: Path) -> None:
    args = ("generate", "io", "--max-tokens", "4", "--explain")
    first, second = run_here(*args), run_here(*args)
    assert first.returncode == second.returncode == 0
    assert "measuring this machine, once" in first.stderr
    assert "measuring" not in second.stderr
    assert "costs        measured now" in first.stderr
    assert "costs        measured on 20" in second.stderr
    assert first.stdout == second.stdout


def test_measuring_can_be_left_out(cache: Path) -> None:
    args = ("generate", "Explain io.", "--max-tokens", "4", "--explain", "--no-calibrate")
    done = run_here(*args)
    assert "published for an M4 Pro, not measured here" in done.stderr
    assert not (cache / "costs").exists()


def test_calibrate_measures_anew_and_keeps_it(cache: Path) -> None:
    done = run_here("calibrate", "--json")
    assert done.returncode == 0, done.stderr
    costs = Costs.from_dict(json.loads(done.stdout))
    (file,) = (cache / "costs").iterdir()
    assert Costs.from_dict(json.loads(file.read_text())["costs"]) == costs
    again = run_here("calibrate")
    assert "rows verified at once" in again.stdout and "costs        measured now" in again.stdout
    assert Costs.from_dict(json.loads(file.read_text())["costs"]) != costs


def test_without_a_head_there_is_nothing_to_calibrate() -> None:
    done = run_here("calibrate", "--head", "none")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "nothing to calibrate: speculation is off: no head was wanted"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "told"), [("costs.jpg", "name it costs.png"), ("no/where/c.png", "there is no folder")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    cache: Path, name: str, told: str
) -> None:
    done = run_here("calibrate", "--plot", str(cache / name))
    assert done.returncode == 2
    assert told in done.stderr
    assert not (cache / "costs").exists()


def test_nothing_is_measured_where_no_planner_is_asked(cache: Path) -> None:
    for options in (["--no-speculate"], ["--depth", "2"]):
        done = run_here("generate", "Explain io.", "--max-tokens", "3", *options)
        assert done.returncode == 0 and "measuring" not in done.stderr
    assert not (cache / "costs").exists()


def test_the_curve_has_a_bar_per_number_of_rows() -> None:
    lines = curve(STEPPED).splitlines()
    assert lines[1] == "     1   1.00  " + "█" * 13
    assert lines[4] == "     4   3.00  " + "█" * 40


def test_gains_are_those_of_the_best_chain() -> None:
    lines = gains(STEPPED, 10).splitlines()
    # Two drafted tokens in three rows: (1 + 0.9 + 0.81) / (1.0 + 0.1)
    assert lines[-1] == "   90%  2.46 times plain decoding, drafting 2"


def test_explain_says_what_was_expected_and_what_came() -> None:
    planned = Planned("measured on 2026-11-21", plain_seconds=0.04)
    planned.add(1, 0.04, None)
    planned.add(3, 0.06, Review(Forecast(2.5, 0.01, 0.04, n_rows=4, depth=3), True))
    planned.add(1, 0.08, Review(Forecast(1.5, 0.01, 0.06, n_rows=4, depth=2), False))
    planned.add(1, 0.05, Review(Forecast(1.0, 0.01, 0.04, n_rows=1, depth=1), False))
    stats = GenerationStats(generation_tokens=11, generation_seconds=0.2, planned=planned)
    assert explain(stats).splitlines() == [
        "  costs        measured on 2026-11-21; 40.0 ms per plain token",
        "  plain        1 of 4 rounds (25%)",
        "  rows         1 in 33%, 4 in 67%",
        "  levels       1 in 33%, 2 in 33%, 3 in 33%",
        "  first token  right in 33% of these rounds",
        "  tokens       1.67 per drafted round, 1.67 expected",
        "  time         63.3 ms per drafted round, 56.7 expected",
        "  speed        2.00 times what plain decoding is expected to give",
    ]


def test_explain_says_that_no_planner_was_asked() -> None:
    stats = GenerationStats(status=Speculation.off("not asked for"))
    assert explain(stats) == "  planner      not asked (off: not asked for)"


@pytest.mark.parametrize(("n_plain", "expected"), [(40, True), (20, False), (8, False)])
def test_an_answer_is_mostly_plain_if_nearly_all_of_many_rounds_are(
    n_plain: int, expected: bool
) -> None:
    planned = Planned("", plain_seconds=1.0)
    for _ in range(n_plain):
        planned.add(1, 1.0, None)
    for rows in (1, 3, 3, 3):
        planned.add(1, 1.0, Review(Forecast(1.0, 0.0, 1.0, n_rows=rows, depth=1), True))
    assert planned.is_mostly_plain is expected


def test_the_table_of_kernels_says_what_is_used_and_why_the_rest_is_not() -> None:
    shape = Shape(128, (64,), 4, 32, "float16")
    verdicts = [Verdict(4, None, 1.2, "not faster"), Verdict(8, Variant(4, 8, "convert"), 0.6)]
    found = Found(Table({shape: verdicts}), {8: 0.75})
    assert kernels(found).split("\n") == [
        "  few-row kernels, their time over that of MLX's, by rows:",
        "  128->64, 4 bits by 32, float16: 4: 1.20 not faster, 8: 0.60 used",
        "  whole forward passes: 8: 0.75",
    ]
    assert "the GPU was lost" in kernels(Found(Table(), {}, "the GPU was lost"))
