"""The figures of data sets as tables in the papers' layout: a column for every set."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_eagle.bench.markdown_table import as_table
from mlx_eagle.bench.specs import PLAIN, STOCK

Row = Mapping[str, Any]

NOTE = (
    "Speed-ups are ratios of total decoding times in this run; in brackets the lowest and the "
    "highest of single repeats. τ is the acceptance length: tokens per forward of the target, its "
    "own included. The mean is that of the columns. A later turn of a question goes on with plain "
    "decoding's answer to the turn before, for all contestants."
)


def papers_parts(report: Mapping[str, Any]) -> list[str]:
    """Return the sections of a report about data sets; none where there are no data sets."""
    parts = []
    if sets := report.get("data_sets"):
        parts.append(f"## Data sets\n\n{papers_table(sets)}\n\n{NOTE}")
    if categories := report.get("categories"):
        parts.append(f"## Categories\n\n{papers_table(categories)}")
    return parts


def papers_table(rows: Sequence[Row]) -> str:
    """Return one table: a column per group, lines for speed-ups and acceptance lengths.

    Args:
        rows: of a report's "data_sets" or "categories".
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    table = [["decoding", "figure", *groups]]
    for temperature, name in dict.fromkeys((r["temperature"], r["contestant"]) for r in rows):
        own = [r for r in rows if (r["temperature"], r["contestant"]) == (temperature, name)]
        if name != PLAIN:
            at = f"T={temperature:g}" if temperature else "greedy"
            lines = _lines(name, own)
            table += [[f"{name}, {at}" if n == 0 else "", *line] for n, line in enumerate(lines)]
    return as_table(table)


def _lines(name: str, rows: Sequence[Row]) -> list[list[str]]:
    """Return a contestant's lines: speed-ups, and the acceptance length where it drafts."""
    lines = [["over plain", *(_spread(row["over_plain"]) for row in rows)]]
    if name != STOCK and rows[0]["over_stock"]:
        lines.append([f"over {STOCK}", *(_spread(row["over_stock"]) for row in rows)])
    lengths = [row["acceptance_length"] for row in rows]
    if any(lengths):
        lines.append(["τ", *("" if length is None else f"{length:.2f}" for length in lengths)])
    return lines


def _spread(figure: Mapping[str, float]) -> str:
    """Return a figure with the span of its repeats, where there are several."""
    value, low, high = (f"{figure[key]:.2f}" for key in ("value", "low", "high"))
    is_single = figure["low"] == figure["high"] == figure["value"]
    return f"{value}x" if is_single else f"{value}x ({low} to {high})"
