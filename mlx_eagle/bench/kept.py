"""Generations of a long run, kept in a file: a run that was stopped goes on where it was.

A line is one JSON object: first what the run is, then everybody's generation of one prompt or the
score of a head on an answer, and a line wherever the run was begun or taken up again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.table_files import Row, parse_lines
from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file

FILE = "answers.jsonl"


class Key(NamedTuple):
    """What a line holds the generations of."""

    repeat: int
    temperature: float
    prompt_id: int


class Kept:
    """The generations of a run that are on disk.

    Args:
        folder: of the run; it is made if it is not there.
        settings: what the run is made with, ready for JSON; it goes on with the same only.

    Attributes:
        starts: when the run was begun, and taken up again each time.

    Raises:
        EagleError: if the folder holds something else, another run or a damaged one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._file = folder / FILE
        try:
            _make(folder, self._file, settings)
            whole = _whole_lines(self._file)
        except OSError as error:
            raise EagleError(f"cannot write {folder}: {error.strerror or error}") from error
        rows = _rows(whole, self._file)
        _check(folder, rows[0], settings)
        self._found = {}
        self.starts = [row["begun"] for row in rows if "begun" in row]
        self._scores = {json.dumps(r["of"]): r["score"] for r in rows if {"of", "score"} <= set(r)}
        try:
            for row in rows:
                if "samples" in row:
                    samples = [Sample(**sample) for sample in row["samples"]]
                    self._found[_key(samples)] = samples
        except (TypeError, IndexError) as error:
            raise EagleError(f"{self._file} is damaged ({error}): give another --out") from error
        self._begin(len(whole))

    def find(self, repeat: int, temperature: float, prompt_id: int) -> list[Sample] | None:
        """Return everybody's generation of a prompt; None if it was not done yet."""
        return self._found.get(Key(repeat, temperature, prompt_id))

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep everybody's generation of a prompt."""
        self._found[_key(samples)] = list(samples)
        self._write({"samples": [sample._asdict() for sample in samples]})

    def find_score(self, of: Sequence[Any]) -> Any:
        """Return what `add_score` kept of something; None if it did not."""
        return self._scores.get(json.dumps(of))

    def add_score(self, of: Sequence[Any], score: Any) -> None:
        """Keep a score, ready for JSON, of something that is named so."""
        self._scores[json.dumps(of)] = score
        self._write({"of": of, "score": score})

    def _begin(self, n_bytes: int) -> None:
        """Go on after so many bytes of the file: what follows was being written when it ended."""
        os.truncate(self._file, n_bytes)
        self.starts.append(datetime.now().astimezone().isoformat(timespec="seconds"))
        self._write({"begun": self.starts[-1]})

    def _write(self, row: Row) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def _make(folder: Path, file: Path, settings: Mapping[str, Any]) -> None:
    """See to it that the file is there; a folder with anything else in it is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    if any(folder.iterdir()):
        raise EagleError(
            f"{folder} exists and holds no {FILE} of a run that could go on: choose another folder"
        )
    with new_file(file) as partial:
        partial.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")


def _whole_lines(file: Path) -> bytes:
    """Return a file without a last line that was being written when the run ended."""
    data = file.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _rows(whole: bytes, file: Path) -> list[Row]:
    """Return the lines of a run's file; another file is refused, and left as it is."""
    rows = parse_lines(whole.decode(errors="replace"), file)
    if not rows or not isinstance(rows[0].get("settings"), dict):
        raise EagleError(f"{file} does not begin with a run's settings: give another --out")
    return rows


def _check(folder: Path, first: Row, settings: Mapping[str, Any]) -> None:
    """Refuse a folder of another run."""
    theirs = first["settings"]
    ours = json.loads(json.dumps(settings))
    if wrong := [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]:
        raise EagleError(
            f"the answers in {folder} were measured with other values of {', '.join(wrong)}: give "
            "the same, or another --out"
        )


def _key(samples: Sequence[Sample]) -> Key:
    return Key(samples[0].repeat, samples[0].temperature, samples[0].prompt_id)
