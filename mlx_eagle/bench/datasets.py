"""Public data sets that speculative decoding is measured on, read from their published files.

Each is read from a local file or folder, or fetched from the hub in a format that needs no further
library. A publisher may also lay a data set out as MT-bench does ("turns"), as the authors of the
EAGLE papers do: that is read for each of them. The answers in the files are not used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from mlx_eagle.bench.prompts import BenchPrompt, ask, to_prompt
from mlx_eagle.bench.table_files import READABLE, Row, read_rows
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.hub.download import NetworkError


class Dataset(NamedTuple):
    """Where a data set is and how a row becomes a prompt.

    Attributes:
        category: of its prompts, where the rows name none.
        repo: a copy on the hub that is not Parquet.
        file: the file in that copy.
        names: what its file is called where it is published, for folders.
        fields: what a row has to hold.
        question: makes the text of the prompt.
    """

    category: str
    repo: str
    file: str
    names: tuple[str, ...]
    fields: tuple[str, ...]
    question: Callable[[Row], str]


def _instruct(row: Row) -> str:
    """Return Alpaca's instruction, with its input below."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


DATASETS = {
    "mt-bench": Dataset(
        "mt-bench",
        "HuggingFaceH4/mt_bench_prompts",
        "raw/question.jsonl",
        ("question.jsonl",),
        ("turns",),
        lambda row: row["turns"][0],
    ),
    "humaneval": Dataset(
        "humaneval",
        "THUDM/humaneval-x",
        "data/python/data/humaneval.jsonl",
        ("HumanEval.jsonl", "HumanEval.jsonl.gz", "humaneval.jsonl"),
        ("prompt",),
        lambda row: f"Complete this Python function:\n\n{row['prompt']}",
    ),
    "gsm8k": Dataset(
        "gsm8k",
        "DaertML/gsm8k-jsonl",
        "test.jsonl",
        ("test.jsonl",),
        ("question",),
        lambda row: row["question"],
    ),
    "alpaca": Dataset(
        "alpaca",
        "yahma/alpaca-cleaned",
        "alpaca_data_cleaned.json",
        ("alpaca_data.json", "alpaca_data_cleaned.json"),
        ("instruction",),
        _instruct,
    ),
    "cnn-dm": Dataset(
        "cnn-dm",
        "Saleh11623/CnnDailymail",
        "test.csv",
        ("test.csv", "test.jsonl"),
        ("article",),
        lambda row: f"Summarize this article:\n\n{row['article']}",
    ),
}


def read_dataset(name: str, path: Path | None = None) -> list[BenchPrompt]:
    """Return the prompts of a public data set.

    Args:
        name: a key of DATASETS.
        path: its file, or the folder that holds it; None fetches the copy on the hub.

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
    """Return the data set's file from the hub, or from the hub's cache.

    Raises:
        HubError: if it is in neither.
    """
    try:
        return Path(hf_hub_download(dataset.repo, dataset.file, repo_type="dataset"))
    except (NetworkError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"{name} cannot be fetched ({dataset.file} of the data set {dataset.repo}): {reason}; "
            f"download {' or '.join(dataset.names)} by hand and give it with --data PATH"
        ) from error
