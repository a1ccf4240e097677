"""A training's folder: tables that hold each update once, whatever was killed."""

from pathlib import Path

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.training.run.folder import MEASUREMENTS, UPDATES, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "run", {"batch": 4})
    for update in range(1, 6):
        made.append(UPDATES, {"update": update, "loss": 1 / update})
    made.append(MEASUREMENTS, {"update": 4, "n_alpha_0": 0.1 + 0.2})
    return made


def test_what_it_was_created_with_is_kept(folder: RunFolder) -> None:
    assert RunFolder.open(folder.path).options() == {"batch": 4}


def test_a_folder_is_never_begun_twice(folder: RunFolder) -> None:
    with pytest.raises(EagleError, match="exists and is never overwritten"):
        RunFolder.create(folder.path, {})


def test_another_folder_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(EagleError, match="is not the folder of a training"):
        RunFolder.open(tmp_path)


def test_rows_come_back_to_the_last_bit(folder: RunFolder) -> None:
    assert folder.rows(UPDATES) == [{"update": i, "loss": 1 / i} for i in range(1, 6)]
    assert folder.rows(MEASUREMENTS) == [{"update": 4, "n_alpha_0": 0.1 + 0.2}]


def test_rows_after_the_checkpoint_are_cut_off(folder: RunFolder) -> None:
    folder.cut(3)
    folder.append(UPDATES, {"update": 4, "loss": 7.0})
    assert [row["update"] for row in folder.rows(UPDATES)] == [1, 2, 3, 4]
    assert folder.rows(MEASUREMENTS) == []


def test_a_row_that_was_not_written_to_its_end_is_no_row(folder: RunFolder) -> None:
    with (folder.path / UPDATES).open("a") as stream:
        stream.write("6,0.1")
    assert len(folder.rows(UPDATES)) == 5
    folder.cut(9)
    folder.append(UPDATES, {"update": 6, "loss": 0.25})
    assert folder.rows(UPDATES)[-1] == {"update": 6, "loss": 0.25}


@pytest.mark.parametrize("text", ["", "upd", "update,loss\n"])
def test_a_table_without_rows_is_begun_anew(text: str, folder: RunFolder) -> None:
    (folder.path / UPDATES).write_text(text)
    folder.cut(9)
    folder.append(UPDATES, {"update": 1, "loss": 2.0})
    assert folder.rows(UPDATES) == [{"update": 1, "loss": 2.0}]
