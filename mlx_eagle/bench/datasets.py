"""Public data sets that speculative decoding is measured on.

Without a path it is the 80 questions of each that the EAGLE papers were measured on, as their
authors publish them: one commit, and one checksum for each file, so that a figure is comparable
with another one. A local file or folder may hold them, or the whole data set in its publisher's own
layout. The answers in the files are not used.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_session

from mlx_eagle.bench.prompts import BenchPrompt, ask, to_prompt
from mlx_eagle.bench.table_files import READABLE, Row, read_rows
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.hub.download import NetworkError

SOURCE = (
    "https://raw.githubusercontent.com/SafeAILab/EAGLE/"
    "cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b/eagle/data"
)
TIMEOUT = 30  # seconds


class Dataset(NamedTuple):
    """Where a data set is and how a row becomes a prompt.

    Attributes:
        category: of its prompts, where the rows name none.
        folder: of the questions, below SOURCE.
        sha256: of the file with the questions.
        names: what its file is called where it is published, for folders.
        fields: what a row has to hold.
        question: makes the text of the prompt.
    """

    category: str
    folder: str
    sha256: str
    names: tuple[str, ...]
    fields: tuple[str, ...]
    question: Callable[[Row], str]


def _instruct(row: Row) -> str:
    """Return Alpaca's instruction, with its input below."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


DATASETS = {
    "mt-bench": Dataset(
        "mt-bench",
        "mt_bench",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        ("question.jsonl",),
        ("turns",),
        lambda row: row["turns"][0],
    ),
    "humaneval": Dataset(
        "humaneval",
        "humaneval",
        "ce0244e2b228339e9a11afc63a151719beede1e389fdaec7cd9751d33902180e",
        ("HumanEval.jsonl", "HumanEval.jsonl.gz", "humaneval.jsonl"),
        ("prompt",),
        lambda row: f"Complete this Python function:\n\n{row['prompt']}",
    ),
    "gsm8k": Dataset(
        "gsm8k",
        "gsm8k",
        "a55920b2f2aac724241124c59e5b8e8168dbbeb2ab0fdbee17d5b0ab6db5ff27",
        ("test.jsonl",),
        ("question",),
        lambda row: row["question"],
    ),
    "alpaca": Dataset(
        "alpaca",
        "alpaca",
        "8ad3e5a7fc61b88d8e25edb81a52a2ce00a04494d5694c122cb11a5cc26a00df",
        ("alpaca_data.json", "alpaca_data_cleaned.json"),
        ("instruction",),
        _instruct,
    ),
    "cnn-dm": Dataset(
        "cnn-dm",
        "sum",
        "916876f0c42f938a944de96eed16e51425f29f27438cca5c9ef4737c0fedf771",
        ("test.csv", "test.jsonl"),
        ("article",),
        lambda row: f"Summarize this article:\n\n{row['article']}",
    ),
}


def read_dataset(name: str, path: Path | None = None) -> list[BenchPrompt]:
    """Return the prompts of a public data set.

    Args:
        name: a key of DATASETS.
        path: its file, or the folder that holds it; None fetches the papers' questions, once.

    Raises:
        EagleError: if it cannot be had, or its rows are laid out otherwise.
    """
    dataset = DATASETS[name]
    file = _fetch(name, dataset) if path is None else _find(name, dataset, path)
    rows = read_rows(file)
    return [_to_prompt(row, dataset, f"{file}, row {n}") for n, row in enumerate(rows, start=1)]


def _to_prompt(row: Row, dataset: Dataset, where: str) -> BenchPrompt:
    """Return the prompt of a row in the published layout, or in MT-bench's."""
    if "turns" in row or isinstance(row.get("prompt"), list):
        prompt = to_prompt(row, where)
        return prompt if "category" in row else prompt._replace(category=dataset.category)
    missing = [f for f in dataset.fields if not isinstance(row.get(f), str) or not row[f].strip()]
    if missing:
        raise EagleError(
            f"{where}: expected {', '.join(dataset.fields)} as in the published {dataset.category} "
            f"files, or turns; found {', '.join(map(str, row))}"
        )
    return ask(dataset.category, dataset.question(row))


def _find(name: str, dataset: Dataset, path: Path) -> Path:
    """Return the file of a data set: `path` itself, or the one in the folder `path`."""
    if not path.is_dir():
        return path
    for wanted in (*dataset.names, "question.jsonl"):
        if (path / wanted).is_file():
            return path / wanted
    found = sorted(entry.name for entry in path.iterdir())[:8]
    raise EagleError(
        f"{path} holds no {name} file: expected {' or '.join(dataset.names)}, found "
        f"{', '.join(found) or 'nothing'}; give the file itself ({', '.join(READABLE)})"
    )


def _fetch(name: str, dataset: Dataset) -> Path:
    """Return the questions' file, fetched once and kept in the cache folder.

    Raises:
        HubError: if it cannot be had, or is another file.
    """
    file = cache_folder() / "datasets" / f"{name}-{dataset.sha256[:12]}.jsonl"
    url = f"{SOURCE}/{dataset.folder}/question.jsonl"
    try:
        if not file.is_file() or _sha256(file.read_bytes()) != dataset.sha256:
            _download(url, dataset.sha256, file)
    except (NetworkError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"{name} cannot be fetched ({url}): {reason}; download that file, or "
            f"{' or '.join(dataset.names)} of its publisher, and give it with --data PATH"
        ) from error
    return file


def _download(url: str, sha256: str, file: Path) -> None:
    """Write what a URL holds to a file, if it is what is expected there; ValueError else."""
    answer = get_session().get(url, timeout=TIMEOUT, follow_redirects=True)
    answer.raise_for_status()
    if (found := _sha256(answer.content)) != sha256:
        raise ValueError(f"its SHA-256 is {found[:12]}, expected {sha256[:12]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        partial.write_bytes(answer.content)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
