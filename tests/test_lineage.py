"""The table of docs/lineage.md: which figures of a report its script puts where."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmark_modules import load_benchmark

lineage = load_benchmark("lineage")


def report_of(*drafters: Any) -> dict[str, Any]:
    """A report of `mlx-eagle bench`, as far as the script reads it; drafter i has length 2 + i."""
    names = [lineage.contestant(drafter) for drafter in drafters]
    row = {"category": "all", "speedup": 1.5}
    rows = [row | {"contestant": n, "acceptance_length": 2.0 + i} for i, n in enumerate(names)]
    rows += [{"category": "source", "contestant": n, "acceptance_length": 9.0} for n in names]
    return {
        "contestants": ["plain", *names],
        "heads": {name: f"name of {name}" for name in names},
        "summary": rows,
        "n_alpha": [
            {"head": f"name of {name}", "category": category, "values": values}
            for name in names
            for category, values in (("source", [0.9] * 5), ("all", [0.5, None, 0.25]))
        ],
    }


def test_drafters_whose_files_are_not_named_are_left_out() -> None:
    none = dict.fromkeys(lineage.HEADS)
    found = lineage.present(Namespace(**none | {"eagle": Path("heads/eagle1/head")}))
    assert [lineage.contestant(drafter) for drafter in found] == [
        "tree:5x4x25:head:ngram",
        "tree:eagle1:head:heads/eagle1/head",
        "tree:5x4x25:head:heads/eagle1/head",
    ]
    every = Namespace(**dict.fromkeys(lineage.HEADS, Path("folder")))
    assert len(lineage.present(every)) == len(lineage.DRAFTERS)


def test_figures_are_those_of_all_prompts_and_of_the_drafter() -> None:
    first, second = lineage.DRAFTERS[0], lineage.DRAFTERS[5]
    report = report_of(first, second)
    lengths = ["2.00", "0.50", "", "0.25", "", ""]
    assert lineage.figures(report, first) == [first.name, *lengths, "", "1.93", "2.27"]
    planned = {"category": "all", "contestant": f"head:{second.head}", "speedup": 1.25}
    report["summary"].append(planned)
    assert lineage.figures(report, second)[1:] == ["3.00", *lengths[1:], "1.25", "", ""]


def test_a_drafter_that_drafted_nothing_has_no_length() -> None:
    drafter = lineage.DRAFTERS[1]
    report = report_of(drafter)
    report["summary"][0]["acceptance_length"] = None
    assert lineage.figures(report, drafter)[1] == ""


def test_a_report_of_other_drafters_is_refused() -> None:
    drafter = lineage.DRAFTERS[1]
    lineage.check_drafters(report_of(drafter), [drafter], Path("lineage.json"))
    with pytest.raises(SystemExit, match=r"lineage.json has no figures of tree:5x4x25:head:ngram"):
        lineage.check_drafters(report_of(), [drafter], Path("lineage.json"))
