"""A report's pictures as PNG files; needs matplotlib, an optional extra, and no display.

`plot_costs` draws a cost curve by itself, whoever measured it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_eagle.bench.metrics import ALL
from mlx_eagle.bench.specs import PLAIN
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
# Whoever comes after as many contestants as there are colours has another hatch, another marker.
HATCHES, MARKERS = ("", "///", "..."), ("o", "^", "D")
DPI = 150
WIDTH = 7.5  # inches
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind text that crosses lines
LONGEST_NAME = 36  # characters of a name in a legend


def require_matplotlib(without: str = "") -> None:
    """Raise unless plots can be drawn.

    Args:
        without: how to go without them.

    Raises:
        EagleError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        advice = f", or {without}" if without else ""
        raise EagleError(
            f'plots need matplotlib, which is not installed: pip install "mlx-eagle[plot]"{advice}'
        ) from error


def plot_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw everything that a report has figures for; returns the files."""
    files = []
    for temperature in report["trial"]["temperatures"]:
        rows = [row for row in report["summary"] if row["temperature"] == temperature]
        end = f"temp-{temperature:g}.png"
        if any(row["contestant"] != PLAIN for row in rows):
            files.append(plot_speedups(rows, folder / f"speedup-{end}"))
        alphas = [a for a in report["n_alpha"] if a["temperature"] == temperature]
        if alphas or any(row["acceptance_by_depth"] for row in rows):
            files.append(plot_acceptance(rows, alphas, folder / f"acceptance-{end}"))
    if report.get("costs"):
        costs = {int(n): seconds for n, seconds in report["costs"].items()}
        files.append(plot_costs(costs, folder / "costs.png"))
    return files


def plot_speedups(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw a bar per category and contestant, with a line at plain decoding's speed."""
    names = [n for n in dict.fromkeys(row["contestant"] for row in rows) if n != PLAIN]
    categories = list(dict.fromkeys(row["category"] for row in rows))
    found = {(row["category"], row["contestant"]): row["speedup"] for row in rows}
    bar = 0.8 / len(names)
    figure, axes = _figure(1.8 + len(categories) * max(0.5, 0.24 * len(names)))
    for index, name in enumerate(names):
        places = [at + (index - (len(names) - 1) / 2) * bar for at in range(len(categories))]
        values = [found.get((category, name), 0.0) for category in categories]
        colour, turn = COLOURS[index % len(COLOURS)], index // len(COLOURS) % len(HATCHES)
        style: dict[str, Any] = {"color": colour, "hatch": HATCHES[turn], "edgecolor": "white"}
        drawn = axes.barh(places, values, height=0.9 * bar, label=_short(name), **style)
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8, bbox=PAPER, zorder=4)
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(categories)), [_short(category) for category in categories])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.12 * max(1.0, *found.values()))
    axes.set_xlabel("times as fast as plain decoding (dashed line: equally fast)")
    return _save(figure, axes, path)


def plot_acceptance(
    rows: Sequence[Mapping[str, Any]], alphas: Sequence[Mapping[str, Any]], path: Path
) -> Path:
    """Draw acceptance by depth of every contestant, and n-alpha of every head, dashed."""
    figure, axes = _figure(4.2)
    deepest = 1
    curves = [row for row in rows if row["category"] == ALL and row["acceptance_by_depth"]]
    for index, row in enumerate(curves):
        values, colour = row["acceptance_by_depth"], COLOURS[index % len(COLOURS)]
        marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
        depths, label = range(1, len(values) + 1), _short(row["contestant"])
        axes.plot(depths, values, marker=marker, color=colour, label=label)
        deepest = max(deepest, len(values))
    known = [a for a in alphas if a["category"] == ALL and a["n_rounds"]]
    for index, entry in enumerate(known):
        points = [(n + 1, v) for n, v in enumerate(entry["values"]) if v is not None]
        colour = COLOURS[(len(curves) + index) % len(COLOURS)]
        label = f"n-alpha, chain, {_short(entry['head'])}"
        axes.plot(*zip(*points, strict=True), "s--", color=colour, label=label)
        deepest = max(deepest, len(entry["values"]))
    axes.set_ylim(0, 1.05)
    axes.set_xticks(range(1, deepest + 1))
    axes.set_xlabel("depth of the drafted token (for n-alpha: n + 1)")
    axes.set_ylabel("share accepted")
    return _save(figure, axes, path)


def plot_costs(costs: Mapping[int, float], path: Path) -> Path:
    """Draw what verifying costs, relative to one row.

    Args:
        costs: seconds by number of rows; those of one row are the unit, or else the fewest.
        path: the PNG file to write.
    """
    rows = sorted(costs)
    figure, axes = _figure(4.0)
    unit = costs[rows[0]]
    relative = [costs[n] / unit for n in rows]
    axes.plot(rows, relative, "o-", color=COLOURS[0], label="measured")
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="rows for free")
    axes.set_xlim(0, rows[-1] * 1.03 + 0.5)
    axes.set_ylim(0, 1.1 * max(relative))
    axes.set_xlabel("rows verified in one pass")
    axes.set_ylabel(f"seconds, relative to {rows[0]} row{'s' if rows[0] > 1 else ''}")
    return _save(figure, axes, path)


def _figure(height: float) -> tuple["Figure", "Axes"]:
    """Return an empty picture, `height` inches high, that needs no display."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: "Figure", axes: "Axes", path: Path) -> Path:
    """Write a picture, its legend above it so that it covers nothing."""
    n_entries = len(axes.get_legend_handles_labels()[0])
    figure.legend(loc="outside upper center", ncols=min(n_entries, 2), frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
    return path


def _short(name: str) -> str:
    """Return a name that fits a legend; of a long one, a folder's say, the end tells most."""
    text = _label(name)
    return text if len(text) <= LONGEST_NAME else f"…{text[1 - LONGEST_NAME :]}"


def _label(text: str) -> str:
    """Return text without what matplotlib would take for formulas or cannot draw."""
    return printable(text).replace("$", r"\$")
