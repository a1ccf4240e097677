"""The folder of a training: its options, its figures as tables, its checkpoints, its best weights.

    options.json      what it is made of
    updates.csv       a row for each update
    measurements.csv  a row for each measurement on the held-out texts
    checkpoint/       the newest checkpoint, see `checkpoint.py`
    best/             the weights that were measured best

Rows are appended as they come. A training that goes on from a checkpoint repeats the updates since:
their rows are cut off before, so that each stands in the tables once.
"""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file, new_folder
from mlx_eagle.files.json_files import read_json

_OPTIONS = "options.json"
UPDATES, MEASUREMENTS = "updates.csv", "measurements.csv"


class RunFolder:
    """What a training leaves on the disk; see the module."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, options: Mapping[str, Any]) -> "RunFolder":
        """Make the folder of a new training.

        Raises:
            EagleError: if there is something already, or it cannot be written.
        """
        with new_folder(path) as partial:
            (partial / _OPTIONS).write_text(json.dumps(options, indent=1) + "\n")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the folder of a training that was begun.

        Raises:
            EagleError: if it is none.
        """
        if not (path / _OPTIONS).is_file():
            raise EagleError(f"{path} is not the folder of a training: it has no {_OPTIONS}")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """Where the newest checkpoint is kept."""
        return self.path / "checkpoint"

    @property
    def best(self) -> Path:
        """Where the weights that were measured best are kept."""
        return self.path / "best"

    def options(self) -> dict[str, Any]:
        """Return what the training was created with."""
        return read_json(self.path / _OPTIONS)

    def replace_options(self, options: Mapping[str, Any]) -> None:
        """Write other options, as long as nothing depends on the ones before."""
        with new_file(self.path / _OPTIONS) as partial:
            partial.write_text(json.dumps(options, indent=1) + "\n")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but the options, and hidden files of processes."""
        names = [file.name for file in self.path.iterdir()]
        return [name for name in names if not name.startswith(".")] == [_OPTIONS]

    def append(self, table: str, row: Mapping[str, float]) -> None:
        """Append a row to a table; the first one says what the columns are.

        Args:
            table: `UPDATES` or `MEASUREMENTS`.
            row: numbers by column, `update` first.

        Raises:
            EagleError: if it cannot be written.
        """
        file = self.path / table
        try:
            is_new = not file.exists()
            with file.open("a", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                if is_new:
                    writer.writerow(row)
                writer.writerow(row.values())
        except OSError as error:
            raise EagleError(f"cannot write {file}: {error.strerror or error}") from error

    def rows(self, table: str) -> list[dict[str, float]]:
        """Return the rows of a table, without a last one that was not written to its end."""
        file = self.path / table
        if not file.exists():
            return []
        text = file.read_text()
        complete = text[: text.rfind("\n") + 1]
        return [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(complete.splitlines())
        ]

    def cut(self, update: int) -> None:
        """Remove the rows of later updates from all tables."""
        for table in (UPDATES, MEASUREMENTS):
            file = self.path / table
            if not file.exists():
                continue
            head, *lines = file.read_text().splitlines(keepends=True) or [""]
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if int(line.partition(",")[0]) <= update]
            with new_file(file) as partial:
                partial.write_text("".join([head, *kept]) if kept else "")
            if not kept:
                file.unlink()

    def flush(self) -> None:
        """Wait until the tables are on the disk: a checkpoint is newer than none of its rows."""
        for table in (UPDATES, MEASUREMENTS):
            if (file := self.path / table).exists():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
