"""Tables in Markdown, whose cells hold text that nobody vouches for."""

from collections.abc import Sequence

from mlx_eagle.files.quoting import printable

Table = Sequence[Sequence[str]]


def as_table(rows: Table) -> str:
    """Return a Markdown table whose columns line up; the first row is its head."""
    width = max(map(len, rows))
    cells = [[cell_text(cell) for cell in row] + [""] * (width - len(row)) for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(width)]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * w for w in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def cell_text(text: str) -> str:
    """Return text that cannot leave its cell or send control characters."""
    return printable(text).replace("|", "\\|")
