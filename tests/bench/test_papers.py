"""Figures per data set, worked out by hand, and the table in the papers' layout."""

from typing import Any

import pytest

from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.papers import MEAN, rows_by_category, rows_by_set
from mlx_eagle.bench.papers_markdown import papers_table
from mlx_eagle.bench.prompts import BenchPrompt, ask

PROMPTS: list[BenchPrompt] = [
    ask("mt-bench: math", "a")._replace(data_set="mt-bench"),
    ask("mt-bench: stem", "b")._replace(data_set="mt-bench"),
    ask("gsm8k", "c")._replace(data_set="gsm8k"),
]


def samples(name: str, *seconds: tuple[float, ...], **stats: Any) -> list[Sample]:
    """Ten timed tokens of every prompt: seconds by repeat, then by prompt."""
    return [
        Sample(name, 0.0, i, PROMPTS[i].category, repeat, [1] * 11, 10, s, 1.0, stats)
        for repeat, row in enumerate(seconds)
        for i, s in enumerate(row)
    ]


RUN = [
    *samples("plain", (2.0, 4.0, 3.0), (2.0, 4.0, 3.0)),
    *samples("mlx-lm", (2.0, 4.0, 6.0), (2.0, 4.0, 6.0)),
    *samples("auto", (1.0, 3.0, 3.0), (2.0, 6.0, 1.5), drafted=4, n_accepted_per_round=[1, 0, 2]),
]


def test_the_worked_example_of_the_module_is_true() -> None:
    first, second = (ask(n, "?")._replace(data_set=n) for n in ("first", "second"))
    run = [
        Sample(name, 0.0, i, "", repeat, [1] * 11, 10, seconds, 1.0, {})
        for name, times in {"plain": ((3, 3), (3, 3)), "auto": ((2, 3), (1, 3))}.items()
        for repeat, row in enumerate(times)
        for i, seconds in enumerate(row)
    ]
    found = {row.group: row.over_plain for row in rows_by_set(run, [first, second])[3:]}
    assert found == {"first": (2.0, 1.5, 3.0), "second": (1.0, 1.0, 1.0), MEAN: (1.5, 1.25, 2.0)}


def test_a_set_sums_its_prompts_and_the_mean_is_over_sets() -> None:
    rows = {(row.contestant, row.group): row for row in rows_by_set(RUN, PROMPTS)}
    assert list(rows)[:3] == [("plain", "mt-bench"), ("plain", "gsm8k"), ("plain", MEAN)]
    auto = rows["auto", "mt-bench"]
    assert auto.over_plain == pytest.approx((1.0, 6 / 8, 6 / 4))
    assert (auto.n_answers, auto.n_tokens, auto.acceptance_length) == (2, 44, 2.0)
    gsm8k = rows["auto", "gsm8k"]
    assert gsm8k.over_plain == pytest.approx((6 / 4.5, 1.0, 2.0))
    assert gsm8k.over_stock == pytest.approx((12 / 4.5, 2.0, 4.0))
    mean = rows["auto", MEAN].over_plain
    assert mean == pytest.approx(((1 + 4 / 3) / 2, (1.5 + 1) / 2, (0.75 + 2) / 2))
    assert rows["mlx-lm", MEAN].acceptance_length is None


def test_categories_are_those_of_sets_that_have_several() -> None:
    rows = [row for row in rows_by_category(RUN, PROMPTS) if row.contestant == "auto"]
    assert [row.group for row in rows] == ["mt-bench: math", "mt-bench: stem", MEAN]
    assert rows[1].over_plain == pytest.approx((8 / 9, 4 / 6, 4 / 3))


def test_without_mlx_lm_nothing_is_said_about_it() -> None:
    own = [s for s in RUN if s.contestant != "mlx-lm"]
    rows = rows_by_set(own, PROMPTS)
    assert {row.over_stock for row in rows} == {None}
    assert "mlx-lm" not in papers_table([row.to_dict() for row in rows])


def test_the_table_has_a_column_for_every_set_and_lines_for_every_figure() -> None:
    lines = papers_table([row.to_dict() for row in rows_by_set(RUN, PROMPTS)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["decoding", "figure", "mt-bench", "gsm8k", "mean"]
    assert cells[2] == ["mlx-lm, greedy", "over plain", "1.00x", "0.50x", "0.75x"]
    assert cells[3][:3] == ["auto, greedy", "over plain", "1.00x (0.75 to 1.50)"]
    assert cells[4][:2] == ["", "over mlx-lm"]
    assert cells[4][2:4] == ["1.00x (0.75 to 1.50)", "2.67x (2.00 to 4.00)"]
    assert cells[4][4] == "1.83x (1.75 to 2.38)"
    assert cells[5] == ["", "τ", "2.00", "2.00", "2.00"]
    assert len(cells) == 6
