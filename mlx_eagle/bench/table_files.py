"""Files of rows from unknown authors: JSON, JSON Lines (gzipped too) and CSV become dictionaries.

Only what the standard library reads is read; a Parquet file is refused by name.
"""

import csv
import gzip
import json
import zlib
from io import StringIO
from pathlib import Path
from typing import Any

from mlx_eagle.errors import EagleError

READABLE = (".json", ".jsonl", ".jsonl.gz", ".csv")

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, in its order.

    Raises:
        EagleError: if it cannot be read, is of another format, damaged or empty.
    """
    if not path.name.endswith(READABLE):
        raise EagleError(
            f"{path} is not in a format that is read here: expected {', '.join(READABLE)}, found "
            f"{path.suffix or 'no ending'}; convert it first (Parquet with pandas or duckdb)"
        )
    text = read_text(path)
    if path.suffix == ".csv":
        rows = _parse_csv(text, path)
    elif path.suffix == ".json":
        rows = _parse_json(text, path)
    else:
        rows = parse_lines(text, path)
    if not rows:
        raise EagleError(f"{path} holds no rows; give a file with at least one")
    return rows


def read_text(path: Path) -> str:
    """Return the text of a file, unpacked if its name ends in .gz.

    Raises:
        EagleError: if it cannot be read or is not UTF-8 text.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EagleError(
            f"{path} is not UTF-8 text (byte {error.start}): {error.reason}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise EagleError(f"{path} cannot be read: {_reason(error)}") from error


def parse_lines(text: str, path: Path) -> list[Row]:
    """Return the objects of JSON Lines; empty lines are passed over.

    Raises:
        EagleError: if a line is not a JSON object; the message names its number.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_object(line, f"{path}, line {number}"))
    return rows


def _parse_json(text: str, path: Path) -> list[Row]:
    """Return the objects of a JSON list; a file that is JSON Lines after all is read as such."""
    if not text.lstrip().startswith("["):
        return parse_lines(text, path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EagleError(f"{path} is not JSON ({_reason(error)}); fetch it again") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise EagleError(
                f"{path}, row {number}: expected an object, found {type(row).__name__}"
            )
    return list(rows)


def _parse_csv(text: str, path: Path) -> list[Row]:
    """Return the rows of a CSV file under the names in its first row."""
    csv.field_size_limit(1 << 30)  # articles are longer than the module's default allows
    try:
        return list(csv.DictReader(StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise EagleError(f"{path} is not CSV ({error}); fetch it again") from error


def _object(line: str, where: str) -> Row:
    """Return the JSON object of one line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EagleError(
            f"{where}: not JSON ({_reason(error)}); write one object a line"
        ) from error
    if not isinstance(row, dict):
        raise EagleError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def _reason(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
