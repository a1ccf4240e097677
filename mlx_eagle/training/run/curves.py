"""Pictures of a training: loss and n-alpha by update; they need matplotlib, an optional extra."""

from collections.abc import Sequence
from pathlib import Path

from mlx_eagle.training.run.folder import MEASUREMENTS, UPDATES, RunFolder

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
POINTS = 200  # of a curve at most: each is the mean of the updates since the one before


def draw_curves(folder: RunFolder) -> list[Path]:
    """Draw what the tables of a training hold; returns the pictures, none without matplotlib."""
    updates, measurements = folder.rows(UPDATES), folder.rows(MEASUREMENTS)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return []
    if not updates:
        return []
    losses = [name for name in updates[0] if name.startswith("losses_")]
    alphas = [name for name in updates[0] if name.startswith("n_alpha_")]
    return [
        _draw(folder.path / "loss.png", "loss of a step", losses, updates, measurements),
        _draw(folder.path / "n-alpha.png", "n-alpha", alphas, updates, measurements),
    ]


def _draw(
    path: Path,
    label: str,
    columns: Sequence[str],
    updates: Sequence[dict[str, float]],
    measurements: Sequence[dict[str, float]],
) -> Path:
    """Draw a curve for each step, and what was measured on held-out texts as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    for index, column in enumerate(columns):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*thinned(updates, column), color=colour, label=f"step {index}")
        held_out = [(row["update"], row[column]) for row in measurements]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o", color=colour, markersize=4)
    axes.set_xlabel("updates (points: held-out texts)")
    axes.set_ylabel(label)
    figure.legend(loc="outside upper center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    return path


def thinned(rows: Sequence[dict[str, float]], column: str) -> tuple[list[float], list[float]]:
    """Return updates and means of a column over groups of neighbouring rows, `POINTS` at most."""
    size = -(-len(rows) // POINTS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    means = [sum(row[column] for row in group) / len(group) for group in groups]
    return [group[-1]["update"] for group in groups], means
