"""What became of the tensors of a GGUF file: a table to read, and a file with every tensor."""

import json
from collections.abc import Sequence
from pathlib import Path

from mlx_eagle.convert.gguf.write import Row

FILE = "gguf_conversion.json"
_HEADINGS = ("stored as", "became", "tensors", "error")


def write_report(rows: Sequence[Row], source: str, folder: Path) -> None:
    """Write every tensor: its names, how it was stored, what it became and with what error."""
    keys = ("name", "place", "kind", "became", "error")
    table = [{key: getattr(row, key) for key in keys} for row in rows]
    (folder / FILE).write_text(json.dumps({"source": source, "tensors": table}, indent=1))


def as_table(rows: Sequence[Row]) -> str:
    """Return a table of the ways in which tensors were stored, with the largest error of each.

    An error is the root mean square of what was changed, in units of that of the values.
    """
    ways: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        ways.setdefault((row.kind, row.became), []).append(row)
    lines = [_HEADINGS, *((*way, str(len(found)), _error(found)) for way, found in ways.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"  {kind:<{widths[0]}}  {became:<{widths[1]}}  {count:>{widths[2]}}  {error}"
        for kind, became, count, error in lines
    )


def _error(rows: Sequence[Row]) -> str:
    """Return the largest error of tensors that were stored alike, and whose it is."""
    worst = max(rows, key=lambda row: row.error)
    if not worst.error:
        return "none: the same values"
    return f"{worst.error:.2g} of the values' size, at most ({worst.name})"
