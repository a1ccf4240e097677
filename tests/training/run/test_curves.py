"""Pictures of a training."""

import sys
from pathlib import Path

import pytest

from mlx_eagle.training.run.curves import POINTS, draw_curves, thinned
from mlx_eagle.training.run.folder import MEASUREMENTS, UPDATES, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "run", {})
    for update in range(1, 4):
        made.append(UPDATES, {"update": update, "losses_0": 1 / update, "n_alpha_0": 0.1 * update})
    made.append(MEASUREMENTS, {"update": 3, "losses_0": 0.5, "n_alpha_0": 0.2})
    return made


def test_curves_are_drawn_as_png(folder: RunFolder) -> None:
    pytest.importorskip("matplotlib")
    files = draw_curves(folder)
    assert [file.name for file in files] == ["loss.png", "n-alpha.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_without_matplotlib_or_rows_there_are_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.cut(0)
    assert draw_curves(folder) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_curves(folder) == []


def test_long_curves_are_thinned_to_means() -> None:
    rows = [{"update": i, "loss": float(i % 2)} for i in range(1, 2 * POINTS + 1)]
    updates, means = thinned(rows, "loss")
    assert updates == list(range(2, 2 * POINTS + 1, 2))
    assert means == [0.5] * POINTS
